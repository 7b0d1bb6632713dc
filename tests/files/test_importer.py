"""Foreign sets that describe themselves afterwards, and MTT's experts in the place of trained ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from ddbench_networks import ConvNet
from foreign import pair
from PIL import Image
from tiny import run, spec

from ddbench import Experts, Network, Recipe, Seed, Starts
from ddbench.base.cache import Cache, home
from ddbench.cli.files import export, import_
from ddbench.data.dataset import Dataset
from ddbench.data.preprocessing import Preprocessing
from ddbench.errors import DataError, DDBenchError, UsageError
from ddbench.files.importer import adopt, import_experts
from ddbench.files.pixelspace import applied, unit
from ddbench.grade.distilled import Distilled
from ddbench.grade.protocol import Protocol
from ddbench.plugins import registry
from ddbench.train.fit import Student, fit

NETWORK = ConvNet(width=8)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return registry().get("dataset", "digits").cls().load()


@pytest.fixture(scope="module")
def zca() -> Preprocessing:
    return registry().get("dataset", "digits").cls(zca=True).load().train.preprocessing


def real(digits: Dataset, step: Preprocessing) -> tuple[torch.Tensor, torch.Tensor]:
    """Two images of each class in some space, with their classes."""
    index = torch.cat([members[:2] for members in digits.train.members])
    return applied(digits.train.pixels[index].float() / 255, step), digits.train.targets[index]


def taken(path: Path, digits: Dataset, zca: Preprocessing | None = None, **how: Any) -> tuple[Distilled, str]:
    made, notes = adopt(path, digits, (lambda: zca) if zca else None, NETWORK, Protocol(), **how)
    assert all(note.endswith(".") for note in notes)
    return made, " ".join(notes)


@pytest.mark.parametrize("space", ["dataset", "zca"])
def test_pixels_are_kept_to_the_bit_with_the_step_that_belongs_to_them(tmp_path, digits, zca, space):
    step = zca if space == "zca" else digits.train.preprocessing
    x, y = real(digits, step)
    made, notes = taken(pair(tmp_path, x, y, 0.02), digits, zca)
    assert torch.equal(made.curriculum.sets[0].images, x)
    assert made.preprocessing.digest == step.digest
    assert f"in {space!r} space (found)" in notes
    assert made.about["source"]["pixels"] == space
    assert made.about["spec"] is None
    assert made.about["selection"] == "unknown"


def test_pixels_between_0_and_1_become_input_of_the_dataset(tmp_path, digits):
    x, y = real(digits, unit(1))
    made, notes = taken(pair(tmp_path, x, y), digits)
    assert torch.allclose(made.curriculum.sets[0].images, applied(x, digits.train.preprocessing))
    assert made.preprocessing.digest == digits.train.preprocessing.digest
    assert "put through the preprocessing of 'digits'" in notes


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.uint8, torch.int64])
def test_bytes_become_input_of_the_dataset_whatever_type_they_have(tmp_path, digits, kind):
    index = torch.cat([members[:2] for members in digits.train.members])
    made, _ = taken(pair(tmp_path, digits.train.pixels[index].to(kind), digits.train.targets[index]), digits)
    expected = digits.train.preprocessing(digits.train.pixels[index])
    assert torch.allclose(made.curriculum.sets[0].images, expected, atol=1e-5)
    assert made.preprocessing.digest == digits.train.preprocessing.digest


def test_pixels_between_minus_one_and_one_are_kept_with_their_step(tmp_path, digits):
    x, y = real(digits, unit(1))
    made, notes = taken(pair(tmp_path, x * 2 - 1, y), digits)
    assert torch.equal(made.curriculum.sets[0].images, x * 2 - 1)
    assert float(made.preprocessing.mean) == 0.5
    assert float(made.preprocessing.std) == 0.5
    assert "in 'symmetric' space (found)" in notes


@pytest.mark.parametrize("change", [lambda x: x * 4095, lambda x: x * 16 + 3, lambda x: x / 255])
def test_pixels_that_are_unlike_images_in_every_space_are_refused_until_they_are_stated(tmp_path, digits, change):
    x, y = real(digits, unit(1))
    pair(tmp_path, change(x), y)
    with pytest.raises(UsageError, match=r"unlike real images in every space.*state what they passed: --pixels unit\|"):
        taken(tmp_path, digits)
    assert taken(tmp_path, digits, pixels="0/0.1")[0].about["source"]["pixels"] == "0/0.1"


BYTES = [lambda x: x.round(), lambda x: (x * 15).round(), lambda x: (x > 0.5).float(), torch.zeros_like]


def laid_out(root: Path, form: str, levels: torch.Tensor, y: torch.Tensor) -> Path:
    """Bytes as an array with labels, or as pictures in folders of classes."""
    if form == "npz":
        np.savez(root / "set.npz", images=levels.byte().numpy(), labels=y.numpy())
        return root / "set.npz"
    if form == "pt":
        return pair(root, levels.byte(), y)
    for i, (level, label) in enumerate(zip(levels.byte().numpy(), y.tolist(), strict=True)):
        (root / "set" / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(level[0]).save(root / "set" / str(label) / f"{i}.png")
    return root / "set"


@pytest.mark.parametrize("form", ["npz", "pt", "folder"])
@pytest.mark.parametrize("change", BYTES)
def test_bytes_that_are_unlike_images_are_refused_until_they_are_said_to_be_meant(tmp_path, digits, form, change):
    x, y = real(digits, unit(1))
    path = laid_out(tmp_path, form, change(x), y)
    with pytest.raises(UsageError, match=r"8 bits, from 0 to \d+ of 0 to 255, and are unlike .*say --pixels unit"):
        taken(path, digits)
    made, notes = taken(path, digits, pixels="unit")
    assert made.about["source"]["pixels"] == "unit"
    assert "Warning: the pixels are unlike real images, in 'unit' space as in all others" in notes


@pytest.mark.parametrize("form", ["npz", "pt", "folder"])
def test_bytes_that_are_stated_to_be_bytes_are_divided_once(tmp_path, digits, form):
    x, y = real(digits, unit(1))
    path = laid_out(tmp_path, form, x * 255, y)
    found, stated = (taken(path, digits, pixels=pixels) for pixels in ("auto", "bytes"))
    assert torch.equal(found[0].curriculum.sets[0].images, stated[0].curriculum.sets[0].images)
    assert "Warning" not in found[1] + stated[1]


def test_a_stated_space_is_obeyed_and_doubted(tmp_path, digits):
    x, y = real(digits, unit(1))
    made, notes = taken(pair(tmp_path, x, y), digits, pixels="dataset")
    assert torch.equal(made.curriculum.sets[0].images, x)
    assert "Warning: the pixels were stated" in notes
    made, _ = taken(tmp_path, digits, pixels=".25/.5")
    assert float(made.preprocessing.mean) == 0.25


def test_the_file_comes_back_and_its_students_learn_as_the_protocol_says(tmp_path, digits):
    x, y = real(digits, digits.train.preprocessing)
    made, _ = taken(pair(tmp_path, x, y, 0.02), digits)
    made.save(tmp_path / "set.safetensors")
    back = Distilled.load(tmp_path / "set.safetensors")
    assert back.about == made.about
    assert torch.equal(back.curriculum.sets[0].images, x)
    assert back.curriculum.sets[0].lr == pytest.approx(0.02)
    assert back.teaching.steps == 1000
    assert back.teaching.recipe.augment == digits.augment
    assert back.classes == digits.classes


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (torch.zeros(10, 3, 8, 8), "3 channels"),
        (torch.zeros(10, 1, 16, 16), "dataset.size=16"),
    ],
)
def test_images_of_another_shape_are_refused(tmp_path, digits, x, said):
    with pytest.raises(DataError, match=said):
        taken(pair(tmp_path, x, torch.arange(10)), digits)


def test_another_number_of_classes_is_refused(tmp_path, digits):
    with pytest.raises(DataError, match="10 classes"):
        taken(pair(tmp_path, torch.zeros(11, 1, 8, 8), torch.arange(11)), digits)


def pictures(folder: Path, names: list[str]) -> Path:
    for level, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        Image.fromarray(np.full((8, 8), 20 * level, np.uint8)).save(folder / name / "a.png")
    return folder


def test_folders_are_put_into_the_order_of_the_dataset(tmp_path, digits):
    names = ["Red Fox", "ant", "bee", "cat", "dog", "eel", "fly", "gnu", "hen", "ibis"]
    animals = replace(digits, classes=tuple(reversed(names)))
    folder = pictures(tmp_path, [name.lower().replace(" ", "_") for name in names])
    made, notes = taken(folder, animals)
    s = made.curriculum.sets[0]
    levels = made.preprocessing.invert(s.images).mean((1, 2, 3)) * 255 / 20
    assert [animals.classes[int(i)] for i in s.labels.argmax(1)] == [names[round(float(v))] for v in levels]
    assert "class order" in notes
    with pytest.raises(DataError, match="folders are called ant, bee"):
        taken(folder, digits)


def test_folders_called_by_wnids_follow_the_dataset(tmp_path, digits):
    wnids = [f"n{i:08d}" for i in range(10)]
    folder = pictures(tmp_path, wnids)
    _, notes = taken(folder, digits)
    assert "in their order" in notes
    made, notes = taken(folder, replace(digits, facts={"wnids": wnids[::-1]}))
    s = made.curriculum.sets[0]
    assert [round(float(v)) for v in made.preprocessing.invert(s.images).mean((1, 2, 3)) * 255 / 20] == list(range(10))
    assert s.labels.argmax(1).tolist() == list(range(9, -1, -1))


# ---------------------------------------------------------------------------------- experts


def buffers(folder: Path, network: Network, experts: int = 2, epochs: int = 3, file: int = 0) -> Path:
    """As MTT's buffer.py writes them: parameters in the order of the module."""
    folder.mkdir(parents=True, exist_ok=True)
    trajectories = []
    for i in range(experts):
        vectors = [network.init(Seed(10 * file + i) / e) for e in range(epochs + 1)]
        trajectories.append([[p.clone() for p in network.layers(v).values()] for v in vectors])
    torch.save(trajectories, folder / f"replay_buffer_{file}.pt")
    return folder


