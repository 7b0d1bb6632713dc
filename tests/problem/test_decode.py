"""Decoders: what a stored image becomes, and that every matcher of pixels can be run with one."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tiny import ddbench, options, run, spec
from torch import Tensor

from ddbench import Curriculum, Problem, SyntheticSet, UsageError
from ddbench.base.options import make
from ddbench.grade.distilled import Distilled
from ddbench.problem.decode import Decoder
from ddbench.run.record import RunRecord
from ddbench.testing import toy_task


def enlarged(cell: np.ndarray, h: int, w: int) -> np.ndarray:
    """Bilinear interpolation between pixel centres, written out: ``(ph, pw)`` to ``(h, w)``."""
    ph, pw = cell.shape
    out = np.empty((h, w))
    for y in range(h):
        for x in range(w):
            row = min(max((y + 0.5) * ph / h - 0.5, 0), ph - 1)
            column = min(max((x + 0.5) * pw / w - 0.5, 0), pw - 1)
            top, left = int(row), int(column)
            below, beside = min(top + 1, ph - 1), min(left + 1, pw - 1)
            a, b = row - top, column - left
            upper = (1 - b) * cell[top, left] + b * cell[top, beside]
            out[y, x] = (1 - a) * upper + a * ((1 - b) * cell[below, left] + b * cell[below, beside])
    return out


@pytest.mark.parametrize(("factor", "h", "w"), [(2, 8, 8), (3, 8, 8), (2, 7, 10), (4, 9, 5)])
def test_each_cell_is_enlarged_to_a_whole_image_row_by_row(factor, h, w):
    images = torch.randn(2, 3, h, w, dtype=torch.float64)
    decoded = Decoder(factor)(images).numpy()
    ph, pw = -(-h // factor), -(-w // factor)
    padded = np.zeros((2, 3, factor * ph, factor * pw))
    padded[:, :, :h, :w] = images.numpy()
    position = 0
    for i in range(2):
        for y in range(factor):
            for x in range(factor):
                for channel in range(3):
                    cell = padded[i, channel, y * ph : (y + 1) * ph, x * pw : (x + 1) * pw]
                    assert np.allclose(decoded[position, channel], enlarged(cell, h, w), atol=1e-12)
                position += 1
    assert len(decoded) == position


def test_a_factor_of_one_is_the_image_itself():
    images = torch.randn(2, 1, 5, 5)
    assert Decoder()(images) is images
    assert Decoder().pack(images) is images
    assert Decoder().copies == 1


@pytest.mark.parametrize("size", [8, 9])
def test_packed_images_come_back_in_their_places(size):
    flat = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 1, size, size)
    stored = Decoder(2).pack(flat)
    assert stored.shape == (2, 1, size, size)
    inner = Decoder(2)(stored)[:, 0, size // 2 - 1, size // 2 - 1]  # away from what padding brings in
    assert torch.allclose(inner, torch.arange(8.0))


def test_packing_averages_blocks_of_pixels():
    image = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    stored = Decoder(2).pack(image)
    blocks = image[2].view(1, 4, 2, 4, 2).mean((2, 4))  # the third image is the cell at the lower left
    assert torch.allclose(stored[0, :, 4:, :4], blocks)


def test_gradients_pass_through_decoding():
    images = torch.randn(2, 1, 6, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(Decoder(2), (images,))


def test_labels_follow_their_images():
    labels = torch.eye(2)
    assert Decoder(2).labels(labels).argmax(1).tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def decoded(problem: Problem, factor: int = 2) -> Problem:
    from dataclasses import replace

    return replace(problem, decoder=Decoder(factor))


def test_a_sample_holds_as_many_real_images_as_will_be_shown(tmp_path):
    plain = toy_task(ipc=8, folder=tmp_path)
    task = decoded(toy_task(ipc=2, folder=tmp_path))
    assert task.shown == 8
    sample = task.sample()
    assert sample.images.shape == (6, 1, 8, 8)
    assert sample.labels.argmax(1).tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.equal(sample.images, Decoder(2).pack(plain.sample().images))


def test_stages_pack_real_images_that_no_earlier_stage_packed(tmp_path):
    from dataclasses import replace

    task = decoded(toy_task(ipc=1, folder=tmp_path))
    first = task.sample()
    done = Curriculum((SyntheticSet(first.images, first.labels, decoder=Decoder(2)),), ((0,),))
    second = replace(task, frozen=done).sample()
    both = decoded(toy_task(ipc=2, folder=tmp_path)).sample().images.view(3, 2, 1, 8, 8)
    assert torch.equal(first.images, both[:, 0])
    assert torch.equal(second.images, both[:, 1])


def test_students_see_decoded_images_and_bytes_count_stored_ones():
    images, labels = torch.randn(2, 1, 8, 8), torch.eye(2)
    made = SyntheticSet(images, labels, decoder=Decoder(2))
    assert len(made) == 2
    assert made.image_bytes == 2 * 64 * 4
    assert made.examples().images.shape == (8, 1, 8, 8)
    assert made.examples().labels.shape == (8, 2)
    assert made.digest != SyntheticSet(images, labels).digest
    frozen = Curriculum((made,), ((0,),))
    mine = frozen.of_class(1, 2)
    assert isinstance(mine, Tensor)
    assert torch.equal(mine, Decoder(2)(images)[4:])
    assert Curriculum().of_class(1, 2) is None


def test_a_run_with_a_decoder_stores_small_images_and_is_read_back(tmp_path):
    folder = run(tmp_path, spec("random", "pdd", 2, decoder__factor=2))
    made = Distilled.load(folder / "distilled.safetensors")
    assert [s.decoder for s in made.curriculum.sets] == [Decoder(2), Decoder(2)]
    assert made.curriculum.phase(1).images.shape == (2 * 3 * 4, 1, 8, 8)
    row = RunRecord.read(folder).rows()[0]
    assert row.image_bytes == 6 * 64 * 4
    assert row.options["decoder.factor"] == 2


def test_matchers_that_do_not_decode_refuse_a_factor(monkeypatch):
    from ddbench.plugins import registry

    monkeypatch.setattr(registry().get("matcher", "random").cls, "decodes", False)
    with pytest.raises(UsageError, match=r"'random' works on stored images alone; leave decoder\.factor at 1"):
        spec("random", decoder__factor=2)


def test_the_random_images_beside_a_run_come_with_and_without_its_decoder(tmp_path):
    flags = [w for name, value in options("random").items() for w in ("-o", f"{name}={value}")]
    answer = ddbench(
        "run",
        "--dataset",
        "toy",
        "--matcher",
        "random",
        "--ipc",
        1,
        *flags,
        "-o",
        "decoder.factor=2",
        "--out",
        tmp_path,
        "--students",
        1,
        "--no-ceiling",
        "--format",
        "json",
    )
    assert answer.code == 0, answer.err
    factors = [json.loads((f / "spec.json").read_text())["decoder"]["factor"] for f in sorted(tmp_path.glob("*-ipc1*"))]
    assert sorted(factors) == [1, 2]


@pytest.mark.parametrize(("factor", "good"), [(0, False), (1, True), (8, True), (9, False)])
def test_factors_are_from_one_to_eight(factor, good):
    if good:
        assert make(Decoder, {"factor": factor}, "decoder").copies == factor * factor
    else:
        with pytest.raises(UsageError, match=r"decoder\.factor"):
            make(Decoder, {"factor": factor}, "decoder")
