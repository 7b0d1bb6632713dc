"""Pictures of a set on its way: five of a stage, the same bits after an interruption, and nothing else changes."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import run, spec

from ddbench.base.cache import file_digest, read_json
from ddbench.base.progress import Event, listening, noting
from ddbench.base.state import load_state
from ddbench.data.dataset import Preprocessing
from ddbench.errors import InterruptedRun
from ddbench.grade.preview import GAP, glimpse, glimpse_sides
from ddbench.plugins import Plugin, registry
from ddbench.problem.synthetic import SyntheticSet
from ddbench.run import looks
from ddbench.run.run import Run, Settings
from ddbench.run.stage import Stage

PLAIN = Preprocessing(torch.zeros(3), torch.ones(3))


def pictures(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): file_digest(path) for path in sorted(folder.glob("stage-*/images-*.png"))}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return run(tmp_path_factory.mktemp("whole"), spec("dm", "pdd", ipc=2, matcher__steps=8), students=1)


def test_the_points_are_a_quarter_of_the_iterations_apart_and_a_coreset_has_none():
    assert looks.points(100) == {0, 25, 50, 75, 100}
    assert looks.points(2) == {0, 1, 2}
    assert looks.points(0) == frozenset()


def test_every_stage_keeps_five_pictures_and_records_which(whole):
    for i in range(2):
        taken = read_json(whole / f"stage-{i}" / "result.json")["pictures"]
        assert taken == {f"{k}": file_digest(looks.file(whole / f"stage-{i}", k)) for k in (0, 2, 4, 6, 8)}
        assert read_json(whole / "result.json")["stages"][i]["pictures"] == taken
        assert len(set(taken.values())) == 5, "the images move"


def test_a_picture_is_of_the_set_that_selection_sees_then(whole):
    made = load_state(whole / "stage-0" / "result.safetensors", torch.device("cpu"))[0]
    step = read_json(whole / "stage-0" / "result.json")["selected"]["step"]
    preprocessing = spec("tesla").dataset.load().train.preprocessing
    assert looks.file(whole / "stage-0", step).read_bytes() == glimpse(made, preprocessing, made.labels.shape[1])


def test_a_run_that_was_stopped_often_has_the_same_pictures_and_the_same_set(whole, tmp_path):
    made = spec("dm", "pdd", ipc=2, matcher__steps=8)
    work = Run(made, made.dataset.load(), Settings(tmp_path, 1, checkpoint_seconds=0))
    for stop in ((0, 2), (0, 7), (1, 3)):

        def listen(event: Event, stop: tuple[int, int] = stop) -> None:
            if (event.what, event.done) == (f"stage {stop[0]} distilling", stop[1]):
                raise InterruptedRun("here")

        with pytest.raises(InterruptedRun), listening(listen):
            work.execute()
    work.execute()
    assert pictures(work.folder) == pictures(whole)
    assert len(pictures(whole)) == 10
    assert file_digest(work.folder / "distilled.safetensors") == file_digest(whole / "distilled.safetensors")


def test_pictures_change_no_number_of_a_run(tmp_path, monkeypatch):
    """A trajectory matcher brings images up to date when it is asked for its set; what it goes on with it may not."""
    made = spec("tesla", ipc=3, matcher__batch_syn=2)
    seen = run(tmp_path / "seen", made, students=1)
    monkeypatch.setattr(Stage, "_look", lambda _stage, _state: None)
    unseen = run(tmp_path / "unseen", made, students=1)
    assert (len(pictures(seen)), pictures(unseen)) == (5, {})
    assert seen.name == unseen.name
    for name in ("distilled.safetensors", "metrics.jsonl", "preview.png"):
        assert file_digest(seen / name) == file_digest(unseen / name)


@dataclass(frozen=True)
class Late:
    """Real images that cannot be had before the first step."""

    name = "late"
    steps: int = 4

    def init(self, problem):
        return [problem.sample(), 0]

    def step(self, problem, state, k):
        return [state[0], k + 1], {"loss": 1.0}

    def result(self, problem, state):
        if not state[1]:
            raise ValueError("there is nothing yet")
        return SyntheticSet(state[0].images, state[0].labels)


def test_a_picture_that_cannot_be_had_is_said_and_stops_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(registry().plugins, ("matcher", "late"), Plugin("matcher", "late", Late, "ddbench", "0"))
    made = replace(spec("dm", matcher__steps=4), matcher=Late())
    said: list[str] = []
    with noting(said.append):
        folder = run(tmp_path, made, students=1)
    assert read_json(folder / "result.json")["status"] == "ok"
    assert sorted(pictures(folder)) == [f"stage-0/images-{k}.png" for k in (1, 2, 3, 4)]
    (sentence,) = [text for text in said if "no picture" in text]
    assert sentence.startswith("stage 0: no picture after 0 iterations: result() of matcher 'late' raised")


def test_a_glimpse_looks_at_a_few_images_of_a_large_set(monkeypatch):
    """``invert`` makes float copies: of the set they would be gigabytes."""
    seen: list[int] = []
    invert = Preprocessing.invert
    monkeypatch.setattr(Preprocessing, "invert", lambda self, x: (seen.append(len(x)), invert(self, x))[1])
    images = torch.rand(30 * 40, 3, 8, 8)
    glimpse(SyntheticSet(images, torch.eye(30).repeat_interleave(40, 0)), PLAIN, 30)
    assert seen == [20]


def test_the_images_of_a_glimpse_are_the_first_of_each_class_and_large_ones_are_averaged():
    images = torch.rand(3 * 4, 3, 128, 96)
    data = glimpse(SyntheticSet(images, torch.eye(3).repeat_interleave(4, 0)), PLAIN, 3)
    sheet = np.asarray(Image.open(io.BytesIO(data)), dtype=np.float64)
    h, w = glimpse_sides((128, 96))
    assert (h, w) == (64, 48)
    assert sheet.shape == (2 * (h + GAP), 3 * (w + GAP), 3)
    for row in range(2):
        for column in range(3):
            found = sheet[row * (h + GAP) :, column * (w + GAP) :][:h, :w]
            pooled = images[4 * column + row].double().numpy().reshape(3, h, 2, w, 2).mean((2, 4)).transpose(1, 2, 0)
            np.testing.assert_allclose(found, 255 * pooled, atol=0.501)
