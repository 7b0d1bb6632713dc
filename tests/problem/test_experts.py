"""Expert trajectories: what they are trained on and from, which snapshots are kept, and what an interruption leaves."""

from __future__ import annotations

import contextlib
import json
import math
import random
import shutil
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from beginnings import CLASSES, NETWORK, RECIPE, SHAPE, Counting, experts, files, real, starts
from cohorts import AUGMENT, TEN_STEPS, examples, network
from ddbench_networks import ConvNet
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ddbench import Examples, Experts, Network, Recipe, Seed, Starts, Teaching, UsageError
from ddbench.base import tensors
from ddbench.base.cache import Cache, read_json, write_json
from ddbench.base.options import changed
from ddbench.base.progress import Event, listening, noting
from ddbench.base.tensors import load_tensors, save_rows, save_tensors
from ddbench.errors import DamagedError, DataError, DDBenchError, InterruptedRun
from ddbench.problem.expert_files import Trajectory, epochs_in, path_of, snapshot_in
from ddbench.problem.experts import layout
from ddbench.train.fit import Student


def trained_alone(made: Experts, index: int, epochs: int, start: Tensor | None = None) -> list[Tensor]:
    """Every snapshot of one expert, by a loop over torch's own optimiser."""
    module = NETWORK.source.build(SHAPE, CLASSES)
    nn.utils.vector_to_parameters(made.starts[index] if start is None else start, module.parameters())
    module.requires_grad_()
    optimiser = torch.optim.SGD(module.parameters(), RECIPE.lr, momentum=0.9)
    snapshots = [nn.utils.parameters_to_vector(module.parameters()).detach().clone()]
    for epoch in range(epochs):
        generator = torch.Generator().manual_seed((Seed(4) / "expert" / index / "epoch" / epoch).integer)
        for rows in torch.randperm(len(made.real), generator=generator).split(4):
            batch = made.real[rows]
            optimiser.zero_grad()
            cross_entropy(module(batch.images), batch.labels).backward()
            optimiser.step()
        snapshots.append(nn.utils.parameters_to_vector(module.parameters()).detach().clone())
    return snapshots


@pytest.mark.parametrize("stages", [0, 2])
def test_experts_are_trained_on_real_data_from_their_starts(cache, stages):
    made = experts(cache, stages, recipe=replace(RECIPE, augment=""))
    made.build(2, range(4))
    for index in range(2):
        for epoch, expected in enumerate(trained_alone(made, index, 3)):
            torch.testing.assert_close(made.snapshot(index, epoch), expected, rtol=1e-3, atol=1e-4)


def test_snapshot_zero_is_the_start(cache):
    for stages in (0, 1, 2):
        made = experts(cache, stages)
        made.build(2, (0, 1))
        assert torch.equal(made.snapshot(1, 0), made.starts[1])


def test_snapshots_do_not_alias_each_other(cache):
    made = experts(cache)
    made.build(1, range(4))
    snapshots = [made.snapshot(0, epoch) for epoch in range(4)]
    for i, a in enumerate(snapshots):
        for b in snapshots[:i]:
            assert (a - b).norm() > 1e-3
    snapshots[0].zero_()
    assert torch.equal(made.snapshot(0, 0), made.starts[0])


def test_segment_is_the_parameters_at_two_points(cache):
    made = experts(cache)
    made.build(1, range(4))
    start, target = made.segment(0, 1, 2)
    assert torch.equal(start, made.snapshot(0, 1))
    assert torch.equal(target, made.snapshot(0, 3))


def test_segment_leaves_out_batch_statistics(cache):
    network = Network(ConvNet(width=3, depth=2, norm="batch"), SHAPE, CLASSES)
    made = Experts(replace(starts(cache), network=network), real(), RECIPE)
    made.build(1, (0, 1))
    start, target = made.segment(0, 0, 1)
    assert start.shape == target.shape == (network.parameters,)
    assert len(made.snapshot(0, 1)) == network.length > network.parameters
    assert not torch.equal(made.snapshot(0, 1)[network.parameters :], made.snapshot(0, 0)[network.parameters :])


def test_missing_snapshots_are_added_and_the_old_ones_stay_the_same(cache):
    made = experts(cache)
    made.build(1, (0, 2))
    before = {epoch: made.snapshot(0, epoch) for epoch in (0, 2)}
    assert made.missing(2, (0, 2)) == [1]
    assert made.missing(1, (0, 1)) == [0]
    made.build(1, (1, 3))
    for epoch, vector in before.items():
        assert torch.equal(made.snapshot(0, epoch), vector)
    again = experts(cache)
    assert again.missing(1, range(4)) == []
    assert torch.equal(again.snapshot(0, 2), before[2])


