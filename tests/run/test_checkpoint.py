"""What a stage keeps while it is at work: believed only where its parts agree, and a log that survives its deletion."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from sets import some_set
from tiny import run, spec

from ddbench.base.cache import file_digest, read_json, write_json
from ddbench.base.progress import Event, listening, noting
from ddbench.base.state import load_state, save_state
from ddbench.base.tensors import load_tensors, save_tensors
from ddbench.errors import DamagedError, DataError, InterruptedRun
from ddbench.run.checkpoint import Checkpoint, Ledger, Log, last_logged

CPU = torch.device("cpu")
CHECK = {"step": 2, "lr": 0.01, "accuracy": 0.5, "tried": {"0.01": 0.5}}


# -- checkpoints -----------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path) -> Checkpoint:
    """That of stage 1 after three of four iterations, of which the log knows."""
    log = tmp_path / "metrics.jsonl"
    lines = [{"stage": 0, "step": k} for k in range(4)] + [{"stage": 1, "step": k} for k in range(3)]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    made = Checkpoint(tmp_path / "run" / "stage-1" / "checkpoint.safetensors", log, 1, 4)
    made.save({"x": torch.ones(2)}, some_set(3), ledger(made))
    return made


def ledger(made: Checkpoint, **changes) -> Ledger:
    values = {"step": 3, "metrics_end": made.log.stat().st_size, "first_loss": 0.5, "best": CHECK, "checks": [CHECK]}
    return Ledger(**values | changes)


def test_a_checkpoint_comes_back(checkpoint):
    state, best, read = checkpoint.load(CPU)
    assert torch.equal(state["x"], torch.ones(2))
    assert best is not None
    assert best.digest == some_set(3).digest
    assert read == ledger(checkpoint, stage="run/stage-1")


@pytest.mark.parametrize("place", ["t0", "notes", "state"])
def test_a_flipped_bit_is_refused_with_the_right_advice(checkpoint, place):
    raw = bytearray(checkpoint.path.read_bytes())
    raw[-3 if place == "t0" else raw.index(b'"%s"' % place.encode()) + 20] ^= 1
    checkpoint.path.write_bytes(raw)
    said = (
        r"checkpoint\.safetensors is damaged.*; delete it and run again: stage 1 starts anew, from its first iteration$"
    )
    with pytest.raises(DamagedError, match=said):
        checkpoint.load(CPU)


def test_a_claim_of_more_iterations_is_refused_even_where_somebody_sealed_it(checkpoint):
    """First as an edit would, then as a version without seals would have written it."""
    tensors, metadata = load_tensors(checkpoint.path)
    raw = checkpoint.path.read_bytes()
    checkpoint.path.write_bytes(raw.replace(rb"\"step\": 3", rb"\"step\": 4"))
    with pytest.raises(DamagedError, match="its header is not what was written; delete it and run again"):
        checkpoint.load(CPU)
    notes = json.loads(metadata["notes"]) | {"step": 4}
    for sealed in (False, True):
        save_tensors(checkpoint.path, tensors, metadata | {"notes": json.dumps(notes)}, sealed=sealed)
        with pytest.raises(
            DataError, match=r"claims 4 iterations, where .*metrics\.jsonl ends with iteration 2 of stage 1"
        ):
            checkpoint.load(CPU)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"step": 39}, "claims 39 of 4 iterations"),
        ({"step": 1}, r"claims 1 of 4 iterations, with candidates judged after \[2\]"),
        ({"step": 0, "best": None, "checks": []}, "its candidate is not the one"),
        ({"metrics_end": 0}, "claims 3 iterations, and no metrics of any"),
        ({"best": None, "checks": [CHECK]}, "its candidate is not the one"),
        ({"best": CHECK | {"accuracy": 0.9}}, "best candidate is none of those that were judged"),
        ({"checks": [CHECK, CHECK]}, "judged after"),
        ({"step": -1}, "step: "),
        ({"step": 2.5}, "step: "),
        ({"step": "3"}, "step: "),
        ({"step": 10**30}, "step: "),
        ({"seconds": None}, "seconds: "),
        ({"seconds": True}, "seconds: "),
        ({"checks": [{"step": 2, "accuracy": 7}]}, "accuracy"),
        ({"checks": {}}, "checks: "),
        ({"check_seconds": ["x"]}, "check_seconds"),
        ({"engine": []}, "engine"),
        ({"stage": "run/stage-0"}, "it is that of run/stage-0"),
    ],
)
def test_a_ledger_that_cannot_be_is_refused_in_one_sentence(checkpoint, changes, reason):
    notes = vars(ledger(checkpoint, stage="run/stage-1")) | changes
    save_state(checkpoint.path, {"state": {"x": torch.ones(2)}, "best": some_set(3)}, notes)
    with pytest.raises(DataError, match=rf"is not to be believed \((.*{reason}.*)\); delete it and run again"):
        checkpoint.load(CPU)


@pytest.mark.parametrize("saved", [None, [], {"state": 1}, {"state": 1, "best": None, "x": 1}, {"state": 1, "best": 3}])
def test_a_checkpoint_of_something_else_is_refused(checkpoint, saved):
    save_state(checkpoint.path, saved, vars(ledger(checkpoint)))
    with pytest.raises(DataError, match="is not to be believed"):
        checkpoint.load(CPU)


@pytest.mark.parametrize("notes", ["", "[]", "null", "3", '{"step": NaN}', "[" * 100_000, '{"step": 1e999}'])
def test_notes_that_are_none_are_refused(checkpoint, notes):
    tensors, metadata = load_tensors(checkpoint.path)
    save_tensors(checkpoint.path, tensors, metadata | {"notes": notes}, sealed=True)
    with pytest.raises(DataError, match="delete it and run again: stage 1 starts anew"):
        checkpoint.load(CPU)


def test_a_checkpoint_of_an_earlier_version_is_read(checkpoint):
    """It was not sealed, did not name its stage, and its ledger held less."""
    old = {"step": 3, "metrics_end": checkpoint.log.stat().st_size, "best": CHECK, "checks": [CHECK], "gone": 1}
    save_state(checkpoint.path, {"state": None, "best": some_set(3)}, old)
    tensors, metadata = load_tensors(checkpoint.path)
    save_tensors(checkpoint.path, tensors, metadata)
    assert checkpoint.load(CPU)[2] == ledger(checkpoint, first_loss=None)


def test_the_last_line_before_an_end_is_found_however_long_the_log_is(tmp_path):
    log = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"stage": 0, "step": k, "loss": 0.1}) + "\n" for k in range(20_000)]
    log.write_text("".join(lines))
    end = log.stat().st_size
    assert last_logged(log, end) == (0, 19_999)
    assert last_logged(log, end - len(lines[-1])) == (0, 19_998)
    assert last_logged(log, end + 1) is None
    assert last_logged(log, 0) is None
    assert last_logged(log, 7) == (-1, -1)  # in the middle of a line
    assert last_logged(tmp_path / "none", 7) is None


# -- the log of metrics ----------------------------------------------------------------------------------------


def logged(path: Path, end: int, *lines: dict) -> tuple[str, int, list[str]]:
    said: list[str] = []
    with noting(said.append), Log(path, end) as log:
        for line in lines:
            log.write(line)
        end = log.sync()
    return path.read_text(), end, said


def test_what_was_recorded_stays_and_what_came_after_it_goes(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"a": 1}\n{"b": 2}\n')
    assert logged(path, 9, {"c": 3}) == ('{"a": 1}\n{"c": 3}\n', 18, [])
    assert logged(path, 9) == ('{"a": 1}\n', 9, [])  # nothing is written, and the end is where it is
    assert logged(tmp_path / "new", 0) == ("", 0, [])


@pytest.mark.parametrize(("there", "left"), [('{"a": 1}\n{"b"', '{"a": 1}\n'), ('{"a"', ""), ("", ""), (None, "")])
def test_an_end_beyond_the_file_leaves_whole_lines_and_no_zeros_and_is_said(tmp_path, there, left):
    path = tmp_path / "metrics.jsonl"
    if there is not None:
        path.write_text(there)
    text, end, said = logged(path, 1000, {"c": 3})
    assert text == left + '{"c": 3}\n'
    assert end == len(text)
    assert len(said) == 1
    assert f"{path} was deleted or cut" in said[0]


@pytest.mark.parametrize("by", ["deleted", "replaced"])
def test_a_log_that_is_deleted_while_it_is_written_comes_back_whole(tmp_path, by):
    path, said = tmp_path / "metrics.jsonl", []
    (tmp_path / "spec.json").write_text("{}")
    with noting(said.append), Log(path, 0) as log:
        log.write({"a": 1})
        log.sync()
        path.unlink()
        if by == "replaced":
            path.write_text("another")
        log.write({"b": 2})
        assert log.sync() == 18
        log.write({"c": 3})
        log.sync()
    assert path.read_text() == '{"a": 1}\n{"b": 2}\n{"c": 3}\n'
    assert said == [f"{path} was deleted or replaced while the run was at work; it is written again"]


# -- runs ------------------------------------------------------------------------------------------------------


@pytest.fixture
def made(monkeypatch, module_home):
    monkeypatch.setenv("DDBENCH_HOME", module_home)
    return spec("tesla", "single", 1)


@pytest.fixture
def expected(made, tmp_path) -> str:
    return file_digest(run(tmp_path / "whole", made, students=1) / "distilled.safetensors")


def stopped(made, out: Path, step: int = 2) -> Path:
    def listen(event: Event) -> None:
        if event.what == "stage 0 distilling" and event.done == step:
            raise InterruptedRun("here")

    with pytest.raises(InterruptedRun), listening(listen):
        run(out, made, students=1, seconds=0)
    return out / made.folder


def test_a_run_whose_log_was_deleted_goes_on_says_so_and_has_the_same_bits(made, expected, tmp_path):
    folder, said = stopped(made, tmp_path / "out"), []
    (folder / "metrics.jsonl").unlink()
    with noting(said.append):
        run(tmp_path / "out", made, students=1)
    assert file_digest(folder / "distilled.safetensors") == expected
    assert [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == [2, 3]
    assert len(said) == 1


def test_a_run_whose_folder_is_deleted_while_it_is_at_work_says_so_and_leaves_nothing_half(made, expected, tmp_path):
    def listen(event: Event) -> None:
        if event.what == "stage 0 distilling" and event.done == 2:
            shutil.rmtree(tmp_path / "out")

    with pytest.raises(DataError, match="was deleted while its run was at work; run the same"), listening(listen):
        run(tmp_path / "out", made, students=1, seconds=0)
    assert not (tmp_path / "out").exists()
    folder = run(tmp_path / "out", made, students=1)
    assert file_digest(folder / "distilled.safetensors") == expected


@pytest.mark.parametrize("moment", ["stages", "evaluation"])
@pytest.mark.parametrize("left", [[], [".lock"], [".lock", "preview.png", "result.json"]])
def test_a_run_whose_folder_is_deleted_in_part_after_its_last_checkpoint_says_so_as_well(
    made, expected, tmp_path, moment, left
):
    folder = tmp_path / "out" / made.folder

    def listen(event: Event) -> None:
        if event.what == moment and event.done == event.total:
            for path in [path for path in folder.iterdir() if path.name not in left]:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            if not left:
                folder.rmdir()

    with pytest.raises(DataError, match="was deleted while its run was at work; run the same"), listening(listen):
        run(tmp_path / "out", made, students=1)
    assert run(tmp_path / "out", made, students=1) == folder
    assert file_digest(folder / "distilled.safetensors") == expected
    for name, sha256 in read_json(folder / "result.json")["sha256"].items():
        assert file_digest(folder / name) == sha256


def test_a_run_whose_cache_is_deleted_while_it_is_at_work_has_the_same_bits(made, expected, tmp_path, monkeypatch):
    home, said = tmp_path / "home", []
    monkeypatch.setenv("DDBENCH_HOME", str(home))

    def listen(event: Event) -> None:
        if event.what == "stage 0 distilling" and event.done == 2:
            shutil.rmtree(home)

    with listening(listen), noting(said.append):
        folder = run(tmp_path / "out", made, students=1)
    assert file_digest(folder / "distilled.safetensors") == expected
    said = [line for line in said if "validation images" not in line]
    assert said
    assert all("is gone; it is made again" in line for line in said)


def test_an_expert_that_is_damaged_between_two_steps_leaves_the_set_as_it_would_be(
    made, expected, tmp_path, monkeypatch
):
    """It is made again inside of a matcher's step, whose random streams go on as if nothing had happened."""
    home, said = tmp_path / "home", []
    monkeypatch.setenv("DDBENCH_HOME", str(home))

    def listen(event: Event) -> None:
        if event.what == "stage 0 distilling":
            for path in home.glob("experts/*/*.safetensors"):
                raw = bytearray(path.read_bytes())
                for place in range(600, len(raw), 400):
                    raw[place] ^= 0x20
                path.write_bytes(raw)

    with listening(listen), noting(said.append):
        folder = run(tmp_path / "out", made, students=1)
    said = [line for line in said if "validation images" not in line]
    assert len(said) >= 2
    assert all("; it is made again" in line for line in said)
    assert file_digest(folder / "distilled.safetensors") == expected


