"""Entries graded anew: what makes one verified or disputed, and which sets are refused."""

from __future__ import annotations

import io
import math
import re
import shutil
import urllib.request
from dataclasses import replace
from pathlib import Path
from random import Random
from statistics import fmean, variance

import pytest
from boardkit import board, made
from scipy import stats
from tiny import ddbench

from ddbench.base.cache import file_digest, read_json, write_json
from ddbench.boards import sets, verify
from ddbench.boards.board import Board
from ddbench.boards.entry import Entry
from ddbench.boards.ranking import board_text, standings
from ddbench.boards.site import site
from ddbench.boards.submit import submit
from ddbench.boards.verification import compare
from ddbench.errors import DataError, UsageError
from ddbench.grade.distilled import Distilled

SEED = 7


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    return made(tmp_path_factory.mktemp("verify") / "runs", "dm", matcher__steps=2, matcher__batch_real=9)


@pytest.fixture
def posted(runs, tmp_path, monkeypatch) -> tuple[Board, Entry]:
    """A board with one entry, whose sets are in ``sets``, and a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DDBENCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DDBENCH_THREADS", "1")
    toys = board(tmp_path / "leaderboards", runs[0])
    (path,) = submit(runs, toys, replace=False, keep_in=Path("sets"), author="Ada")
    return toys, Entry.read(path)


def work(**more) -> verify.Verifier:
    return verify.Verifier(**{"by": "Bob", "device": "cpu", "seed": SEED} | more)


def test_the_sets_of_a_submission_lie_beside_it_under_their_sha256(posted, runs):
    _, entry = posted
    names = sorted(path.name for path in Path("sets").iterdir())
    assert names == sorted(f"{run.stored.sha256}.safetensors" for run in entry.runs)
    for run, folder in zip(entry.runs, runs, strict=True):
        file = Path("sets") / sets.file_of(run.stored)
        assert file.read_bytes() == (folder / "distilled.safetensors").read_bytes()
        assert run.stored.bytes == file.stat().st_size
    assert not list(Path("leaderboards").rglob("*.safetensors"))


def test_students_of_the_runs_own_seed_reach_what_the_entry_says(posted):
    """So that the rules, the network and the data by which sets are graded are those that graded them before."""
    toys, entry = posted
    data = work()._data(entry.runs[0])
    for run in entry.runs:
        found = work()._graded(toys, run, sets.opened(entry, run, None), data, run.seed)
        assert found == toys.graded(run)[0].scores


def test_fresh_students_are_others_and_the_mark_is_computed_from_them(posted):
    toys, entry = posted
    graded = work().entry(toys, entry, lambda _: None)
    verify.record(graded)
    held = Entry.read(entry.file)
    assert held.verification == graded.verification
    assert held.runs == entry.runs
    assert (held.verification.by, held.verification.seed) == ("Bob", SEED)
    claimed = [toys.graded(run)[0].scores for run in entry.runs]
    found = [regraded.accuracies for regraded in held.verification.runs]
    assert found != claimed
    verdict = verify.judged(toys, held)
    assert verdict == compare(claimed, found)
    (place,) = standings(toys).flat()
    assert place.cells["verified"] == verdict.state
    told = verify.told(held, verdict)
    assert re.match(
        rf"{verdict.state} by Bob on 20\d\d-\d\d-\d\d \(.*ddbench .*torch .*; seed 7\): fresh students ", told
    )
    assert verdict.state in board_text(standings(toys))
    pages = site([standings(toys)])
    page = pages["toys.html"]
    assert f'<span class="badge {verdict.state}">{verdict.state}</span>' in page
    assert "by Bob on" in pages[f"toys/{entry.name}.html"]


def test_numbers_that_fresh_students_do_not_reach_are_disputed(posted):
    toys, entry = posted
    held = read_json(entry.file)
    for run in held["runs"]:
        for i, student in enumerate(run["evaluations"][0]["students"]):
            student["accuracy"] = 0.98 + 0.01 * i
    write_json(entry.file, held)
    answer = ddbench("leaderboard", "verify", "toys", "--by", "Bob", "--seed", str(SEED), "--device", "cpu")
    assert answer.code == 1, answer.err
    assert answer.out.startswith(f"{entry.name}: disputed: fresh students ")
    assert Entry.read(entry.file).verification.by == "Bob"
    assert "badge disputed" in site([standings(toys)])["toys.html"]


def test_the_command_verifies_all_whose_sets_are_there_and_a_second_one_trains_nobody(posted, monkeypatch):
    _toys, entry = posted
    said = ("leaderboard", "verify", "toys", entry.name, "--by", "Bob", "--seed", str(SEED), "--device", "cpu")
    first = ddbench(*said)
    assert first.code in (0, 1), first.err
    before = [regraded.accuracies for regraded in Entry.read(entry.file).verification.runs]
    monkeypatch.setattr("ddbench.grade.evaluation.measured_students", None)
    assert ddbench(*said).out == first.out
    assert [regraded.accuracies for regraded in Entry.read(entry.file).verification.runs] == before
    for path in Path("sets").iterdir():
        path.rename(Path(path.name))
    assert ddbench("board", "verify", "toys", "--sets", ".", *said[4:]).out == first.out
    answer = ddbench("leaderboard", "verify", "toys")
    assert (answer.code, answer.out) == (2, "")
    assert "no entry of board 'toys' says where its sets are" in answer.err


def test_submitting_again_forgets_who_verified_the_entry_before(posted, runs):
    toys, entry = posted
    verify.record(work().entry(toys, entry, lambda _: None))
    submit(runs, toys, replace=True)
    assert Entry.read(entry.file).verification is None
    assert verify.judged(toys, Entry.read(entry.file)) is None


def test_a_verification_of_other_sets_is_refused(posted):
    toys, entry = posted
    verify.record(work().entry(toys, entry, lambda _: None))
    held = read_json(entry.file)
    held["verification"]["runs"][0]["sha256"] = "0" * 64
    write_json(entry.file, held)
    with pytest.raises(DataError, match=r"was verified with other sets than it records; `ddbench leaderboard verify"):
        standings(toys)


# Sets that are not what they should be


def one_file(entry: Entry) -> Path:
    return Path("sets") / sets.file_of(entry.runs[0].stored)


def test_a_set_that_is_missing_is_one_sentence(posted):
    _toys, entry = posted
    one_file(entry).unlink()
    answer = ddbench("leaderboard", "verify", "toys", entry.name)
    assert answer.code == 3
    assert answer.err.count("\n") == 2, answer.err  # what is done, and the error
    assert re.search(
        r"error: the set of seed 0 of dm-.* is not here: there is no \w{64}\.safetensors in sets", answer.err
    )
    assert "get it from the author (Ada) and name its folder with --sets" in answer.err


@pytest.mark.parametrize("change", ["flipped", "shorter"])
def test_a_set_that_changed_is_one_sentence(posted, change):
    toys, entry = posted
    data = bytearray(one_file(entry).read_bytes())
    data[-1] ^= 1
    one_file(entry).write_bytes(data if change == "flipped" else data[:-1])
    with pytest.raises(DataError, match=r"is not the set of seed 0 of dm-.*: it was changed or is not whole \("):
        work().entry(toys, entry, lambda _: None)


def test_an_entry_that_names_no_files_cannot_be_verified(posted):
    toys, entry = posted
    held = read_json(entry.file)
    for run in held["runs"]:
        del run["stored"]
    write_json(entry.file, held)
    with pytest.raises(DataError, match=r"names no file for the set of seed 0 .*: it was submitted without"):
        work().entry(toys, Entry.read(entry.file), lambda _: None)


def swapped(entry: Entry, change) -> Entry:
    """The entry with another set for its first seed, whose recorded sha256 is right."""
    distilled = Distilled.load(one_file(entry))
    change(distilled).save(Path("other.safetensors"))
    stored = entry.runs[0].stored.model_copy(
        update={"sha256": file_digest(Path("other.safetensors")), "bytes": Path("other.safetensors").stat().st_size}
    )
    shutil.move("other.safetensors", Path("sets") / sets.file_of(stored))
    runs = [entry.runs[0].model_copy(update={"stored": stored, "tensors": None}), *entry.runs[1:]]
    return entry.model_copy(update={"runs": runs})


def test_what_a_set_brings_besides_images_and_labels_is_refused(posted):
    toys, entry = posted

    def preprocessed(made: Distilled) -> Distilled:
        step = made.preprocessing
        return replace(made, preprocessing=replace(step, std=2 * step.std))

    def in_two_phases(made: Distilled) -> Distilled:
        longer = replace(made.curriculum, phases=((0,), (0,)))
        return replace(made, curriculum=longer, teaching=replace(made.teaching, phases=2))

    for change, said in (
        (preprocessed, "prepares images otherwise than the board's data are"),
        (in_two_phases, "is learned in other phases than those of scheduler 'single'"),
    ):
        with pytest.raises(DataError, match=said):
            work().entry(toys, swapped(entry, change), lambda _: None)


def test_how_students_learn_is_the_boards_whatever_the_file_says(posted):
    toys, entry = posted
    longer = lambda made: replace(made, teaching=replace(made.teaching, steps=10 * made.teaching.steps))
    other = swapped(entry, longer)
    told = [work().entry(toys, one, lambda _: None).verification.runs[0].accuracies for one in (entry, other)]
    assert told[0] == told[1]


def test_data_that_are_not_the_boards_are_refused(posted):
    _toys, entry = posted
    run = entry.runs[0]
    result = run.result.model_copy(update={"dataset": run.result.dataset.model_copy(update={"digest": "0" * 64})})
    with pytest.raises(DataError, match=r"the dataset 'toy' here is another than the board's"):
        work()._data(run.model_copy(update={"result": result}))
    answer = ddbench("leaderboard", "verify", "toys", "-o", "protocol.steps=1000")
    assert answer.code == 2
    assert "takes no option 'protocol.steps'" in answer.err


# Sets on the web


class Web:
    """What is at which address."""

    def __init__(self, **files: bytes) -> None:
        self.files = files
        self.asked: list[str] = []

    def __call__(self, url: str, timeout: float) -> io.BytesIO:
        self.asked.append(url)
        if url not in self.files:
            raise OSError("HTTP Error 404: Not Found")
        return io.BytesIO(self.files[url])


def test_a_set_on_the_web_is_downloaded_once_and_compared_with_its_sha256(posted, monkeypatch):
    _toys, entry = posted
    entry = entry.model_copy(update={"sets": "https://example.org/sets/"})
    run = entry.runs[0]
    name = sets.file_of(run.stored)
    url, data = f"https://example.org/sets/{name}", one_file(entry).read_bytes()
    shutil.rmtree("sets")
    web = Web()
    monkeypatch.setattr(urllib.request, "urlopen", web)
    with pytest.raises(DataError, match=r"could not be downloaded from https://example\.org/sets/.*404: Not Found"):
        sets.opened(entry, run, None)
    for wrong in (data[:-1], data + b"x", data[:-1] + bytes([data[-1] ^ 1])):
        web.files = {url: wrong}
        with pytest.raises(DataError, match=r"what lies at .* is not the set of seed 0 of dm-"):
            sets.opened(entry, run, None)
        assert not list((Path("home") / "sets").glob("*"))
    web.files, web.asked = {url: data}, []
    assert len(sets.opened(entry, run, None).curriculum.sets) == 1
    assert sets.opened(entry, run, None).about == sets.opened(entry, run, None).about
    assert web.asked == [url]
    stored = run.stored.model_copy(update={"bytes": 5 * 10**9, "sha256": "0" * 64})
    with pytest.raises(DataError, match="is said to have 5,000,000,000 bytes"):
        sets.opened(entry, run.model_copy(update={"stored": stored}), None)


@pytest.mark.parametrize("address", ["http://example.org", "file:///etc/passwd", "sets", "https://a b", "https://x'y"])
def test_an_address_that_is_none_of_the_web_is_refused(posted, runs, address):
    toys, _ = posted
    with pytest.raises(UsageError, match="sets lie at a web address that begins with https://"):
        submit(runs, toys, replace=True, sets=address)


# The comparison


@pytest.mark.parametrize("seed", range(3))
def test_the_interval_is_that_of_a_weighted_sum_of_means(seed):
    draw = Random(seed)
    claimed = [[draw.gauss(0.9, 0.01 * (1 + run)) for _ in range(5)] for run in range(3)]
    found = [[draw.gauss(0.9, 0.02) for _ in range(4)] for _ in range(3)]
    means = [fmean(map(fmean, side)) for side in (claimed, found)]
    parts = [(variance(v) / len(v) / 9, len(v) - 1) for v in (*claimed, *found)]
    error = math.sqrt(sum(part for part, _ in parts))
    freedom = error**4 / sum(part**2 / free for part, free in parts)
    half = stats.t.isf(0.005, freedom) * error
    verdict = compare(claimed, found)
    assert (verdict.claimed, verdict.found) == (means[0], means[1])
    assert verdict.gap.low == pytest.approx(means[1] - means[0] - half, abs=1e-12)
    assert verdict.gap.high == pytest.approx(means[1] - means[0] + half, abs=1e-12)
    one = compare(claimed[:1], found[:1])  # Welch's, of two samples
    two = stats.ttest_ind(found[0], claimed[0], equal_var=False).confidence_interval(0.99)
    assert (one.gap.low, one.gap.high) == pytest.approx((two.low, two.high), abs=1e-12)


def test_an_honest_entry_is_disputed_as_rarely_as_the_level_says():
    draw, disputed = Random(0), 0
    for _ in range(400):
        claimed, found = ([[draw.gauss(0.9, 0.01) for _ in range(5)] for _ in range(5)] for _ in range(2))
        disputed += compare(claimed, found).state == "disputed"
    assert disputed <= 12  # of 400 at 1 %: more has a probability of 0.0003


def test_single_students_are_compared_over_runs_and_a_single_one_decides_nothing():
    assert compare([[0.9]], [[0.5]]).state == "undecided"
    assert compare([[0.9], [0.91], [0.92]], [[0.5], [0.52], [0.51]]).state == "disputed"
    assert compare([[0.9], [0.91], [0.92]], [[0.91], [0.9], [0.92]]).state == "verified"
    assert compare([[0.5, 0.5]], [[0.5, 0.5]]).state == "verified"
    assert compare([[0.5, 0.5]], [[0.6, 0.6]]).state == "disputed"