@pytest.mark.parametrize("schedule", ["step", "cosine"])
def test_longer_trajectory_keeps_the_old_snapshots_under_every_schedule(cache, schedule):
    made = experts(cache, recipe=replace(RECIPE, schedule=schedule, epochs=2))
    made.build(1, (0, 2))
    before = made.snapshot(0, 2)
    try:
        made.build(1, (0, 2, 4))
    except UsageError:  # refusing epochs beyond the recipe's is as good
        return
    assert torch.equal(made.snapshot(0, 2), before)


def test_recipe_in_steps_reaches_every_snapshot_or_is_refused(cache):
    made = experts(cache, recipe=replace(RECIPE, steps=7))  # 20 images in fours: five steps an epoch
    try:
        made.build(1, (0, 1, 3))
    except UsageError:
        return
    assert made.missing(1, (0, 1, 3)) == []


def test_snapshots_that_somebody_else_adds_do_not_move_those_that_are_read(cache):
    """Another run of the same experts writes a file with more rows in it, while this one goes on."""
    mine, others = experts(cache), experts(cache)
    mine.build(1, (0, 2))
    before = mine.snapshot(0, 2)
    others.build(1, (0, 1, 2))
    assert torch.equal(mine.snapshot(0, 2), before)
    assert torch.equal(mine.snapshot(0, 1), others.snapshot(0, 1)), "and what was added is there"
    assert not torch.equal(others.snapshot(0, 1), before)


def test_snapshots_that_exist_are_not_made_again(cache):
    made = experts(cache)
    with listening(first := Counting()):
        made.build(2, (0, 3))
    with listening(second := Counting()):
        made.build(2, (0, 3)), experts(cache).build(2, (3,)), made.build(1, ())
    assert first.trained == 6
    assert second.counts == {}


def test_training_stops_at_the_last_snapshot_asked_for(cache):
    with listening(counting := Counting()):
        experts(cache, recipe=replace(RECIPE, epochs=50)).build(1, (0, 2))
    assert counting.trained == 2


def test_more_experts_are_added_to_those_there(cache):
    made = experts(cache)
    made.build(1, (0, 2))
    first = made.snapshot(0, 2)
    with listening(counting := Counting()):
        made.build(3, (0, 2))
    assert counting.counts == {"experts": 3, "expert 1": 2, "expert 2": 2}
    assert torch.equal(made.snapshot(0, 2), first)


def test_snapshot_that_was_not_asked_for_says_which_there_are(cache):
    made = experts(cache)
    made.build(1, (0, 2))
    with pytest.raises(DDBenchError, match=r"expert 0 has no snapshot 1; .*needs\(\), which named \[0, 2\]"):
        made.snapshot(0, 1)


@pytest.mark.parametrize("epoch", [1, 2, 4])
@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_interrupted_build_goes_on_and_ends_with_identical_files(tmp_path, epoch, name):
    recipe = replace(RECIPE, optimizer="adam" if name == "adam" else "sgd", schedule="cosine", epochs=4)
    whole, stopped = Cache(tmp_path / "whole"), Cache(tmp_path / "stopped")
    experts(whole, recipe=recipe).build(2, (0, 1, 4))
    with pytest.raises(InterruptedRun), listening(Counting(("expert 1", epoch))):
        experts(stopped, recipe=recipe).build(2, (0, 1, 4))
    assert len(files(stopped)) == 1
    assert len(files(stopped, ".partial")) == 1
    with listening(counting := Counting()):
        experts(stopped, recipe=recipe).build(2, (0, 1, 4))
    assert counting.counts["expert 0"] == 0
    assert counting.counts["expert 1"] == 4 - epoch
    assert files(stopped) == files(whole)
    assert files(stopped, ".partial") == set()
    for name in files(whole):
        assert (stopped.root / name).read_bytes() == (whole.root / name).read_bytes()