def test_a_finished_run_whose_set_is_gone_makes_it_again_from_its_stages(made, expected, tmp_path):
    folder, said = run(tmp_path / "out", made, students=1), []
    before = read_json(folder / "result.json")
    (folder / "distilled.safetensors").unlink()
    with noting(said.append):
        run(tmp_path / "out", made, students=1)
    assert file_digest(folder / "distilled.safetensors") == expected
    assert read_json(folder / "result.json")["sha256"] == before["sha256"]
    assert said == [f"{folder / 'distilled.safetensors'} is gone; it is made again"]


@pytest.mark.parametrize("part", ["result.json", "result.safetensors"])
def test_a_stage_that_was_edited_is_refused_and_deleting_its_folder_starts_it_anew(made, expected, tmp_path, part):
    folder = run(tmp_path / "out", made, students=1)
    (folder / "result.json").unlink()
    path = folder / "stage-0" / part
    if part == "result.json":
        path.write_text(path.read_text().replace('"seconds": ', '"seconds": 1'))
    else:
        state = load_state(path, CPU)[0]
        save_state(path, state, {"edited": True})
    way = rf"delete {folder / 'stage-0'} and run again to distil this stage anew"
    with pytest.raises(DamagedError, match=way):
        run(tmp_path / "out", made, students=1)
    shutil.rmtree(folder / "stage-0")
    run(tmp_path / "out", made, students=1)
    assert file_digest(folder / "distilled.safetensors") == expected


