"""The campaign on a GPU, with parts that are planted: what is carried out, killed, skipped, kept and shown."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest

ROOT = Path(__file__).parents[2]
ABOUT = {"device": "NVIDIA Imaginary", "torch": "2.99", "ddbench": "0.1.0 (abc)", "date": "2026-01-01"}
SAY = """
import json, sys, time, os, subprocess
orders = json.loads(sys.argv[-1])
def say(**told): print("\\n@" + json.dumps(told), flush=True)
def figure(name, **told): say(**({"part": "planted", "variant": name, "unit": "ms"} | told))
def due(*names): return [name for name in names if name not in orders["known"]]
"""


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    """The benchmarks are scripts of a checkout, and not installed."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.fixture
def gpu():
    import benchmarks.gpu

    return benchmarks.gpu


@pytest.fixture
def records():
    import benchmarks.gpu_records

    return benchmarks.gpu_records


@pytest.fixture
def campaign(gpu, records, tmp_path):
    """A call over planted parts, in the folder that all calls of a test share."""

    def made(*parts, seconds=100.0, **about):
        told = {**ABOUT, **{n: about.pop(n) for n in list(about) if n in ABOUT}}
        record = records.Record.begun(tmp_path, told, about.pop("state", "0" * 64))
        known = [held for held in records.read_all(tmp_path) if held.path != record.path]
        return gpu.Campaign(parts, record, known, seconds, {"device": "cpu"}, say=lambda text: None, **about)

    return made


@pytest.fixture
def part(gpu):
    """A part whose process runs this code."""

    def made(code, **options):
        usual = {"name": "planted", "title": "Planted.", "expected": 1, "limit": 20, "measures": ("ddbench/data",)}
        return gpu.Part(**usual | options, command=(sys.executable, "-c", SAY + code))

    return made


def on_disk(campaign) -> dict:
    return json.loads(campaign.record.path.read_text())


def values(campaign) -> dict[str, float]:
    return {f["variant"]: f["value"] for f in on_disk(campaign).get("figures", []) if "value" in f}


# -- limits ----------------------------------------------------------------------------------------------------


def test_a_part_at_its_limit_is_killed_with_its_children_and_its_figures_are_kept(campaign, part, tmp_path):
    pid = tmp_path / "pid"
    code = f"""
figure("quick", value=1.0)
say(doing="endless")
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
open({str(pid)!r}, "w").write(str(child.pid))
time.sleep(100)
"""
    work = campaign(part(code, limit=1.5))
    assert work.carry_out() == ["planted"]
    assert values(work) == {"quick": 1.0}
    held = on_disk(work)
    assert held["parts"]["planted"]["status"] == "killed"
    assert "killed at the limit" in next(f["error"] for f in held["figures"] if f["variant"] == "endless")
    ends = time.monotonic() + 5
    while Path(f"/proc/{pid.read_text()}").exists() and "Z" not in _state(pid.read_text()):
        assert time.monotonic() < ends, "the child of a killed part lives on"
        time.sleep(0.01)


def _state(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2]
    except FileNotFoundError:
        return "Z"


def test_a_figure_is_on_disk_while_its_part_is_still_at_work(campaign, part, tmp_path):
    """The part itself waits until it sees its figure in the record."""
    code = """
figure("first", value=2.0)
ends = time.monotonic() + 15
while "first" not in open(orders["record"]).read():
    assert time.monotonic() < ends
    time.sleep(0.01)
figure("second", value=3.0)
"""
    work = campaign(part(code))
    work.orders["record"] = str(work.record.path)
    assert work.carry_out() == []
    assert values(work) == {"first": 2.0, "second": 3.0}


def test_what_does_not_fit_is_left_out_and_what_follows_is_not(campaign, part):
    code = 'figure(orders["name"], value=1.0)'.replace('orders["name"]', "{!r}")
    long, short = part(code.format("long"), name="long", expected=50), part(code.format("short"), name="short")
    work = campaign(long, short, seconds=30)
    assert "takes about 50 s" in work.verdict(long)
    assert work.carry_out() == []
    assert values(work) == {"short": 1.0}


def test_a_part_that_needs_data_waits_for_them(campaign, part):
    work = campaign(part("", needs_data=True))
    assert work.verdict(work.parts[0]) == "needs --data"


# -- the next call ---------------------------------------------------------------------------------------------


def test_the_next_call_goes_on_where_the_last_stopped(campaign, part):
    code = """
for name in due("a", "b", "c"):
    if name == "b" and not orders["known"]:
        say(left="b")
        break
    figure(name, value=float(len(orders["known"])))
"""
    first = campaign(part(code))
    assert first.carry_out() == []
    assert values(first) == {"a": 0.0}
    assert first.verdict(first.parts[0]) == "", "something is left"
    second = campaign(part(code))
    second.carry_out()
    assert values(second) == {"a": 0.0, "b": 1.0, "c": 1.0}
    assert campaign(part(code)).verdict(part(code)) == "is on record"


