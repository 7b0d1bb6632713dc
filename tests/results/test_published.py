"""The table of published accuracies, and what of it may stand beside a reproduced one."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from importlib.resources import files
from typing import Any

import pytest

from ddbench.plugins import published_names, published_schedule, registry
from ddbench.results import published
from ddbench.results.published import beside, elsewhere, everything, lookup
from ddbench.run.row import Row


def lines() -> list[str]:
    return files("ddbench.results").joinpath("published.csv").read_text(encoding="utf-8").splitlines()


def row(**more: Any) -> Row:
    """A row of results: tesla on the whole of CIFAR-10 with the field's ConvNet."""
    base = {
        "dataset": "cifar10",
        "data_source": "cifar10",
        "matcher": "tesla",
        "scheduler": "single",
        "network": "convnet",
        "ipc": 10,
        "label_type": "teacher",
        "options": {"dataset.limit": None, "dataset.noise": 0.0, "decoder.factor": 1},
        "distil_network": "convnet",
        "dataset_digest": "d",
        "distil_digest": "d",
    }
    return Row(**base | more)


def of(dataset: str, matcher: str, network: str | None = "convnet", labels: str = "hard", **more: Any) -> Row:
    """A row of a method on ten images per class."""
    return row(dataset=dataset, data_source=dataset, matcher=matcher, network=network, label_type=labels, **more)


PACKED = {"decoder.factor": 2}


def values(found: list[published.Reported]) -> list[tuple[str, float]]:
    return [(r.method, r.mean) for r in found]


# ------------------------------------------------------------------------------------------- the file


def test_every_line_has_all_columns_and_sane_values():
    rows = list(csv.reader(line for line in lines() if not line.startswith("#")))
    assert rows[0] == list(published.COLUMNS)
    assert len(rows) > 500
    for method, scheduler, dataset, model, ipc, mean, std, source in rows[1:]:
        assert all(text == text.strip() and text for text in (method, scheduler, dataset, model, source))
        assert re.fullmatch(r"[1-9]\d*|full", ipc)
        assert 0 < float(mean) < 100
        assert std == "" or 0 <= float(std) < 5
        assert re.fullmatch(r"none|PDD-P\d", scheduler)
        assert dataset in {"CIFAR10", "CIFAR100", "TinyImageNet", "FashionMNIST", "MNIST", "SVHN"} or "Image" in dataset


def test_names_that_hold_commas_are_whole():
    names = {(r.method, r.model) for r in everything()}
    assert ("FullDataset(expert, Qin et al.)", "ConvNetD3-IN-w128") in names
    assert ("RDED", "ConvNet (BN, RDED)") in names
    assert ("TESLA", "ResNet18 (cross-arch, data from ConvNetD4)") in names
    for method, model in names:
        assert method.count("(") == method.count(")")
        assert model.count("(") == model.count(")")


def test_nothing_is_there_twice_and_nothing_without_a_source_that_was_seen():
    assert len(set(everything())) == len(everything())
    for reported in everything():
        assert not re.search("†|memory|recall|unverified|derived", reported.source)


def test_what_is_only_remembered_is_not_there():
    """Numbers that went through the field's hands without a source at hand."""
    have = {(r.method, r.dataset, r.ipc) for r in everything()}
    assert not have & {("DM", "MNIST", 1), ("DM", "MNIST", 10), ("FRePo", "MNIST", 1), ("TESLA", "ImageNet1K-64", 2)}
    assert not {r for r in everything() if r.method.startswith("SeqMatch")}
    staged = {(r.method, r.dataset, r.ipc, r.mean, r.std) for r in everything() if r.scheduler == "PDD-P5"}
    assert staged == {("IDC", "CIFAR10", 10, 67.9, None), ("IDC", "CIFAR100", 10, 45.8, None)}


def test_the_header_says_that_values_are_percent():
    assert "percent" in lines()[0]


# ------------------------------------------------------------------------------------------- mappings