@pytest.mark.parametrize("record", [[], {}, {"sha256": 3}, {"sha256": "x", "metrics_end": -1}])
def test_notes_of_a_stage_that_are_none_are_refused(made, tmp_path, record):
    folder = run(tmp_path / "out", made, students=1)
    (folder / "result.json").unlink()
    write_json(folder / "stage-0" / "result.json", record)
    with pytest.raises(DataError, match="stage-0 and run again to distil this stage anew"):
        run(tmp_path / "out", made, students=1)


def test_what_killed_writers_left_in_a_run_is_swept_when_it_goes_on(made, tmp_path):
    folder = stopped(made, tmp_path / "out")
    orphans = [folder / ".result.json.abcdefgh.tmp", folder / "stage-0" / ".checkpoint.safetensors.01234567.tmp"]
    for path in orphans:
        path.write_text("half")
    run(tmp_path / "out", made, students=1)
    assert not list(folder.rglob("*.tmp"))


def test_a_clock_that_goes_back_makes_no_negative_time(made, tmp_path, monkeypatch):
    import time

    now, calls = time.time(), [0]

    def back() -> float:
        calls[0] += 1
        return now - 3600 * calls[0]

    monkeypatch.setattr(time, "time", back)
    folder = run(tmp_path / "out", made, students=1)
    assert read_json(folder / "result.json")["process_seconds"] > 0
