"""Sets in other tools' formats: what comes back from them, and what cannot."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ddbench_networks import ConvNet
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sets import some_set
from torch import Tensor

from ddbench import Curriculum, Preprocessing, Recipe, SyntheticSet, Teaching
from ddbench.errors import DataError, UsageError
from ddbench.files import exporter, parquet
from ddbench.files.class_names import folder_name
from ddbench.files.exporter import FORMS, export
from ddbench.files.formats import read
from ddbench.files.importer import adopt
from ddbench.files.safe_load import natural
from ddbench.grade.distilled import Distilled
from ddbench.grade.protocol import Protocol
from ddbench.plugins import registry
from ddbench.problem.decode import Decoder

CLASSES = ("cat", "dog", "Öre / ..\\x")
STEP = Preprocessing(torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.25]))
GROWING = ((0,), (0, 1), (0, 1, 2))


def some(seed: int, kind: str = "hard", count: int = 6) -> SyntheticSet:
    labels, stored = (kind, "probability") if kind in ("hard", "soft") else ("raw", kind)
    return some_set(count, seed, labels=labels, lr=0.01 * (seed + 1), label_kind=stored, label_type=kind)


def distilled(*sets: SyntheticSet, phases: tuple[tuple[int, ...], ...] | None = None) -> Distilled:
    growing = tuple(tuple(range(j + 1)) for j in range(len(sets)))
    curriculum = Curriculum(sets, phases or growing)
    teaching = Teaching(Recipe(augment=""), 10, len(sets))
    return Distilled(curriculum, STEP, CLASSES, (3, 8, 8), ConvNet(width=8), teaching, {"spec": None})


def exported(tmp_path: Path, form: str, made: Distilled) -> tuple[Path, str]:
    out = tmp_path / f"out.{form}"
    notes = export(made, form, out)
    assert all(note.endswith(".") or "--pixels" in note for note in notes)
    assert [p.name for p in tmp_path.iterdir()] == [out.name], "nothing but what was asked for is left behind"
    return out, " ".join(notes)


@pytest.mark.parametrize("kind", ["hard", "soft", "logit", "real"])
@pytest.mark.parametrize("form", ["pt", "npz", "datasets"])
def test_what_is_exported_comes_back_to_the_bit(tmp_path, form, kind):
    if form == "datasets":
        pytest.importorskip("datasets")
    made = distilled(some(0, kind))
    out, _ = exported(tmp_path, form, made)
    before = made.curriculum.sets[0]
    (after,) = read(out, labels="auto" if kind in ("hard", "soft") else kind).sets
    assert torch.equal(after.images, before.images)
    assert torch.equal(after.labels, before.labels)
    assert (after.lr, after.label_kind) == (before.lr, before.label_kind)


def test_stages_come_back_as_disjoint_sets_in_growing_phases(tmp_path):
    made = distilled(some(0), some(1), some(2))
    out, notes = exported(tmp_path, "pt", made)
    found = read(out)
    assert found.phases == GROWING
    assert "3 stages" in notes
    for after, before in zip(found.sets, made.curriculum.sets, strict=True):
        assert torch.equal(after.images, before.images)
        assert torch.equal(after.labels, before.labels)
        assert after.lr == before.lr


def test_other_orders_of_learning_are_written_as_one_set_and_said_to_be_lost(tmp_path):
    out, notes = exported(tmp_path, "pt", distilled(some(0), some(1), phases=((0,), (1,))))
    assert len(read(out).sets[0]) == 12
    assert "order is lost" in notes


@pytest.mark.parametrize("form", FORMS)
def test_a_set_survives_export_and_import_whole(tmp_path, form):
    if form == "datasets":
        pytest.importorskip("datasets")
    digits = registry().get("dataset", "digits").cls().load()
    drawn = digits.train.draw(2)
    made = replace(
        distilled(SyntheticSet(drawn.images, drawn.labels, 0.0123)),
        preprocessing=digits.train.preprocessing,
        classes=digits.classes,
        shape=(1, 8, 8),
    )
    out, _ = exported(tmp_path, form, made)
    back, _ = adopt(out, digits, None, ConvNet(width=8), Protocol())
    if form in ("folder", "webdataset"):  # 8 bits, and no lr
        ours, theirs = (one.curriculum.sets[0] for one in (made, back))
        order = ours.labels.argmax(1).argsort(stable=True) if form == "folder" else torch.arange(len(ours))
        assert torch.equal(theirs.labels, ours.labels[order])
        step = made.preprocessing
        assert torch.allclose(step.invert(theirs.images), step.invert(ours.images[order]), atol=0.51 / 255)
    else:
        assert back.curriculum.sets[0].digest == made.curriculum.sets[0].digest
    assert back.preprocessing.digest == made.preprocessing.digest
    assert back.classes == made.classes


@given(
    seed=st.integers(0, 99), count=st.integers(1, 7), kind=st.sampled_from(["hard", "soft"]), stages=st.integers(1, 3)
)
@settings(max_examples=30)
def test_any_set_comes_back_from_the_layout_of_mtt(tmp_path_factory, seed, count, kind, stages):
    made = distilled(*(some(seed + j, kind, count) for j in range(stages)))
    out = tmp_path_factory.mktemp("any") / "out"
    export(made, "pt", out)
    for after, before in zip(read(out, classes=3).sets, made.curriculum.sets, strict=True):
        assert torch.equal(after.images, before.images)
        assert torch.equal(after.labels, before.labels)


def test_arrays_undo_the_preprocessing_they_come_with(tmp_path):
    made = distilled(some(0), some(1))
    out, _ = exported(tmp_path, "npz", made)
    with np.load(out, allow_pickle=False) as arrays:
        mean, std = (arrays[f"preprocessing_{n}"].reshape(1, 3, 1, 1) for n in ("mean", "std"))
        pixels = (arrays["images"] * std + mean).clip(0, 1)
        assert arrays["stage"].tolist() == [0] * 6 + [1] * 6
        assert arrays["classes"].tolist() == list(CLASSES)
    images = torch.cat([s.images for s in made.curriculum.sets])
    assert np.allclose(pixels, STEP.invert(images).numpy(), atol=1e-6)


def test_pictures_are_what_students_see_to_8_bits(tmp_path):
    made = distilled(some(0))
    out, notes = exported(tmp_path, "folder", made)
    assert [p.name for p in sorted(out.iterdir())] == ["cat", "classes.json", "dog", "Öre _ .._x"]
    pixels = STEP.invert(made.curriculum.sets[0].images)
    found = np.stack([np.asarray(Image.open(p)) for p in sorted(out.rglob("*.png"), key=lambda p: p.name)])
    assert np.abs(found / 255 - pixels.permute(0, 2, 3, 1).numpy()).max() <= 0.5 / 255 + 1e-6
    assert "clipped" in notes
    assert "8 bits" in notes


def test_pictures_come_back_with_their_labels(tmp_path):
    made = distilled(some(0))
    (after,) = read(exported(tmp_path, "folder", made)[0]).sets
    assert after.labels.argmax(1).tolist() == [0, 0, 1, 1, 2, 2]
    order = torch.tensor([0, 3, 1, 4, 2, 5])
    assert (after.images - STEP.invert(made.curriculum.sets[0].images[order])).abs().max() < 0.51 / 255


def test_soft_labels_of_pictures_are_in_a_table(tmp_path):
    made = distilled(some(0, "soft"))
    out, notes = exported(tmp_path, "folder", made)
    labels = made.curriculum.sets[0].labels
    assert np.array_equal(np.load(out / "labels.npy"), labels.numpy())
    with (out / "labels.csv").open(newline="", encoding="utf-8") as stream:
        head, *lines = csv.reader(stream)
    assert head == ["file", *CLASSES]
    for (file, *values), row in zip(lines, labels, strict=True):
        assert (out / file).exists()
        assert torch.equal(torch.tensor([float(v) for v in values]), row)
    assert "labels.csv" in notes


def test_pictures_within_the_range_are_not_said_to_be_clipped(tmp_path):
    inside = replace(some(0), images=torch.zeros(6, 3, 8, 8))
    assert "clipped" not in exported(tmp_path, "folder", distilled(inside))[1]


@pytest.mark.parametrize("kind", ["hard", "logit"])
def test_the_datasets_library_opens_the_folder_with_pictures_and_exact_floats(tmp_path, kind):
    hub = pytest.importorskip("datasets")
    made = distilled(some(0, kind), some(1, kind))
    out, notes = exported(tmp_path, "datasets", made)
    assert "clipped" in notes
    images = torch.cat([s.images for s in made.curriculum.sets])
    labels = torch.cat([s.labels for s in made.curriculum.sets])
    pixels = STEP.invert(images).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    ways = ((str(out), {}), ("parquet", {"data_files": str(out / "train.parquet")}))
    for way, more in ways:
        table = hub.load_dataset(way, split="train", cache_dir=str(tmp_path / "cache"), **more)
        assert table.features["label"].names == list(CLASSES)
        assert table["label"][:] == labels.argmax(1).tolist()
        assert table["stage"][:] == [0] * 6 + [1] * 6
        assert np.array_equal(np.array(table["network_input"][:], np.float32), images.numpy())
        shown = np.stack([np.asarray(picture) for picture in table["image"]])
        assert shown.dtype == np.uint8
        assert np.abs(shown / 255 - pixels).max() <= 0.5 / 255 + 1e-6
        if kind == "logit":
            assert torch.equal(torch.tensor(table["soft_label"][:]), labels)


def test_a_parquet_file_says_its_space_its_classes_and_its_lr(tmp_path):
    pytest.importorskip("datasets")
    made = distilled(some(0))
    out, _ = exported(tmp_path, "datasets", made)
    found = read(out / "train.parquet", names=(CLASSES[2], CLASSES[0], CLASSES[1]))
    assert found.step is not None
    assert found.step.digest == STEP.digest
    assert found.sets[0].lr == made.curriculum.sets[0].lr
    assert torch.equal(found.sets[0].labels, made.curriculum.sets[0].labels[:, [2, 0, 1]])


def test_a_whitened_set_as_a_table_says_so_and_leaves_the_matrix_to_be_stated(tmp_path):
    pytest.importorskip("datasets")
    mixing = torch.eye(192) * 4 + torch.randn(192, 192, generator=torch.Generator().manual_seed(0)) / 100
    zca = Preprocessing(torch.full((192,), 0.5), None, mixing)
    made = replace(distilled(some(0)), preprocessing=zca)
    out, notes = exported(tmp_path, "datasets", made)
    assert "--pixels zca" in notes
    found = read(out)
    assert found.step is None
    assert torch.equal(found.sets[0].images, made.curriculum.sets[0].images)


@pytest.mark.parametrize("spoilt", ["no key", "shape", "cut", "step", "bit"])
def test_a_parquet_file_that_is_not_what_it_says_is_refused(tmp_path, spoilt):
    pq = pytest.importorskip("pyarrow.parquet")
    pytest.importorskip("datasets")
    file = exported(tmp_path, "datasets", distilled(some(0)))[0] / "train.parquet"
    if spoilt == "cut":
        file.write_bytes(file.read_bytes()[:-200])
    elif spoilt == "bit":  # in the middle of the floats, which no schema tells
        one = distilled(some(0)).curriculum.sets[0].images[3, 1, 4, 4:].numpy().tobytes()
        whole = bytearray(file.read_bytes())
        at = whole.index(one[:8])
        whole[at] ^= 1
        file.write_bytes(bytes(whole))
    else:
        table = pq.read_table(file)
        said = json.loads(table.schema.metadata[b"ddbench"])
        said |= {"shape": {"shape": [3, 8, 9]}, "step": {"preprocessing": {"kind": "meanstd", "mean": ["x"]}}}.get(
            spoilt, {}
        )
        more = {} if spoilt == "no key" else {b"ddbench": json.dumps(said).encode()}
        pq.write_table(table.replace_schema_metadata(more), file)
    with pytest.raises(DataError, match="export it again"):
        read(file)


def test_a_table_that_would_unpack_to_many_times_its_size_is_refused(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    even = replace(some(0, count=300), images=torch.zeros(300, 3, 8, 8))
    out, _ = exported(tmp_path, "datasets", distilled(even))
    assert torch.equal(read(out).sets[0].images, even.images)
    monkeypatch.setattr(parquet, "LARGEST", 1000)
    with pytest.raises(DataError, match=r"unpacks to .* MB"):
        read(out)


def test_without_pyarrow_a_table_says_what_is_missing(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    out, _ = exported(tmp_path, "datasets", distilled(some(0)))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"needs the package pyarrow; pip install 'ddbench\[hf\]'"):
        read(out)


@pytest.mark.parametrize("kind", ["hard", "soft", "logit"])
def test_shards_hold_pictures_with_their_labels_and_come_back(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(exporter, "SHARD", 4)
    made = distilled(some(0, kind))
    out, notes = exported(tmp_path, "webdataset", made)
    assert "clipped" in notes
    assert [p.name for p in sorted(out.iterdir())] == ["classes.json", "train-000000.tar", "train-000001.tar"]
    labels = made.curriculum.sets[0].labels
    pixels = STEP.invert(made.curriculum.sets[0].images).clamp(0, 1)
    samples: dict[str, bytes] = {}
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as archive:
            samples |= {m.name: archive.extractfile(m).read() for m in archive.getmembers()}
    suffix = "cls" if kind == "hard" else "json"
    assert list(samples) == [f"{i:06d}.{end}" for i in range(6) for end in ("png", suffix)]
    for i, (row, image) in enumerate(zip(labels, pixels, strict=True)):
        told = json.loads(samples[f"{i:06d}.{suffix}"])
        assert told == int(row.argmax()) if kind == "hard" else torch.equal(torch.tensor(told), row)
        shown = np.asarray(Image.open(io.BytesIO(samples[f"{i:06d}.png"])))
        assert np.abs(shown / 255 - image.permute(1, 2, 0).numpy()).max() <= 0.5 / 255 + 1e-6
    (after,) = read(out, labels=kind if kind == "logit" else "auto", names=CLASSES).sets
    assert torch.equal(after.labels, labels)
    assert (after.images - pixels).abs().max() <= 0.51 / 255
    assert read(out, labels=kind if kind == "logit" else "auto").unit
    turned = read(out, labels=kind if kind == "logit" else "auto", names=CLASSES[::-1]).sets[0]
    assert torch.equal(turned.labels, labels.flip(1))
    assert len(read(out / "train-000001.tar", labels=kind if kind == "logit" else "auto", classes=3).sets[0]) == 2


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # its own
def test_the_package_webdataset_reads_the_shards(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    made = distilled(some(0))
    out, _ = exported(tmp_path, "webdataset", made)
    found = list(webdataset.WebDataset(str(out / "train-000000.tar"), shardshuffle=False).decode("torchrgb"))
    assert [sample["cls"] for sample in found] == made.curriculum.sets[0].labels.argmax(1).tolist()
    assert all(sample["png"].shape == (3, 8, 8) for sample in found)


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ({"0.cls": b"0"}, "has a sample '0' of cls"),
        ({"0.png": b"x"}, "has a sample '0' of png"),
        ({"0.png": b"x", "0.cls": b"0", "0.json": b"[1]"}, "has a sample '0' of cls, json, png"),
        ({"0.png": b"x", "0.cls": b"cat"}, "neither a number"),
        ({"0.png": b"x", "0.json": b'["a"]'}, "neither a number"),
        ({"0.png": b"x", "0.cls": b"0", "1.png": b"x", "1.json": b"[1, 0]"}, "several kinds"),
        ({"0.png": b"x", "0.cls": b"0"}, "0.png is in none of the formats"),
        ({}, "holds no files"),
    ],
)
def test_shards_without_pictures_or_labels_are_refused(tmp_path, members, why):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    with pytest.raises(DataError, match=why):
        read(tmp_path / "a.tar")


def test_damaged_shards_and_links_in_them_are_refused(tmp_path):
    out, _ = exported(tmp_path, "webdataset", distilled(some(0)))
    whole = (out / "train-000000.tar").read_bytes()
    (out / "train-000000.tar").write_bytes(whole[: len(whole) // 8])
    with pytest.raises(DataError, match=r"damaged|cut short|has a sample"):
        read(out)
    with tarfile.open(out / "train-000000.tar", "w") as archive:
        member = tarfile.TarInfo("0.png")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(DataError, match=r"'0\.png', which is not a plain file"):
        read(out)


@pytest.mark.parametrize("form", FORMS)
def test_packed_images_are_exported_as_students_see_them(tmp_path, form):
    packed = replace(some(0), decoder=Decoder(2))
    out, notes = exported(tmp_path, form, distilled(packed))
    assert "decoded" in notes
    if form == "pt":
        (after,) = read(out).sets
        shown: Tensor = packed.examples().images
        assert torch.equal(after.images, shown)
        assert torch.equal(after.labels, packed.examples().labels)


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_overwritten(tmp_path, form):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        export(distilled(some(0)), form, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_an_unknown_format_and_a_folder_that_cannot_be_made_are_refused(tmp_path):
    with pytest.raises(UsageError, match="none of pt, npz"):
        export(distilled(some(0)), "gif", tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write"):
        export(distilled(some(0)), "pt", tmp_path / "file" / "out")


def test_a_failed_export_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(DataError, match="No space left"):
        export(distilled(some(0)), "pt", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------- folders read back always


AWKWARD = [
    ("cat", "dog", "owl"),
    ("a", "A", "b"),
    ("10", "2", "0"),
    ("+", "-", "x"),
    ("c", "c++", "c#"),
    ("red, green", 'the "best"', " spaced "),
    ("é" * 100, "é" * 100 + "x", "."),
    ("0000_a", "0001_b", "0"),
]


@pytest.mark.parametrize("classes", AWKWARD)
@pytest.mark.parametrize("kind", ["hard", "soft", "logit", "real"])
@pytest.mark.parametrize("copied", ["whole", "without empty folders", "whole, of 0.1", "without empty folders, of 0.1"])
def test_an_exported_folder_reads_back_whichever_classes_have_a_picture(tmp_path, classes, kind, copied):
    made = replace(distilled(some(0, kind, count=6)), classes=classes)
    if kind != "hard":  # nobody's largest label is the first or the last class
        one = made.curriculum.sets[0]
        labels = one.labels.sort(1).values[:, [0, 2, 1]]
        made = replace(made, curriculum=Curriculum((replace(one, labels=labels),), ((0,),)))
    out, notes = exported(tmp_path, "folder", made)
    if "0.1" in copied:
        as_before(out)
    empty = [p for p in out.iterdir() if p.is_dir() and not [*p.iterdir()]]
    assert len(empty) == (0 if kind == "hard" else 2)
    for folder in empty if "without" in copied else ():
        folder.rmdir()
    meant = "auto" if kind == "hard" or f"--labels {kind}" not in notes else kind
    (after,) = read(out, names=classes, labels=meant).sets
    numbers = [int(p.stem) for f in natural(out.iterdir()) if f.is_dir() for p in sorted(f.iterdir())]
    assert torch.equal(after.labels, made.curriculum.sets[0].labels[numbers])
    assert after.label_kind == made.curriculum.sets[0].label_kind
    alone = read(out, labels=meant).sets[0]
    assert alone.labels.shape == after.labels.shape


def as_before(out: Path) -> None:
    """The folder as ddbench 0.1 wrote it: numbers before the names, and no table of them."""
    rows = json.loads((out / "classes.json").read_text())
    for row in rows:
        (out / row["folder"]).rename(out / f"{row['index']} once")
    for row in rows:
        (out / f"{row['index']} once").rename(out / folder_name(row["index"], row["name"]))
    (out / "classes.json").unlink()


def test_without_labels_beside_them_empty_folders_are_refused(tmp_path):
    out, _ = exported(tmp_path, "folder", distilled(some(0)))
    as_before(out)
    (out / "0003_new").mkdir()
    with pytest.raises(DataError, match=r"has folders without pictures \(0003_new\); remove them, or fill them"):
        read(out)


@pytest.mark.parametrize("head", ["", "file,a\n", "\0", '"' + "x" * 200_000, "file,a,b,c,d\n"])
def test_a_table_that_names_other_classes_does_not_fill_folders_in(tmp_path, head):
    out, _ = exported(tmp_path, "folder", distilled(some(0, "soft")))
    as_before(out)
    for folder in out.iterdir():
        if folder.name.startswith("0002"):
            shutil.rmtree(folder)
    (out / "labels.csv").write_text(head)
    with pytest.raises(DataError):
        read(out, names=CLASSES)


# ---------------------------------------------------------------------------------- the order of ImageFolder


def photos(root: Path, classes: tuple[str, ...]) -> Path:
    """A user's own folder: a picture of each class."""
    for name in classes:
        (root / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(root / name / "a.png")
    return root


@pytest.mark.parametrize(
    "classes",
    [("1", "2", "10"), ("b", "A", "a"), ("red fox", "c++", "c#"), (".net", "net", "__MACOSX"), ("Ö", "é", "z")],
)
def test_image_folder_numbers_an_exported_set_as_the_users_own_folders(tmp_path, classes):
    from torchvision.datasets import ImageFolder

    made = replace(distilled(some(0)), classes=classes)
    out, _ = exported(tmp_path, "folder", made)
    own, theirs = ImageFolder(photos(tmp_path / "own", classes)), ImageFolder(out)
    assert theirs.class_to_idx == own.class_to_idx
    shown = sorted(theirs.samples, key=lambda sample: Path(sample[0]).name)
    assert [classes.index(theirs.classes[label]) for _, label in shown] == [0, 1, 2, 0, 1, 2]
    rows = json.loads((out / "classes.json").read_text(encoding="utf-8"))
    assert rows == [{"index": i, "name": name, "folder": name} for i, name in enumerate(classes)]
    back = read(out, names=classes).sets[0]
    assert sorted(back.labels.argmax(1).tolist()) == [0, 0, 1, 1, 2, 2]


def test_soft_labels_are_brought_to_the_order_of_image_folder_by_the_table(tmp_path):
    from torchvision.datasets import ImageFolder

    classes = ("2", "10", "9")
    made = replace(distilled(some(0, "soft", count=12)), classes=classes)
    out, _ = exported(tmp_path, "folder", made)
    found = ImageFolder(out, allow_empty=True)
    place = {row["folder"]: row["index"] for row in json.loads((out / "classes.json").read_text())}
    soft = np.load(out / "labels.npy")[:, [place[name] for name in found.classes]]
    assert all(soft[int(Path(path).stem)].argmax() == label for path, label in found.samples)


@pytest.mark.parametrize("classes", [("a/b", "a\\b", "c"), ("labels.npy", "x", "y"), ("Classes.json", "x", "y")])
def test_names_that_are_one_name_of_a_folder_are_numbered_and_said(tmp_path, classes):
    made = replace(distilled(some(0, "soft", count=9)), classes=classes)
    out, notes = exported(tmp_path, "folder", made)
    assert "have numbers before them" in notes
    folders = [folder_name(i, name) for i, name in enumerate(classes)]
    assert sorted(p.name for p in out.iterdir() if p.is_dir()) == folders
    rows = json.loads((out / "classes.json").read_text())
    assert [row["folder"] for row in rows] == folders
    back = read(out, names=classes).sets[0]
    numbers = [int(p.stem) for f in folders for p in sorted((out / f).iterdir())]
    assert torch.equal(back.labels, made.curriculum.sets[0].labels[numbers])


def test_a_file_system_without_case_gets_numbers(tmp_path, monkeypatch):
    made = replace(distilled(some(0)), classes=("a", "A", "b"))
    mkdir = Path.mkdir
    monkeypatch.setattr(
        Path,
        "mkdir",
        lambda path, *a, **k: (
            mkdir(path.with_name(path.name.lower()), *a, **k) if len(path.name) == 1 else mkdir(path, *a, **k)
        ),
    )
    out, notes = exported(tmp_path, "folder", made)
    assert "have numbers before them" in notes
    assert len(read(out, names=("a", "A", "b")).sets[0]) == 6


def test_a_table_of_classes_is_believed_only_where_it_fits_the_folders(tmp_path):
    out, _ = exported(tmp_path, "folder", distilled(some(0)))
    table, rows = out / "classes.json", json.loads((out / "classes.json").read_text())
    for spoilt, why in (
        ("{", "is not JSON"),
        (json.dumps(rows[1:]), "an index from 0 to 1"),
        (json.dumps([rows[0], rows[1] | {"name": "cat"}, rows[2]]), "a name and folder of its own"),
        (json.dumps(rows[:2]), "does not name"),
    ):
        table.write_text(spoilt)
        with pytest.raises(DataError, match=why):
            read(out)
    table.write_text('["cat", "dog"]')  # another tool's
    assert read(out, names=CLASSES).sets[0].labels.argmax(1).tolist() == [0, 0, 1, 1, 2, 2]


def test_safe_names_are_read_back_without_the_table(tmp_path):
    out, _ = exported(tmp_path, "folder", distilled(some(0)))
    (out / "classes.json").unlink()
    assert read(out, names=CLASSES).sets[0].labels.argmax(1).tolist() == [0, 0, 1, 1, 2, 2]