def test_everything_that_the_mappings_name_exists_on_both_sides():
    methods = {r.method for r in everything()}
    named = {name: published_names(registry().get("matcher", name)) for name in registry().names("matcher")}
    assert {p.name for names in named.values() for p in names} <= methods
    assert {name for name, names in named.items() if not names} == {
        "ccs",
        "d2",
        "edc",
        "el2n",
        "fresh",
        "g-vbsm",
        "moderate",
        "ncfm",
        "ssp",
        "tgdd",
    } & set(named)
    schedules = {r.scheduler for r in everything()}
    for name in ("single", "pdd"):
        assert published_schedule(registry().get("scheduler", name).cls()) in schedules
    for dataset, (name, model) in published.DATASETS.items():
        assert dataset.partition("-")[0] in registry().names("dataset")
        assert any((r.dataset, r.model) == (name, model) for r in everything())


@pytest.mark.parametrize(
    ("matcher", "labels", "expected"),
    [
        ("tesla", "teacher", {("TESLA", 66.4)}),
        ("dm", "hard", {("DM", 48.9), ("DM", 47.64), ("DM", 45.7)}),
        ("ftd", "hard", {("FTD", 66.6), ("FTD(DATM rerun)", 65.3)}),
        ("random", "teacher", {("RandomReal+SoftLabel(expert)", 46.3)}),
        ("herding", "teacher", set()),
        ("idc", "hard", {("IDC-I", 58.3)}),
        ("ncfm", "hard", set()),
    ],
)
def test_a_method_has_the_values_of_its_published_name(matcher, labels, expected):
    assert set(values(lookup(of("cifar10", matcher, labels=labels)))) == expected


def test_sources_that_disagree_are_all_there():
    found = lookup(of("cifar10", "random"))
    assert {31.0, 26.0} <= {r.mean for r in found}
    assert len({r.source for r in found}) == len(found) > 2


def test_packed_images_are_published_for_idc_alone():
    assert values(lookup(of("cifar10", "idc", options=PACKED))) == [("IDC", 67.5)]
    assert lookup(of("cifar10", "dm", options=PACKED)) == []


def test_stages_are_published_for_five_alone():
    five, three = (of("cifar10", "idc", scheduler="pdd", options=PACKED | {"scheduler.stages": n}) for n in (5, 3))
    assert values(lookup(five)) == [("IDC", 67.9)]
    assert lookup(three) == []
    assert lookup(of("cifar10", "idc", scheduler="seqmatch", options=PACKED)) == []
    chained = {"decoder.factor": 2, "scheduler.stages": 5, "scheduler.sizes": [], "scheduler.chain": True}
    assert beside(row(matcher="idc", scheduler="pdd", label_type="hard", options=chained))
    for odd in ({"scheduler.chain": False}, {"scheduler.sizes": [1, 9]}):
        assert not beside(row(matcher="idc", scheduler="pdd", label_type="hard", options=chained | odd))


def test_the_network_is_the_published_one_or_there_is_no_value():
    assert lookup(of("cifar10", "tesla", "convnet(depth=3)"))
    assert lookup(of("tinyimagenet", "datm", labels="learned"))
    for other in ("convnet(width=64)", "convnet(depth=4)", "convnet(norm=batch)", "resnet18", None):
        assert lookup(of("cifar10", "tesla", other)) == []


@pytest.mark.parametrize(
    "change",
    [
        {"dataset": "cifar10-mini"},
        {"dataset": "digits"},
        {"ipc": 3},
        {"ipc": None},
        {"options": {"dataset.limit": 5000}},
        {"options": {"dataset.noise": 0.2}},
        {"options": {"dataset.imbalance": 10.0}},
        {"options": {"dataset.classes": ["cat", "dog"]}},
        {"distil_network": "resnet18"},
        {"distil_network": "alexnet"},
        {"distil_digest": "other"},
        {"distil_digest": "0ther"},
        {"network": "resnet18"},
    ],
    ids=str,
)
def test_another_setting_has_no_value_beside_it(change):
    assert beside(row())
    assert beside(row(**change)) == []