def problem(digits: Dataset, network: Network, imported: str, starts: dict[str, Any] | None = None) -> Experts:
    begun = Starts(network, Seed(0) / "start", None, Cache(home()), **(starts or {}))  # type: ignore[arg-type]
    return Experts(begun, digits.train, Recipe(epochs=1, imported=imported))


@pytest.fixture
def network(digits) -> Network:
    return Network(NETWORK, digits.train.shape, 10)


def test_imported_trajectories_are_the_experts(tmp_path, digits, network):
    buffers(buffers(tmp_path, network), network, file=10)
    buffers(tmp_path, network, file=2)
    name = import_experts([tmp_path], network, Cache(home()))
    experts = problem(digits, network, name)
    experts.build(6, (0, 3))
    for index, seed in enumerate((0, 1, 20, 21, 100, 101)):
        for epoch in range(4):
            assert torch.equal(experts.snapshot(index, epoch), network.init(Seed(seed) / epoch))
    assert import_experts([tmp_path], network, Cache(home())) == name


def test_too_few_experts_or_epochs_are_refused_with_the_numbers(tmp_path, digits, network):
    name = import_experts([buffers(tmp_path, network)], network, Cache(home()))
    for count, epochs in ((3, 3), (2, 4)):
        with pytest.raises(DataError, match=f"{count} experts of {epochs} epochs are needed, but {name} holds 2 of 3"):
            problem(digits, network, name).build(count, (0, epochs))


