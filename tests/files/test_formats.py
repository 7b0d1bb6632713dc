"""Other people's sets: every format as its scripts write it, and a sentence for each thing that may be wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign import pair
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from refusals import refused
from torch import Tensor

from ddbench.errors import DataError, DDBenchError, UsageError
from ddbench.files.foreign import Foreign
from ddbench.files.formats import read

SHAPE, K = (3, 8, 8), 4


def images(n: int, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


def rows(n: int, seed: int = 1) -> Tensor:
    return torch.randn(n, K, generator=torch.Generator().manual_seed(seed))


HARD = torch.arange(K).repeat_interleave(2)


def refusal(path: Path, kind: type[DDBenchError] = DataError, **how: Any) -> str:
    return refused(lambda: read(path, **how), kind)


def check(found: Foreign, x: Tensor, y: Tensor) -> None:
    (only,) = found.sets
    assert torch.equal(only.images, x)
    assert torch.equal(only.labels, y)
    assert found.files
    assert all(len(value) == 64 for value in found.files.values())
    assert all(note[0].isupper() and note.endswith(".") for note in found.notes)


# ---------------------------------------------------------------------------------- MTT, TESLA, FTD, DATM


def test_a_folder_of_mtt_is_read_with_its_learned_lr(tmp_path):
    found = read(pair(tmp_path, images(8), HARD, 0.02))
    check(found, images(8), torch.eye(K)[HARD])
    assert found.format == "mtt"
    assert found.sets[0].lr == pytest.approx(0.02)
    assert found.sets[0].label_type == "hard"
    assert found.phases == ((0,),)


def test_each_file_of_a_pair_leads_to_the_set(tmp_path):
    pair(tmp_path, images(8), HARD, 0.02)
    for name in ("images_best.pt", "labels_best.pt"):
        check(read(tmp_path / name), images(8), torch.eye(K)[HARD])


def test_without_a_learned_lr_there_is_none(tmp_path):
    assert read(pair(tmp_path, images(8), HARD)).sets[0].lr is None


def test_the_best_is_read_and_without_one_the_latest(tmp_path):
    for step in (0, 900, 1000):
        pair(tmp_path, images(8, step), HARD, number=step)
    check(read(tmp_path), images(8, 1000), torch.eye(K)[HARD])
    pair(tmp_path, images(8, 5), HARD)
    check(read(tmp_path), images(8, 5), torch.eye(K)[HARD])


def test_soft_labels_of_datm_are_logits_and_probabilities_are_recognised(tmp_path):
    logits = rows(8)
    found = read(pair(tmp_path / "a", images(8), logits))
    check(found, images(8), logits)
    assert (found.sets[0].label_kind, found.sets[0].label_type) == ("logit", "learned")
    found = read(pair(tmp_path / "b", images(8), logits.softmax(1)))
    assert (found.sets[0].label_kind, found.sets[0].label_type) == ("probability", "soft")
    found = read(pair(tmp_path / "c", images(8), torch.eye(K)[HARD]))
    assert (found.sets[0].label_kind, found.sets[0].label_type) == ("probability", "hard")


def test_what_soft_labels_mean_can_be_stated(tmp_path):
    folder = pair(tmp_path, images(8), rows(8))
    assert read(folder, labels="real").sets[0].label_kind == "real"
    hard = read(folder, labels="hard").sets[0]
    assert torch.equal(hard.labels, torch.eye(K)[rows(8).argmax(1)])
    assert "sum to" in refusal(folder, labels="probability")
    numbers = pair(tmp_path / "hard", images(8), HARD)
    assert "class number" in refusal(numbers, UsageError, labels="logit")


# ---------------------------------------------------------------------------------- PDD


def stages(folder: Path, count: int = 3, names: str = "interval_{}") -> tuple[Path, list[Tensor]]:
    parts = [images(K, j) for j in range(count)]
    for j in range(count):
        y = torch.arange(K).repeat(j + 1)
        pair(folder / names.format(j + 1), torch.cat(parts[: j + 1]), y, 0.01 * (j + 1))
    return folder, parts


def test_growing_unions_of_pdd_become_disjoint_sets_learned_in_growing_phases(tmp_path):
    folder, parts = stages(tmp_path)
    found = read(folder)
    assert [torch.equal(s.images, p) for s, p in zip(found.sets, parts, strict=True)] == [True] * 3
    assert found.phases == ((0,), (0, 1), (0, 1, 2))
    assert [s.lr for s in found.sets] == pytest.approx([0.01, 0.02, 0.03])
    assert all(torch.equal(s.labels, torch.eye(K)) for s in found.sets)


def test_stages_are_in_the_order_of_their_numbers(tmp_path):
    folder, parts = stages(tmp_path, 11)
    assert torch.equal(read(folder).sets[10].images, parts[10])


def test_stages_that_do_not_continue_each_other_are_no_stages(tmp_path):
    folder, _ = stages(tmp_path)
    pair(folder / "interval_2", images(2 * K, 9), torch.arange(K).repeat(2))
    assert "stage 2 (interval_2) does not begin with the 4 images" in refusal(folder)
    pair(folder / "interval_2", images(K, 0), torch.arange(K))
    assert "no more than the 4" in refusal(folder)
    pair(folder / "interval_2", images(2 * K, 0, (3, 4, 4)), torch.arange(K).repeat(2))
    assert "import one stage" in refusal(folder)
    (folder / "interval_2" / "labels_best.pt").unlink()
    assert "lack" in refusal(folder)


# ---------------------------------------------------------------------------------- DC, DSA, DM


def results(path: Path, experiments: int = 2) -> Path:
    """As DC's main.py writes them: NumPy scalars among the accuracies."""
    data = [[images(8, e), HARD] for e in range(experiments)]
    accs = {"ConvNet": [np.float64(0.31), np.float64(0.32)], "n": np.int64(2)}
    torch.save({"data": data, "accs_all_exps": accs}, path)
    return path