def test_a_build_that_is_killed_goes_on_where_it_was_stored_last_every_five_seconds(tmp_path, monkeypatch):
    """An hour passes between two looks at the clock; what ends the build leaves it no time to store anything."""

    left, clock = count(3, -1), count(0, 3600)

    def killed(event: Event) -> None:
        if event.what == "expert 0" and next(left) == 1:
            patched.setattr(Trajectory, "save", lambda *_: None)
            raise InterruptedRun("killed")

    whole, stopped = Cache(tmp_path / "whole"), Cache(tmp_path / "stopped")
    experts(whole).build(1, (0, 4))
    with monkeypatch.context() as patched:
        patched.setattr("ddbench.problem.experts.time.monotonic", lambda: next(clock))
        with pytest.raises(InterruptedRun), listening(killed):
            experts(stopped).build(1, (0, 4))
    with listening(counting := Counting()):
        experts(stopped).build(1, (0, 4))
    assert counting.counts["expert 0"] < 4
    (name,) = files(whole)
    assert (stopped.root / name).read_bytes() == (whole.root / name).read_bytes()


def test_the_seconds_of_an_interrupted_trajectory_add_up(tmp_path):
    """What one process noted, what the next did after it, and what the last had to do."""
    path = tmp_path / "000000.safetensors"
    student = Student(NETWORK.init(Seed(0)))

    def book() -> Trajectory:
        return Trajectory(path, (0, 2), NETWORK.length, NETWORK.dtype)

    first = book()
    assert first.resume(NETWORK) == 0
    first.note(0, student)
    first.save(2.0)
    second = book()
    assert second.resume(NETWORK) == 0
    assert second.seconds == 2.0
    second.note(1, student)
    second.save(1.5)
    second.save(3.0)  # of this process so far, and not since the last time
    third = book()
    assert third.resume(NETWORK) == 1
    assert third.seconds == 5.0
    third.note(2, student)
    third.finish(0.25, [0])
    assert read_json(path.with_suffix(".json")) == {"seconds": 5.25}


def test_interrupted_build_that_then_wants_other_snapshots_gives_the_same_numbers(tmp_path):
    whole, stopped = Cache(tmp_path / "whole"), Cache(tmp_path / "stopped")
    experts(whole).build(1, (0, 1, 4))
    with pytest.raises(InterruptedRun), listening(Counting(("expert 0", 2))):
        experts(stopped).build(1, (0, 4))
    experts(stopped).build(1, (0, 1, 4))
    (name,) = files(whole)
    assert (stopped.root / name).read_bytes() == (whole.root / name).read_bytes()


def test_experts_from_taught_starts_live_in_another_folder(cache):
    made = [
        experts(cache),
        experts(cache, 1),
        experts(cache, 2),
        experts(cache, recipe=replace(RECIPE, lr=0.02)),
        Experts(starts(cache), real(21), RECIPE),
        Experts(replace(starts(cache), seed=Seed(5)), real(), RECIPE),
        Experts(replace(starts(cache), threads=2), real(), RECIPE),
        Experts(replace(starts(cache), network=Network(ConvNet(width=4, depth=2), SHAPE, CLASSES)), real(), RECIPE),
    ]
    assert len({e.folder for e in made}) == len(made)


def test_key_of_untaught_experts_does_not_depend_on_how_students_are_taught(cache):
    other = Teaching(replace(RECIPE, lr=0.5), steps=100, phases=4)
    assert experts(cache, teaching=other).folder == experts(cache).folder


def test_how_a_training_is_computed_is_part_of_a_key_only_where_it_is_asked_for(cache):
    """At their defaults the options rename nothing: what was trained before there were any is found."""
    assert not {"precision", "kernels", "launch"} & changed(RECIPE).keys()
    asked = [{"precision": p} for p in ("float32", "tf32", "bf16")] + [{"kernels": "fused"}, {"launch": "graph"}]
    made = [RECIPE, *(replace(RECIPE, **how) for how in asked)]
    assert len({Experts(starts(cache), real(), recipe).folder for recipe in made}) == len(made)


def test_key_of_experts_does_not_depend_on_which_snapshots_were_kept(tmp_path):
    few, many = Cache(tmp_path / "few"), Cache(tmp_path / "many")
    experts(few).build(1, (0, 3))
    experts(many).build(1, range(4))
    assert files(few) == files(many)
    assert torch.equal(experts(few).snapshot(0, 3), experts(many).snapshot(0, 3))


# -- damage ----------------------------------------------------------------------------------------------------


def file_of(cache: Cache) -> Path:
    (path,) = cache.root.rglob("experts/*/000000.safetensors")
    return path