def test_other_sources_another_device_and_another_torch_are_measured_anew(campaign, part, records, tmp_path):
    work = part('figure("a", value=1.0)')
    campaign(work).carry_out()
    for other in (
        campaign(work, device="NVIDIA Other"),
        campaign(work, torch="3.0", state="3" * 64),
        campaign(replace(work, measures=("ddbench/train",))),
        campaign(replace(work, version=2)),
    ):
        assert other.verdict(other.parts[0]) == ""
        assert other.done(other.parts[0]) == {}
    # the same sources, in a record that a ddbench with other rooms began
    assert campaign(work, state="1" * 64).verdict(work) == "is on record"
    assert len(list(tmp_path.glob("*.json"))) == 1


def test_the_digest_is_of_what_is_measured(records, tmp_path, monkeypatch):
    (tmp_path / "measured").mkdir()
    (tmp_path / "measured" / "__init__.py").write_text("")
    inside = tmp_path / "measured" / "room"
    inside.mkdir()
    (inside / "code.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = records.sources_of(["measured/room"], "2.99")
    (tmp_path / "measured" / "other.py").write_text("y = 1\n")
    assert records.sources_of(["measured/room"], "2.99") == before
    (inside / "code.py").write_text("x = 2\n")
    assert records.sources_of(["measured/room"], "2.99") != before


def test_what_failed_is_on_record_and_tried_again_on_demand_alone(campaign, part):
    code = """
for name in due("good", "bad"):
    figure(name, **({"value": 1.0} if name == "good" else {"error": "RuntimeError: no"}))
"""
    work = campaign(part(code))
    assert work.carry_out() == ["planted"]
    assert campaign(part(code)).verdict(part(code)) == "is on record"
    again = campaign(part(code), again=frozenset(["planted"]))
    assert again.verdict(again.parts[0]) == ""
    assert again.done(again.parts[0]) == {}
    assert again.carry_out() == ["planted"]


def test_what_a_kill_found_at_work_is_not_tried_again_and_two_kills_are_enough(campaign, part):
    code = 'for name in due("slow", "slower", "slowest"): say(doing=name); time.sleep(100)'
    for count in (1, 2):
        work = campaign(part(code, limit=0.7))
        work.carry_out()
        assert work.record.parts["planted"]["kills"] == count
        assert list(work.done(work.parts[0])) == ["slow", "slower"][:count]
    assert "twice" in campaign(part(code)).verdict(part(code))


def test_a_kill_blames_nobody_for_the_time_that_others_took(campaign, part):
    code = 'say(doing="first"); time.sleep(1.5); figure("first", value=1.0); say(doing="last"); time.sleep(100)'
    work = campaign(part(code, limit=2.5))
    assert work.carry_out() == []
    assert on_disk(work)["parts"]["planted"]["status"] == "killed"
    assert (work.record.parts["planted"]["kills"], values(work)) == (0, {"first": 1.0})
    assert not [f for f in work.record.figures if "error" in f]


def test_a_part_that_runs_other_commands_is_not_done(campaign, part):
    before = campaign(part('figure("a", value=1.0)', settings="one"))
    before.carry_out()
    assert list(before.done(part("", settings="one"))) == ["a"]
    assert list(before.done(part("", settings="another"))) == []


def test_a_kill_because_the_call_is_over_blames_nobody(campaign, part):
    work = campaign(part('say(doing="slow"); time.sleep(100)', expected=0.1), seconds=1.0)
    assert work.carry_out() == []
    assert on_disk(work)["parts"]["planted"]["status"] == "killed"
    assert (work.record.parts["planted"]["kills"], work.record.figures) == (0, [])


def test_a_part_that_breaks_leaves_its_log_and_stops_no_other(campaign, part):
    broken, fine = part("raise SystemExit('out of luck')", name="broken"), part('figure("a", value=1.0)')
    work = campaign(broken, fine)
    assert work.carry_out() == ["broken"]
    assert values(work) == {"a": 1.0}
    assert "out of luck" in on_disk(work)["parts"]["broken"]["log"]
    assert on_disk(work)["parts"]["broken"]["status"] == "exit code 1"
    assert work.verdict(broken) == "", "it is tried again"


def test_a_part_whose_process_breaks_goes_on_in_another_as_long_as_each_finds_something_out(campaign, part):
    code = """
import signal
for name in due("a", "crash", "b"):
    say(doing=name)
    if name == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    figure(name, value=1.0)
"""
    work = campaign(part(code))
    assert work.carry_out() == ["planted"]
    assert values(work) == {"a": 1.0, "b": 1.0}
    assert work.done(work.parts[0])["crash"]["error"] == "ended by signal 11"
    assert on_disk(work)["parts"]["planted"]["status"] == "done"


def test_a_disk_that_refuses_a_figure_ends_the_campaign(campaign, part, monkeypatch):
    work = campaign(part('figure("a", value=1.0)'))
    monkeypatch.setattr(work.record, "add", lambda figure: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        work.carry_out()


def test_without_a_gpu_it_ends_at_once(gpu, monkeypatch, capsys):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    with pytest.raises(SystemExit) as end:
        gpu.main()
    assert end.value.code == 3
    assert "no CUDA device" in capsys.readouterr().err


def test_on_a_cpu_it_takes_accuracies_alone_and_as_long_as_it_may(gpu, monkeypatch, capsys, tmp_path):
    given = gpu._parser().parse_args(["--device", "cpu", "--only", "evaluator", "--records", str(tmp_path)])
    work = gpu._begun(given)
    assert [(part.name, part.limit) for part in work.parts] == [("evaluator", math.inf)]
    assert work.orders["device"] == "cpu"
    for words in ([], ["--only", "unrolls", "evaluator"]):
        with pytest.raises(SystemExit) as end:
            gpu._begun(gpu._parser().parse_args(["--device", "cpu", "--records", str(tmp_path), *words]))
        assert end.value.code == 2
        assert "--only names some of coresets, dm, evaluator" in capsys.readouterr().err


# -- taking turns ----------------------------------------------------------------------------------------------


@pytest.fixture
def parts(monkeypatch):
    import gpu_parts

    told: list[dict] = []
    monkeypatch.setattr(gpu_parts, "say", lambda **line: told.append(line))
    gpu_parts.told = told
    return gpu_parts


def test_variants_take_turns_and_each_says_its_median_and_how_it_stands_to_the_base(parts, monkeypatch):
    clock, turns = [0.0], []
    monkeypatch.setattr(parts.time, "perf_counter", lambda: clock[0])

    def work(name: str, seconds: float):
        def call() -> None:
            turns.append(name)
            clock[0] += seconds

        return parts.Variant(lambda: call, amount=2.0)

    variants = {"base": work("base", 0.5), "twice": work("twice", 0.25)}
    parts.race("planted", "images/s", variants, "base", parts.Orders("cpu"), rate=True)
    assert turns == ["base"] * 2 + ["twice"] * 2 + ["base", "twice"] * 5
    base, twice = (line for line in parts.told if "value" in line)
    assert (base["value"], base["times"], len(base["rounds"])) == (4.0, 1.0, 5)
    assert (twice["value"], twice["times"]) == (8.0, 2.0)


def test_a_variant_that_fails_is_refused_or_has_no_time_stops_no_other(parts):
    def broken():
        raise RuntimeError("no kernel image")

    variants = {
        "base": parts.Variant(lambda: lambda: None),
        "known": parts.Variant(lambda: pytest.fail("measured again")),
        "broken": parts.Variant(lambda: broken),
        "refused": parts.Variant(lambda: lambda: None, honest=lambda: "float32 is used"),
        "long": parts.Variant(lambda: lambda: None, warm=1000.0),
        "fine": parts.Variant(lambda: lambda: None),
    }
    orders = parts.Orders("cpu", seconds=100.0, known=frozenset(["known"]))
    parts.race("planted", "ms", variants, "base", orders, rate=False)
    by = {line["variant"]: line for line in parts.told if "variant" in line}
    assert by["broken"]["error"] == "RuntimeError: no kernel image"
    assert by["refused"]["refused"] == "float32 is used"
    assert {"left": "long"} in parts.told
    assert "value" in by["fine"]
    assert "known" not in by


def test_a_variant_that_takes_the_device_along_ends_the_process(parts, monkeypatch):
    """CUDA reports an illegal access in every later call: none of the others is to be blamed for it."""
    gone = []

    def broken():
        gone.append(True)
        raise RuntimeError("an illegal memory access was encountered")

    def done(self):
        if gone:
            raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(parts.Orders, "done", done)
    variants = {"base": parts.Variant(lambda: lambda: None), "broken": parts.Variant(lambda: broken)}
    variants["innocent"] = parts.Variant(lambda: lambda: None)
    with pytest.raises(SystemExit) as end:
        parts.race("planted", "ms", variants, "base", parts.Orders("cpu"), rate=False)
    assert end.value.code == parts.LOST
    assert [line["variant"] for line in parts.told if "error" in line] == ["broken"]


def test_where_all_is_known_nothing_is_measured(parts):
    variants = {"base": parts.Variant(lambda: pytest.fail("measured again"))}
    orders = parts.Orders("cpu", known=frozenset(["base"]))
    parts.race("planted", "ms", variants, "base", orders, rate=False)
    assert not [line for line in parts.told if "variant" in line]


def test_options_that_this_ddbench_does_not_have_are_no_variant(parts):
    assert parts.recipe("", {"no_such_switch": "on"}) is None
    assert parts.recipe("", {"momentum": 0.5}).momentum == 0.5


# -- tests -------------------------------------------------------------------------------------------------------


def test_each_test_says_what_came_of_it_and_the_known_ones_are_left_out(gpu, tmp_path):
    """As a process of its own, with ``-W error``, as the tests of this repository are run."""
    (tmp_path / "test_planted.py").write_text(
        "def test_fine(): pass\ndef test_known(): assert False\ndef test_bad(): assert 1 == 2\n"
    )
    told: list[dict] = []
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", "-p", "gpu_outcomes"]
    own = {"DDBENCH_GPU_TESTS": '["test_planted.py::test_known"]', "PYTHONPATH": str(ROOT / "benchmarks")}
    own["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # for the time that it takes
    with patch.dict(os.environ, own):
        process = gpu.Process([*words, f"--rootdir={tmp_path}", str(tmp_path)], told.append, 60)
    code, doing, _, log = process.wait()
    assert code == 1, log
    assert doing == "test_planted.py::test_bad"
    fine, bad = told
    assert fine["variant"] == "test_planted.py::test_fine"
    assert fine["value"] >= 0
    assert "assert 1 == 2" in bad["error"]


# -- tables ----------------------------------------------------------------------------------------------------


def test_the_tables_of_the_page_are_those_of_the_records(gpu, records):
    text, held = records.PAGE.read_text(), records.read_all(records.RECORDS)
    assert held
    assert records.page(text, gpu.TITLES, held) == text, "run: python -m benchmarks.gpu --table"


def test_a_table_has_a_row_for_each_variant_and_a_column_for_each_record(records, tmp_path):
    def record(date: str, *figures):
        return records.Record(tmp_path / f"{date}.json", ABOUT | {"date": date}, figures=list(figures))

    fast = records.timed("training", "ours", "images/s", [4.0, 5.0, 6.0], [2.0, 2.5, 3.0])
    bad = {"part": "training", "variant": "theirs", "unit": "images/s", "error": "trace\nRuntimeError: no"}
    tests = [{"part": "tests", "variant": f"t{i}", "unit": "s", "value": 1.5} for i in range(2)]
    tests.append({"part": "tests", "variant": "t9", "unit": "s", "error": "AssertionError: no"})
    titles = {"tests": "Tests.", "training": "One expert."}
    shown = records.tables(
        titles, [record("2026-01-01", fast), record("2026-01-02", fast | {"value": 71056.0}, bad, *tests)]
    )
    assert "| ours | 5.000 (x 2.00) | 71,060 (x 2.00) |" in shown
    assert "| theirs |  | failed: RuntimeError: no |" in shown
    assert "| passed | 2 |" in shown
    assert "| t9 | failed: AssertionError: no |" in shown
    assert "t1" not in shown


def test_what_a_switch_gains_is_told_of_each_record_that_measured_both(records, tmp_path):
    def figures(**values: float):
        return [
            {"part": "unrolls", "variant": n.replace("_", " "), "unit": "ms", "value": v} for n, v in values.items()
        ]

    both = records.Record(tmp_path / "a.json", ABOUT, figures=figures(zero_eager=17.0, zero_compiled=5.0))
    one = records.Record(tmp_path / "b.json", ABOUT | {"date": "2026-01-02"}, figures=figures(zero_eager=17.0))
    shown = records.tables({"unrolls": "Unrolls."}, [both, one])
    assert shown.count("Times as fast") == 1
    assert "Times as fast (Imaginary, 2026-01-01): compiled steps, zero 3.40." in shown


def test_a_record_is_read_as_it_was_written(records, tmp_path):
    record = records.Record(
        tmp_path / "a.json", ABOUT | {"system": "Linux"}, {"p": {"status": "done"}}, more={"x": [1]}
    )
    record.add({"part": "p", "variant": "v", "unit": "ms", "value": 1.0})
    record.add({"part": "p", "variant": "v", "unit": "ms", "value": 2.0})
    again = records.Record.read(record.path)
    assert again == record
    assert [f["value"] for f in again.figures] == [2.0]
    (tmp_path / "b.json").write_text('{"device": "x"}')
    with pytest.raises(ValueError, match=r"b\.json is not a record"):
        records.read_all(tmp_path)


@pytest.mark.slow
def test_every_line_of_the_campaign_runs_on_a_cpu(gpu, tmp_path):
    """With compilers left out; takes a minute."""
    assert gpu.rehearsal(tmp_path, say=lambda text: None) == []
    assert "TORCHDYNAMO_DISABLE" not in os.environ
    held = json.loads((tmp_path / "rehearsal.json").read_text())
    assert {entry["status"] for entry in held["parts"].values()} == {"done"}