def test_results_of_dc_are_read_with_the_experiment_chosen(tmp_path):
    path = results(tmp_path / "res_DC_CIFAR10_ConvNet_1ipc.pt")
    check(read(path), images(8, 0), torch.eye(K)[HARD])
    check(read(path, experiment=1), images(8, 1), torch.eye(K)[HARD])
    assert "experiment 0 of 2" in " ".join(read(path).notes)
    assert "0 to 1" in refusal(path, UsageError, experiment=2)
    check(read(tmp_path), images(8, 0), torch.eye(K)[HARD])
    results(tmp_path / "res_DM_x.pt")
    assert "2 sets" in refusal(tmp_path, UsageError)


# ---------------------------------------------------------------------------------- npz


@pytest.mark.parametrize("last", [False, True])
def test_arrays_of_frepo_have_real_labels_and_perhaps_channels_last(tmp_path, last):
    x, y = images(8), torch.eye(K)[HARD] - 1 / K
    np.savez(tmp_path / "a.npz", x_proto=x.permute(0, 2, 3, 1).numpy() if last else x.numpy(), y_proto=y.numpy())
    found = read(tmp_path / "a.npz")
    check(found, x, y)
    assert found.sets[0].label_kind == "real"


def test_arrays_that_leave_a_choice_need_telling_names(tmp_path):
    x = images(8).numpy()
    np.savez(tmp_path / "a.npz", first=x, second=x, labels=HARD.numpy())
    assert "2 arrays that may be images" in refusal(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", images=x, other=x, labels=HARD.numpy(), step=np.arange(8), lr=np.float32(0.5))
    assert read(tmp_path / "b.npz").sets[0].lr == 0.5
    np.savez(tmp_path / "c.npz", images=x)
    assert "0 arrays that may be labels" in refusal(tmp_path / "c.npz")


# ---------------------------------------------------------------------------------- folders of pictures


def pictures(folder: Path, names: list[str], count: int = 2, size: tuple[int, ...] = (8, 8, 3)) -> Path:
    for level, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(np.full(size, level, np.uint8)).save(folder / name / f"{i}.png")
    return folder


def level_of(found: Foreign) -> dict[int, int]:
    """Label -> grey level of the pictures that have it."""
    s = found.sets[0]
    return {int(y.argmax()): round(float(x.mean()) * 255) for x, y in zip(s.images, s.labels, strict=True)}


def test_numbered_folders_are_labels_although_10_sorts_before_2(tmp_path):
    found = read(pictures(tmp_path, [str(i) for i in range(12)]))
    assert level_of(found) == {i: i for i in range(12)}
    assert found.unit
    assert found.classes is None


def test_folders_with_numbers_and_names_are_ordered_by_number(tmp_path):
    found = read(pictures(tmp_path, ["10_horse", "2_cat", "0_ant"]))
    assert level_of(found) == {0: 2, 1: 1, 2: 0}
    assert found.classes == ("ant", "cat", "horse")


def test_names_of_classes_are_kept_for_the_dataset_to_order(tmp_path):
    found = read(pictures(tmp_path, ["zebra", "ant"]))
    assert found.classes == ("ant", "zebra")
    assert level_of(found) == {0: 1, 1: 0}


def test_folders_without_pictures_and_pictures_of_two_sizes_are_refused(tmp_path):
    folder = pictures(tmp_path, ["0", "1"])
    (folder / "2").mkdir()
    assert "without pictures (2)" in refusal(folder)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(folder / "2" / "x.png")
    assert "4x4 pixels" in refusal(folder)


# ---------------------------------------------------------------------------------- what may be wrong


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        (images(8), HARD[:5], "8 images, but 5 labels"),
        (images(8), HARD.view(2, 2, 2), "should be (n,) or (n, k)"),
        (images(8), HARD + 0.5, "no whole numbers"),
        (images(8), HARD - 1, "from -1 to 2"),
        (images(8), HARD * float("nan"), "not finite"),
        (images(8), rows(8) * float("nan"), "not finite"),
        (images(8) / 0, HARD, "not finite in 8 of 8"),
        (images(8)[0], HARD, "float32 (3, 8, 8)"),
        (images(0), HARD[:0], "(0, 3, 8, 8)"),
        (images(8).to(torch.complex64), HARD, "ComplexFloat"),
        (images(8), [1, 2], "list"),
        ("text", HARD, "str"),
    ],
)
def test_images_and_labels_that_do_not_fit_are_refused(tmp_path, x, y, said):
    assert said in refusal(pair(tmp_path, x, y))