def test_experts_of_another_network_are_refused_with_the_shape(tmp_path, digits, network):
    wide = Network(ConvNet(width=9), network.shape, 10)
    with pytest.raises(DataError, match=r"epoch 0 has \(8, 1, 3, 3\) where the network's .*weight has \(9, 1, 3, 3\)"):
        import_experts([buffers(tmp_path, network)], wide, Cache(home()))
    deep = Network(ConvNet(width=8, depth=3), network.shape, 10)
    with pytest.raises(DataError, match=r"network\.depth"):
        import_experts([tmp_path], deep, Cache(home()))
    name = import_experts([tmp_path], network, Cache(home()))
    with pytest.raises(DataError, match="network options"):
        problem(digits, wide, name).build(1, (0,))
    with pytest.raises(UsageError, match="batch statistics"):
        import_experts([tmp_path], Network(ConvNet(width=8, norm="batch"), network.shape, 10), Cache(home()))


@pytest.mark.parametrize("name", ["none", "../..", "a/b"])
def test_an_id_that_is_not_there_is_refused(digits, network, name):
    with pytest.raises(DataError, match="no imported experts"):
        problem(digits, network, name).build(1, (0,))


def test_what_is_no_buffer_is_refused(tmp_path, network):
    for value in (torch.zeros(2), [], [[torch.zeros(2)]], [[[torch.zeros(2), "x"]]]):
        torch.save(value, tmp_path / "replay_buffer_0.pt")
        with pytest.raises(DataError):
            import_experts([tmp_path], network, Cache(home()))
    broken = [[[torch.full_like(p, float("nan")) for p in network.layers(network.init(Seed(0))).values()]]]
    torch.save(broken, tmp_path / "replay_buffer_0.pt")
    with pytest.raises(DataError, match="diverged"):
        import_experts([tmp_path], network, Cache(home()))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no replay_buffer"):
        import_experts([tmp_path / "empty"], network, Cache(home()))