def flip(path: Path, place: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[place] ^= 0x40
    path.write_bytes(raw)


def place_of(path: Path, name: str) -> int:
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    return 8 + length + json.loads(raw[8 : 8 + length])[name]["data_offsets"][0]


DAMAGE = {
    "an epoch": lambda path: flip(path, place_of(path, "epochs") + 12),
    "a number": lambda path: flip(path, place_of(path, "snapshots") + 4 * NETWORK.length + 6),
    "a digest": lambda path: flip(path, place_of(path, "digests") + 33),
    "the header": lambda path: flip(path, 20),
    "its length": lambda path: flip(path, 1),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-4]),
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("noticed", ["while it is read", "by the next build"])
def test_a_damaged_expert_is_made_again_to_the_same_bits_with_one_line_that_says_so(cache, damage, noticed):
    made, said = experts(cache), []
    made.build(2, (0, 1, 3))
    path, before = file_of(cache), {epoch: made.snapshot(0, epoch) for epoch in (0, 1, 3)}
    whole = path.read_bytes()
    DAMAGE[damage](path)
    if noticed == "by the next build":
        made = experts(cache)
    with noting(said.append):
        made.build(2, (0, 1, 3)) if made._built == set() else None
        for epoch in (1, 3, 0):
            assert torch.equal(made.snapshot(0, epoch), before[epoch])
    assert path.read_bytes() == whole
    if damage == "gone" and noticed == "by the next build":
        assert said == []  # nobody knows that it ever was there
    else:
        (line,) = said
        assert str(path) in line
        assert line.endswith("; it is made again")


def test_making_an_expert_again_disturbs_nothing_of_whoever_asks(cache):
    """Random streams go on, and gradients, lower precisions and inference change no bit of it."""
    made = experts(cache)
    made.build(1, (0, 3))
    whole = file_of(cache).read_bytes()
    contexts = [torch.no_grad(), torch.inference_mode(), torch.autocast("cpu"), contextlib.nullcontext()]
    for context in contexts:
        with Seed(1).scope():
            expected = (torch.rand(3), np.random.rand(), random.random())
        DAMAGE["a number"](file_of(cache))
        with Seed(1).scope(), noting(str), context:
            vector = made.snapshot(0, 3)
            seen = (torch.rand(3), np.random.rand(), random.random())
        assert torch.equal(seen[0], expected[0])
        assert seen[1:] == expected[1:]
        assert file_of(cache).read_bytes() == whole
        assert len(vector) == NETWORK.length


def test_experts_whose_whole_cache_is_deleted_are_made_again(cache):
    made = experts(cache, 1)
    made.build(1, (0, 2))
    before = made.snapshot(0, 2)
    shutil.rmtree(cache.root)
    assert torch.equal(made.snapshot(0, 2), before)
    assert (file_of(cache).parent / "identity.json").exists()


def test_a_row_is_compared_with_its_digest_once(cache, monkeypatch):
    monkeypatch.setattr("ddbench.base.tensors._SETTLED", -1e9)
    made, seen = experts(cache), []
    made.build(1, (0, 2))
    digest = tensors.tensor_digest
    monkeypatch.setattr(tensors, "tensor_digest", lambda t: seen.append(t.numel()) or digest(t))
    for _ in range(5):
        made.snapshot(0, 2)
    assert seen.count(NETWORK.length) == 1


def test_experts_of_earlier_versions_without_digests_are_read(cache):
    made = experts(cache)
    made.build(1, (0, 2))
    path = file_of(cache)
    held, _ = load_tensors(path)
    save_tensors(path, {name: held[name] for name in ("epochs", "snapshots")})
    again = experts(cache)
    assert again.missing(1, (0, 2)) == []
    assert torch.equal(again.snapshot(0, 2), held["snapshots"][1])


@pytest.mark.parametrize("part", ["vector", "state0", "epoch", "wanted", "seconds"])
def test_training_whose_interim_file_is_damaged_begins_again_and_says_so(tmp_path, part):
    whole, stopped, said = Cache(tmp_path / "whole"), Cache(tmp_path / "stopped"), []
    experts(whole).build(1, (0, 4))
    with pytest.raises(InterruptedRun), listening(Counting(("expert 0", 2))):
        experts(stopped).build(1, (0, 4))
    (partial,) = stopped.root.rglob("*.partial")
    flip(partial, place_of(partial, part) + 1)
    with listening(counting := Counting()), noting(said.append):
        experts(stopped).build(1, (0, 4))
    assert counting.counts["expert 0"] == 4
    assert len(said) == 1
    assert f"{partial} is damaged" in said[0]
    assert file_of(stopped).read_bytes() == file_of(whole).read_bytes()