def test_labels_beyond_the_classes_of_the_dataset_are_refused(tmp_path):
    assert "there are 3 classes, 0 to 2" in refusal(pair(tmp_path / "a", images(8), HARD), classes=3)
    assert "over 4 classes, but the dataset has 5" in refusal(pair(tmp_path / "b", images(8), rows(8)), classes=5)


@pytest.mark.parametrize("lr", [0.0, -1.0, float("nan"), [0.1, 0.2]])
def test_a_student_lr_that_is_none_is_refused(tmp_path, lr):
    assert "one positive student lr" in refusal(pair(tmp_path, images(8), HARD, lr))


def test_sets_that_are_not_balanced_are_read_with_a_note(tmp_path):
    found = read(pair(tmp_path, images(3), torch.tensor([0, 0, 3])))
    assert any("0 to 2 per class, which is not balanced" in note for note in found.notes)


def test_half_precision_and_8_bit_pixels_are_converted_with_a_note(tmp_path):
    found = read(pair(tmp_path / "a", images(8).half(), HARD))
    assert torch.equal(found.sets[0].images, images(8).half().float())
    assert any("float16" in note for note in found.notes)
    found = read(pair(tmp_path / "b", torch.full((8, *SHAPE), 51, dtype=torch.uint8), HARD))
    assert float(found.sets[0].images[0, 0, 0, 0]) == pytest.approx(0.2)


def test_what_is_missing_is_named(tmp_path):
    assert "does not exist" in refusal(tmp_path / "none")
    assert "holds no set" in refusal(tmp_path)
    torch.save(images(2), tmp_path / "images_best.pt")
    assert "images_best.pt without its partner" in refusal(tmp_path)
    assert "labels_best.pt is not there" in refusal(tmp_path / "images_best.pt")
    (tmp_path / "images_best.pt").write_bytes(b"")
    assert "is empty" in refusal(tmp_path / "images_best.pt")
    (tmp_path / "x.txt").write_text("no set")
    assert "no format that is read here" in refusal(tmp_path / "x.txt")


def test_experts_are_told_from_sets(tmp_path):
    torch.save([[[torch.zeros(2)]]], tmp_path / "replay_buffer_0.pt")
    assert "--experts" in refusal(tmp_path / "replay_buffer_0.pt", UsageError)


shapes = st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 5), st.integers(1, 5))


@given(shape=shapes, k=st.integers(2, 5), kind=st.sampled_from(["hard", "logit"]), seed=st.integers(0, 99))
@settings(max_examples=40)
def test_any_set_comes_back_as_it_was_saved(tmp_path_factory, shape, k, kind, seed):
    folder = tmp_path_factory.mktemp("set")
    x = images(shape[0], seed, shape[1:])
    y = torch.randint(k, (len(x),)) if kind == "hard" else torch.randn(len(x), k) + 5
    found = read(pair(folder, x, y), classes=k)
    check(found, x, torch.eye(k)[y] if kind == "hard" else y)


@given(data=st.data())
@settings(max_examples=60)
def test_a_damaged_set_is_read_or_refused_and_nothing_else(tmp_path_factory, data):
    folder = pair(tmp_path_factory.mktemp("set"), images(2), torch.tensor([0, 1]), 0.1)
    np.savez(folder / "a.npz", images=images(2).numpy(), labels=np.eye(2))
    path = folder / data.draw(st.sampled_from(["images_best.pt", "labels_best.pt", "syn_lr_best.pt", "a.npz"]))
    whole = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        whole = whole[: data.draw(st.integers(0, len(whole)))]
    for at in data.draw(st.lists(st.integers(0, max(0, len(whole) - 1)), max_size=3)) if whole else []:
        whole[at] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(whole)
    for target in (folder, path):
        try:
            read(target)
        except DDBenchError:
            continue