def test_an_interrupted_import_is_made_again(tmp_path, network):
    buffers(tmp_path, network)
    broken = buffers(tmp_path / "b", network, file=7) / "replay_buffer_7.pt"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-100])
    paths = [tmp_path / "replay_buffer_0.pt", broken]
    with pytest.raises(DataError):
        import_experts(paths, network, Cache(home()))
    assert not list(home().glob("experts/*/identity.json"))
    broken.write_bytes(whole)
    assert import_experts(paths, network, Cache(home()))


def test_training_knows_nothing_of_imported_experts(digits, network):
    begin = Student(network.init(Seed(0)))
    few = digits.train.subset(torch.arange(30))
    plain = fit(network, begin, few, Recipe(steps=2, augment=""), Seed(0), what=None)
    named = fit(network, begin, few, Recipe(steps=2, augment="", imported="x"), Seed(0), what=None)
    assert torch.equal(plain.vector, named.vector)


def test_a_trajectory_matcher_runs_on_imported_experts_and_later_stages_train_their_own(tmp_path):
    made = spec("tesla", "pdd", ipc=2)
    dataset = made.dataset.load()
    toy = Network(made.network, dataset.train.shape, len(dataset.classes))
    name = import_experts([buffers(tmp_path / "b", toy)], toy, Cache(home()))
    folder = run(tmp_path / "runs", spec("tesla", "pdd", ipc=2, experts__imported=name), dataset)
    assert (folder / "distilled.safetensors").exists()
    others = [f.parent.name for f in home().glob("experts/*/identity.json")]
    assert name in others
    assert len(others) == 2


# ---------------------------------------------------------------------------------- the commands


def command(which: Any, *words: Any) -> tuple[Any, str]:
    answer = CliRunner().invoke(which, [str(w) for w in words], standalone_mode=False)
    if answer.exception is not None:
        if not isinstance(answer.exception, DDBenchError):
            raise answer.exception
        return answer.exception, ""
    return answer.return_value, answer.output