@pytest.mark.parametrize(
    ("change", "stands"),
    [
        ({}, True),
        ({"classes": 10, "train_images": 45_000, "options": {"dataset.validation": 0.1}}, True),
        ({"classes": 10, "train_images": 50_000}, True),
        ({"data_source": "images"}, False),
        ({"data_source": "hf"}, False),
        ({"data_source": None}, False),
        ({"classes": 9}, False),
        ({"classes": 10, "train_images": 108}, False),
        ({"classes": 10, "train_images": 50_000, "options": {"dataset.validation": 0.1}}, False),
    ],
    ids=str,
)
def test_numbers_stand_beside_the_data_that_they_are_of_and_not_beside_a_name(change, stands):
    assert bool(beside(row(**change))) == stands


def test_a_folder_called_like_a_dataset_has_no_published_numbers_in_other_settings_either():
    assert elsewhere(row(network="resnet18", distil_network="resnet18"))
    assert elsewhere(row(network="resnet18", distil_network="resnet18", data_source="images")) == []


def test_every_published_dataset_says_what_is_in_it():
    assert set(published._CONTENT) == set(published.DATASETS)


def test_imagenet_is_published_at_one_size():
    small = row(dataset="imagenet", data_source="imagenet", options={"dataset.size": 64})
    assert values(beside(small)) == [("TESLA", 17.8)]
    for other in (32, 128):
        assert beside(replace(small, options={"dataset.size": other})) == []


def test_other_settings_are_the_methods_other_networks_schedulers_and_variants():
    found = values(elsewhere(row(dataset="cifar10", network="convnet(width=16)", distil_network="convnet(width=16)")))
    assert ("TESLA", 66.4) in found
    assert ("TESLA", 48.9) in found
    mtt = elsewhere(row(matcher="mtt", label_type="hard"))
    assert "MTT(no ZCA; DC-Bench avg)" in {r.method for r in mtt}
    assert not set(mtt) & set(beside(row(matcher="mtt", label_type="hard")))


def test_a_record_is_in_fractions_as_rows_are():
    (found,) = beside(row())
    assert (found.mean, found.std) == (66.4, 0.8)
    assert (found.cells["accuracy_mean"], found.cells["accuracy_std"]) == (0.664, 0.008)
    assert found.short == "DATM Table 1"
    assert all(len(r.short) < 80 for r in everything())


SIZES = {  # classes and training images, as their publishers say
    "cifar10": (10, 50_000),
    "cifar100": (100, 50_000),
    "mnist": (10, 60_000),
    "fashionmnist": (10, 60_000),
    "svhn": (10, 73_257),
    "tinyimagenet": (200, 100_000),
    "imagenet": (1000, 1_281_167),
}


@pytest.mark.parametrize("name", SIZES)
def test_a_dataset_has_the_classes_and_images_that_its_publishers_say_give_or_take_one_per_class(name):
    classes, images = SIZES[name]
    options = {"dataset.size": 64} if name == "imagenet" else {}
    (matcher, labels) = next(
        (m, kind)
        for m in registry().names("matcher")
        for kind in ("hard", "teacher")
        for ipc in (10,)
        if beside(of(name, m, labels=kind, options=options, ipc=ipc))
        or beside(of(name, m, labels=kind, options=options, ipc=1))
    )
    ipc = 10 if beside(of(name, matcher, labels=labels, options=options)) else 1
    for k, n, stands in (
        *((classes, images, True), (classes, images - classes, True), (classes, images + classes, True)),
        *((classes, images - classes - 1, False), (classes, images + classes + 1, False)),
        *((classes + 1, images, False), (classes - 1, images, False), (classes, None, True), (None, images, True)),
    ):
        found = of(name, matcher, labels=labels, options=options, ipc=ipc, classes=k, train_images=n)
        assert bool(beside(found)) == stands, (k, n)


@pytest.mark.parametrize(
    ("source", "short"),
    [
        ("Cui et al., ICML 2023 (TESLA Table 2)", "TESLA Table 2"),
        ("Doe et al. (a workshop), 2022; see also Roe", "Doe et al."),
        ("secondary: Roe, Survey, 2021", "Roe"),
        ("A leaderboard; read in May, 2024", "A leaderboard"),
    ],
)
def test_a_source_in_few_words_is_its_table_or_how_it_begins(source, short):
    assert published.Reported("m", "none", "d", "n", 1, 50.0, None, source).short == short