def test_snapshots_that_were_damaged_before_training_ended_are_noticed(tmp_path):
    whole, stopped = Cache(tmp_path / "whole"), Cache(tmp_path / "stopped")
    experts(whole).build(1, (0, 1, 4))
    with pytest.raises(InterruptedRun), listening(Counting(("expert 0", 2))):
        experts(stopped).build(1, (0, 1, 4))
    (rows,) = stopped.root.rglob("*.rows")
    flip(rows, place_of(rows, "snapshots") + 4 * NETWORK.length + 6)
    made = experts(stopped)
    made.build(1, (0, 1, 4))
    assert torch.equal(made.snapshot(0, 1), experts(whole).snapshot(0, 1))
    assert file_of(stopped).read_bytes() == file_of(whole).read_bytes()


@pytest.mark.parametrize("note", [None, "", "{", "[]", "{}", '{"seconds": "x"}', '{"seconds": 1.5, "seal": "x"}'])
def test_a_cost_that_is_not_known_is_unknown_and_not_nothing(cache, note):
    made = experts(cache)
    made.build(2, (0, 1))
    assert made.seconds(2) > 0
    path = file_of(cache).with_suffix(".json")
    path.unlink() if note is None else path.write_text(note)
    assert math.isnan(made.seconds(2))
    assert torch.equal(experts(cache).snapshot(0, 1), made.snapshot(0, 1))