def test_import_and_export_give_the_same_set(tmp_path, digits, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x, y = real(digits, digits.train.preprocessing)
    pair(tmp_path / "mtt-set", x, y, 0.02)
    code, _ = command(import_, "mtt-set", "--dataset", "digits", "-q", "-o", "network.width=8")
    assert code == 0
    made = Distilled.load(tmp_path / "mtt-set.safetensors")
    assert made.about["spec"]["matcher"]["name"] == "imported"
    assert made.about["spec"]["ipc"] == 2
    assert made.network.width == 8
    code, _ = command(export, "mtt-set.safetensors", "--format", "pt", "--to", "again")
    assert code == 0
    for name in ("images_best.pt", "labels_best.pt"):
        first, second = (torch.load(tmp_path / f / name, weights_only=True) for f in ("mtt-set", "again"))
        assert torch.equal(first, second)
    error, _ = command(import_, "mtt-set", "--dataset", "digits", "-q")
    assert isinstance(error, UsageError)
    assert "exists already" in str(error)


def test_packed_images_are_decoded_where_that_is_said(tmp_path, digits, monkeypatch):
    """IDC's files do not tell that a stored image is four."""
    monkeypatch.chdir(tmp_path)
    x, y = real(digits, digits.train.preprocessing)
    torch.save([x, y], tmp_path / "data_best.pt")
    for factor in (1, 2):
        words = ["data_best.pt", "--dataset", "digits", "-q", "-o", f"decoder.factor={factor}", "--to", f"{factor}.st"]
        assert command(import_, *words)[0] == 0
        made = Distilled.load(tmp_path / f"{factor}.st")
        assert len(made.curriculum.frozen_examples) == len(x) * factor**2


def test_what_the_commands_refuse(tmp_path, digits):
    error, _ = command(import_, tmp_path / "a", tmp_path / "b", "--dataset", "digits")
    assert "one set is imported at a time" in str(error)
    error, _ = command(import_, tmp_path / "none", "--dataset", "digits", "--to", tmp_path / "x.safetensors")
    assert isinstance(error, DataError)
    assert not (tmp_path / "x.safetensors").exists()


def test_experts_are_imported_by_the_command(tmp_path, network):
    folder = buffers(tmp_path, network)
    words = ["--experts", "--dataset", "digits", "-q", "-o", "network.width=8"]
    code, _ = command(import_, folder / "replay_buffer_0.pt", *words)
    assert code == 0
    assert [f.parent.name for f in home().glob("experts/*/identity.json")]


def test_where_the_numbers_do_not_decide_the_space_must_be_stated(tmp_path, digits, monkeypatch):
    noise = torch.randn(20, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.8
    folder = pair(tmp_path, noise, torch.arange(20) % 10)
    monkeypatch.setattr("ddbench.files.pixelspace.CLEAR", 100.0)
    with pytest.raises(UsageError, match=r"do not decide which space.*state it: --pixels"):
        taken(folder, digits)
    assert taken(folder, digits, pixels="dataset")[0].about["source"]["pixels"] == "dataset"


def test_an_npz_that_says_which_step_its_pixels_passed_is_believed(tmp_path, digits, zca):
    x, y = real(digits, zca)
    parts = {f"preprocessing_{name}": value.numpy() for name, value in zca.tensors().items()}
    np.savez(tmp_path / "set.npz", images=x.numpy(), labels=torch.eye(10)[y].numpy(), **parts)
    made, notes = taken(tmp_path / "set.npz", digits)
    assert made.preprocessing.digest == zca.digest
    assert "its arrays say so" in notes


def test_hard_labels_that_leave_classes_out_are_refused(tmp_path, digits):
    x, _ = real(digits, digits.train.preprocessing)
    with pytest.raises(DataError, match=r"no image of 5 of the 10 classes.*dataset.classes=A,B"):
        taken(pair(tmp_path, x, torch.arange(len(x)) % 5), digits, pixels="dataset")


def test_pixels_beyond_all_reason_are_refused(tmp_path, digits):
    x, y = real(digits, digits.train.preprocessing)
    with pytest.raises(DataError, match="of the order of 1"):
        taken(pair(tmp_path, x * 1e30, y), digits)