def test_the_cost_is_noted_before_the_expert_is_there(cache, monkeypatch):
    """A kill between the two leaves an expert that is trained on, and no cost of zero."""

    def killed(self) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(tensors.RowFile, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            experts(cache).build(1, (0, 1))
    assert files(cache) == set()
    assert len(files(cache, "000000.json")) == 1


def test_experts_that_trained_together_are_made_again_together(tmp_path):
    made, said = expert_pool(tmp_path, together=True), []
    made.build(3, (0, 1, 2))
    path = made.folder / "000001.safetensors"
    before = {p.name: p.read_bytes() for p in made.folder.glob("*.safetensors")}
    DAMAGE["cut"](path)
    with noting(said.append), listening(counting := Counting()):
        made.snapshot(1, 2)
    assert counting.counts["3 experts"] == 2  # epochs, of all three
    assert {p.name: p.read_bytes() for p in made.folder.glob("*.safetensors")} == before
    DAMAGE["cut"](path)
    again = expert_pool(tmp_path, together=True)
    with noting(said.append):
        again.build(3, (0, 1, 2))
    assert {p.name: p.read_bytes() for p in made.folder.glob("*.safetensors")} == before
    assert len(said) == 2


def test_imported_experts_that_are_damaged_are_refused_with_the_way_out(cache):
    trained = experts(cache)
    trained.build(1, (0, 1, 2))
    rows = load_tensors(file_of(cache))[0]["snapshots"]
    folder = cache.root / "experts" / "imported1"
    save_rows(folder / "000000.safetensors", [0, 1, 2], rows)
    write_json(folder / "identity.json", {"layout": layout(NETWORK), "experts": 1, "epochs": 2}, sealed=True)
    brought = experts(cache, recipe=replace(RECIPE, imported="imported1"))
    brought.build(1, (0, 2))
    assert torch.equal(brought.snapshot(0, 2), rows[2])
    flip(folder / "000000.safetensors", place_of(folder / "000000.safetensors", "snapshots") + 2)
    way = r"cannot be made again; delete .*imported1 and import them anew \(`ddbench import --experts FILES`\)"
    with pytest.raises(DamagedError, match=rf"row 0 is not what was written, and experts that were imported {way}"):
        brought.snapshot(0, 0)
    text = (folder / "identity.json").read_text()
    for words in (text.replace('"epochs": 2', '"epochs": 9'), "[]", "{", '{"experts": [], "epochs": 1}'):
        (folder / "identity.json").write_text(words)
        with pytest.raises(DamagedError, match=way):
            brought.build(1, (0, 2))


def test_kept_snapshots_are_those_asked_for(cache):
    experts(cache).build(1, (0, 3, 1))
    (path,) = cache.root.rglob("experts/*/*.safetensors")
    tensors, _ = load_tensors(path)
    assert tensors["epochs"].tolist() == [0, 1, 3]
    assert tensors["snapshots"].shape == (3, NETWORK.length)


class Doubles(Examples):
    """Real data in float64, by what an expert's key calls them."""

    digest = "doubles"


def expert_pool(tmp_path, *, together: bool) -> Experts:
    shown = examples(20)
    recipe = Recipe(batch=6, lr=0.02, momentum=0.5, augment=AUGMENT)
    starts = Starts(network(), Seed(7), Teaching(TEN_STEPS), Cache(tmp_path), 1)
    return Experts(starts, Doubles(shown.images, shown.labels), recipe, together=together)


def test_experts_that_train_together_are_those_trained_one_at_a_time(tmp_path):
    apart, together = (expert_pool(tmp_path, together=way) for way in (False, True))
    for pool in (apart, together):
        pool.build(3, (0, 1, 3))
    assert apart.folder != together.folder  # their last bits differ, so each has its own key
    for index in range(3):
        for epoch in (0, 1, 3):
            one, other = apart.snapshot(index, epoch), together.snapshot(index, epoch)
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
        assert not torch.allclose(together.snapshot(index, 3), together.snapshot(index, 1), atol=1e-4)
    assert together.seconds(3) > 0


def test_experts_that_train_together_go_on_where_they_were_interrupted(tmp_path):
    whole, stopped = (expert_pool(tmp_path / part, together=True) for part in ("whole", "stopped"))
    whole.build(3, (0, 2, 4))
    stop = 2 * 4  # optimiser steps: after two epochs of four

    def interrupt(event: Event) -> None:
        if event.what == "3 experts" and event.done == stop:
            raise InterruptedRun("stopped")

    with pytest.raises(InterruptedRun), listening(interrupt):
        stopped.build(3, (0, 2, 4))
    assert stopped.missing(3, (0,)) == [0, 1, 2]  # nothing is there under its own name yet
    seen: list[int] = []
    with listening(lambda event: seen.append(event.done) if event.what == "3 experts" else None):
        stopped.build(3, (0, 2, 4))
    assert min(seen) == 3 * 4  # from the third epoch on
    for index in range(3):
        for epoch in (0, 2, 4):
            assert torch.equal(stopped.snapshot(index, epoch), whole.snapshot(index, epoch))
    leftover = [p for p in stopped.folder.iterdir() if p.suffix in (".partial", ".rows")]
    assert leftover == []


def test_an_expert_is_made_again_with_the_snapshots_that_it_had_and_no_others(cache):
    made = experts(cache)
    made.build(2, (0, 1))
    made.build(1, (0, 2))
    had = {index: epochs_in(path_of(made.folder, index)) for index in range(2)}
    assert had == {0: {0, 1, 2}, 1: {0, 1}}
    for index in range(2):
        path_of(made.folder, index).unlink()
        with noting(str):
            made.snapshot(index, 0)
        assert epochs_in(path_of(made.folder, index)) == had[index]


def test_an_expert_that_another_process_made_again_meanwhile_is_not_trained(cache, monkeypatch):
    """It was damaged when it was read, and is whole when its lock is there."""
    made = experts(cache)
    made.build(1, (0, 2))
    before, damaged = made.snapshot(0, 2), [True]

    def read(path, key):
        if damaged:
            damaged.pop()
            raise DamagedError(f"{path} is damaged; nobody needs this advice")
        return snapshot_in(path, key)

    monkeypatch.setattr("ddbench.problem.experts.snapshot_in", read)
    with noting(str), listening(counting := Counting()):
        assert torch.equal(made.snapshot(0, 2), before)
    assert counting.trained == 0


@pytest.mark.parametrize(
    ("count", "epochs", "refused"), [(1, 2, False), (2, 1, False), (2, 2, False), (3, 2, True), (2, 3, True)]
)
def test_imported_experts_serve_whoever_needs_no_more_than_there_are(cache, count, epochs, refused):
    folder = cache.root / "experts" / "imported1"
    for index in range(2):
        save_rows(folder / f"{index:06d}.safetensors", [0, 1, 2], torch.zeros(3, NETWORK.length) + index)
    write_json(folder / "identity.json", {"layout": layout(NETWORK), "experts": 2, "epochs": 2}, sealed=True)
    brought = experts(cache, recipe=replace(RECIPE, imported="imported1"))
    if refused:
        with pytest.raises(
            DataError, match=f"{count} experts of {epochs} epochs are needed, but imported1 holds 2 of 2"
        ):
            brought.build(count, (0, epochs))
    else:
        brought.build(count, (0, epochs))
        assert brought.snapshot(count - 1, epochs).mean() == count - 1


def test_progress_over_experts_begins_at_none_and_ends_at_all(cache):
    seen: list[tuple[int, int]] = []
    with listening(lambda event: seen.append((event.done, event.total)) if event.what == "experts" else None):
        experts(cache).build(3, (0, 1))
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]
