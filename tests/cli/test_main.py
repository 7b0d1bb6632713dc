"""The command line as a user and as a program see it: data on stdout, one-line errors, documented exit codes."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import fields, make_dataclass, replace
from pathlib import Path

import pictures
import pytest
import torch
from tiny import THREAD, artefacts, command_in, ddbench, options, words

from ddbench.base.cache import lock, read_json, write_json
from ddbench.base.recipes import RecipeEntry
from ddbench.cli.main import main
from ddbench.errors import DataError
from ddbench.plugins import registry
from ddbench.run import below
from ddbench.run.folder import finished

FIELDS = {
    "dataset",
    "matcher",
    "scheduler",
    "network",
    "ipc",
    "seed",
    "protocol",
    "selection",
    "label_type",
    "accuracy_mean",
    "accuracy_std",
    "n",
    "status",
    "steps",
    "distil_seconds",
    "selection_seconds",
    "expert_seconds",
    "peak_bytes",
    "image_bytes",
    "label_bytes",
}
ALONE = ["--no-random", "--no-ceiling"]


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A cache and a folder with a tesla run beside random images and the ceiling."""
    base = tmp_path_factory.mktemp("shop")
    home, out = base / "home", base / "runs"
    answer = ddbench("run", *words("tesla", ipc=2), "--students", 2, "--out", out, "--json", home=home)
    assert answer.code == 0, answer.err
    return home, out, answer


@pytest.fixture
def at_home(shop, monkeypatch) -> Path:
    """The folder with those runs, in a test that uses their cache."""
    monkeypatch.setenv("DDBENCH_HOME", str(shop[0]))
    return shop[1]


def the_run(out: Path, matcher: str = "tesla") -> Path:
    (folder,) = out.glob(f"toy-{matcher}-*")
    return folder


def error_of(answer) -> str:
    """The last line of a refused command, its only error: a sentence on stderr, nothing on stdout."""
    assert answer.out == ""
    assert "Traceback" not in answer.err
    assert answer.err.count("error: ") == 1
    line = answer.err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    return line


# ---------------------------------------------------------------------------------------------- start-up


def light(*arguments: str) -> tuple[int, str, set[str]]:
    """Run a command in a fresh interpreter; what it prints, and which top-level packages it loaded."""
    code = (
        "import sys\nsys.argv = ['ddbench', *sys.argv[1:]]\nfrom ddbench.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    code = end.code\n"
        "print('\\nMODULES', *sorted({m.split('.')[0] for m in sys.modules}))\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code, *arguments], capture_output=True, text=True, check=False)
    text, _, modules = done.stdout.partition("\nMODULES")
    return done.returncode, text, set(modules.split())


HEAVY = {"torch", "torchvision", "numpy", "pandas", "pydantic", "pluggy", "rich", "sklearn", "safetensors", "PIL"}


@pytest.mark.parametrize("arguments", [("--help",), ("run", "--help"), ("--version",)])
def test_help_loads_neither_torch_nor_plugins(arguments):
    code, text, modules = light(*arguments)
    assert code == 0
    assert "ddbench" in text
    assert "click" in modules
    assert not modules & HEAVY
    if "--help" in arguments:  # the version comes from importlib.metadata, which loads these
        assert not modules & {"logging", "tempfile", "tomllib"}
    assert not [m for m in modules if m.startswith("ddbench_")]


def test_help_names_every_command():
    text = ddbench("--help").out
    for command in ("run", "eval", "compare", "experts", "list", "info", "plugins", "check-grad"):
        assert re.search(rf"^  {command} +[A-Z]", text, re.MULTILINE), command


def test_python_dash_m_ddbench_is_the_same_program():
    done = subprocess.run([sys.executable, "-m", "ddbench", "--help"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1:] == ddbench("--help").out.splitlines()[1:]  # the first line has its name


def test_the_installed_command_runs_in_a_process_of_its_own(tmp_path):
    script = Path(sys.executable).with_name("ddbench")
    arguments = ["run", *words("random"), *ALONE, "--students", "1", "--out", str(tmp_path / "runs"), "--json"]
    done = subprocess.run(
        [script, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | THREAD | {"DDBENCH_HOME": str(tmp_path / "home")},
    )
    assert done.returncode == 0, done.stderr
    assert [row["matcher"] for row in json.loads(done.stdout)] == ["random"]


@pytest.mark.parametrize("arguments", [["list"], ["run", "--dataset", "toy"], ["--help"]])
def test_a_system_that_is_not_posix_is_refused_in_one_sentence(monkeypatch, arguments):
    monkeypatch.setattr(sys, "platform", "win32")
    answer = ddbench(*arguments)
    assert answer.code == 3
    assert error_of(answer) == "error: ddbench works on POSIX systems alone (Linux, macOS); on Windows, run it in WSL"


def test_the_library_says_the_same_there_before_a_module_is_missing(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(DataError, match="POSIX systems alone"):
        from ddbench import Problem  # noqa: F401


# ---------------------------------------------------------------------------------------------- run


def test_run_shows_the_method_beside_random_images_and_the_ceiling(shop):
    rows = {(row["matcher"], row["label_type"]): row for row in shop[2].json}
    assert set(rows) == {
        ("tesla", "teacher"),
        ("random", "hard"),
        ("random", "teacher"),
        ("all 54 training images", "hard"),
    }
    assert {row["ipc"] for row in rows.values()} == {2, None}


def test_a_run_records_how_it_compares_with_each_kind_of_random_images_beside_it(shop):
    out, rows = shop[1], {(row["matcher"], row["label_type"]): row for row in shop[2].json}
    found = {record.label_type: record for record in finished(the_run(out)).random}
    assert set(found) == {"hard", "teacher"}
    for labels, record in found.items():
        beside, own = rows["random", labels], rows["tesla", "teacher"]
        assert record.run == beside["run"]
        assert (record.accuracy_mean, record.accuracy_std, record.n) == (
            beside["accuracy_mean"],
            beside["accuracy_std"],
            2,
        )
        assert record.difference == pytest.approx(own["accuracy_mean"] - beside["accuracy_mean"], abs=1e-15)
        assert record.low <= record.difference <= record.high
        assert record.above is (record.low > 0)
    assert all(not finished(folder).random for folder in out.glob("toy-random-*"))


def test_the_last_line_of_a_run_that_is_not_above_random_images_says_so(shop):
    out, answer = shop[1], shop[2]
    low = [record for record in finished(the_run(out)).random if record.above is False]
    assert low, "two students of twelve steps tell nothing apart"
    last = answer.err.strip().splitlines()[-1]
    assert last.startswith(f"warning: {the_run(out).name} reaches ")
    assert all(below.told(record) in last for record in low)
    (row,) = [row for row in answer.json if row["matcher"] == "tesla"]
    assert row["above_random"] is False


def test_without_random_images_a_run_says_once_that_nothing_is_known(tmp_path):
    arguments = [*words("k-means"), *ALONE, "--students", 2, "--repeats", 2, "--out", tmp_path / "runs"]
    answer = ddbench("run", *arguments, "--json")
    assert answer.code == 0
    assert answer.err.count("random images were not graded") == 1
    assert answer.err.strip().splitlines()[-1].startswith("--no-random: ")
    assert all("above_random" not in row for row in answer.json)
    assert not finished(the_run(tmp_path / "runs", "k-means-single-ipc1-seed0")).random
    # graded later, the same run is the one that was there
    before = finished(the_run(tmp_path / "runs", "k-means-single-ipc1-seed0")).json_value()
    later = [word for word in arguments if word != "--no-random"]
    assert ddbench("run", *later, "--json").code == 0
    after = finished(the_run(tmp_path / "runs", "k-means-single-ipc1-seed0")).json_value()
    assert len(after.pop("random")) == 1
    assert after == before


def test_random_images_alone_say_nothing_of_themselves(tmp_path):
    answer = ddbench("run", *words("random"), "--no-ceiling", "--students", 2, "--out", tmp_path / "runs", "--json")
    assert "random images" not in answer.err
    quiet = ddbench("run", *words("random"), *ALONE, "--students", 2, "--out", tmp_path / "runs", "--json")
    assert "random images" not in quiet.err


def test_json_rows_have_the_documented_fields(shop):
    for row in shop[2].json:
        assert set(row) >= FIELDS
        assert row["status"] == "ok"
        assert row["selection"] == "validation"
        assert 0 <= row["accuracy_mean"] <= 1
        assert 0 <= row["accuracy_std"] <= 0.5
        assert row["n"] == 2
    row = next(row for row in shop[2].json if row["matcher"] == "tesla")
    assert row["image_bytes"] == 6 * 8 * 8 * 4
    assert row["label_bytes"] == 6 * 3 * 4
    assert row["peak_bytes"] > 1e6
    assert row["distil_seconds"] > 0
    assert row["expert_seconds"] > 0
    assert row["selection_seconds"] > 0
    assert row["steps"] == 12
    assert (row["seed"], row["scheduler"], row["dataset"]) == (0, "single", "toy")
    assert row["network"] == "convnet(width=8)"


def test_a_table_for_people_has_the_accuracy_and_its_deviation(at_home):
    answer = ddbench("compare", "--per-run", "--wide", "--out", at_home)
    row = next(line for line in answer.out.splitlines() if "tesla" in line)
    assert re.search(r"\d+\.\d ± \d+\.\d", row)
    assert "validation" in row
    assert "teacher" in row


@pytest.mark.parametrize("form", ["json", "csv", "md", "latex", "table"])
def test_stdout_is_data_while_progress_goes_to_stderr(tmp_path, form):
    arguments = [*words("tesla"), *ALONE, "--students", 1, "--out", tmp_path / "runs"]
    answer = ddbench("run", *arguments, "--format", form)
    assert answer.code == 0
    assert "experts 2/2" in answer.err
    assert "evaluation 1/1" in answer.err
    if form == "json":
        assert [row["matcher"] for row in json.loads(answer.out)] == ["tesla"]
    elif form == "csv":
        assert [row["matcher"] for row in csv.DictReader(io.StringIO(answer.out))] == ["tesla"]
    elif form == "md":
        assert len({line.count("|") for line in answer.out.splitlines()}) == 1
    elif form == "latex":
        assert answer.out.startswith(r"\begin{tabular}")
        assert answer.out.endswith("\\end{tabular}\n")
    else:
        assert "tesla" in answer.out
    assert "experts 2/2" not in answer.out


def test_quiet_runs_say_nothing_of_their_progress(tmp_path):
    answer = ddbench("run", *words("random"), *ALONE, "--students", 1, "--out", tmp_path / "runs", "-q")
    assert answer.code == 0
    assert "evaluation" not in answer.err


def test_repeats_are_runs_with_consecutive_seeds(tmp_path):
    arguments = ["run", *words("random"), "--students", 1, "--out", tmp_path / "runs", "--seed", 5, "--repeats", 2]
    rows = ddbench(*arguments, "--json").json
    seeds = [row["seed"] for row in rows if row["matcher"] == "random"]
    assert seeds == [5, 6]
    assert len([row for row in rows if row["matcher"].startswith("all ")]) == 1
    sets = {(f / "distilled.safetensors").read_bytes() for f in (tmp_path / "runs").iterdir()}
    assert len(sets) == 2


def test_the_same_command_again_computes_nothing_and_changes_no_file(shop, at_home):
    home, out, first = shop
    before, cached = artefacts(out), artefacts(home)
    again = ddbench("run", *words("tesla", ipc=2), "--students", 2, "--out", out, "--json")
    assert again.code == 0
    assert again.json == first.json
    assert artefacts(out) == before
    assert artefacts(home) == cached


def test_a_second_process_on_the_same_run_exits_at_once_and_says_who_holds_it(at_home):
    folder = the_run(at_home)
    with lock(folder / ".lock"):
        answer = ddbench("run", *words("tesla", ipc=2), "--students", 2, "--out", at_home)
    assert answer.code == 1
    last = answer.err.strip().splitlines()[-1]
    assert f"process {os.getpid()}" in last
    assert str(folder) in last


# ---------------------------------------------------------------------------------------------- dry run


@pytest.fixture
def with_recipe(monkeypatch):
    """A recipe of tesla for the toy dataset, and one of another ipc."""
    plugin = registry().get("matcher", "tesla")
    fits = RecipeEntry({"dataset": "toy", "ipc": [1, 5]}, {"matcher": {"lr_img": 77.0, "span": 3}}, "a paper", True)
    other = RecipeEntry({"dataset": "toy", "ipc": 50}, {"matcher": {"lr_img": 5.0}}, "elsewhere", True)
    monkeypatch.setitem(registry().plugins, ("matcher", "tesla"), replace(plugin, recipes=(other, fits)))


def test_a_dry_run_tells_where_each_value_comes_from_and_does_nothing(with_recipe, tmp_path, monkeypatch):
    home = tmp_path / "home"
    monkeypatch.setenv("DDBENCH_HOME", str(home))
    arguments = ["--dataset", "toy", "--ipc", 2, "-o", "matcher.span=1", "-o", "matcher.experts=7"]
    answer = ddbench("run", *arguments, "--out", tmp_path / "runs", "--dry-run", "--json")
    assert answer.code == 0
    options = answer.json["options"]
    assert options["matcher.span"] == {"value": 1, "from": "flag"}
    assert options["matcher.lr_img"]["value"] == 77.0
    assert "recipe" in options["matcher.lr_img"]["from"]
    assert "a paper" in options["matcher.lr_img"]["from"]
    assert "verified" in options["matcher.lr_img"]["from"]
    assert options["matcher.augment"] == {"value": True, "from": "default"}
    assert answer.json["forecast"]["experts"] == 7
    assert answer.json["forecast"]["iterations"] > 0
    assert any("disk" in name for name in answer.json["forecast"])
    assert any("memory" in name for name in answer.json["forecast"])
    assert not home.exists()
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_for_people_shows_the_same_values(tmp_path):
    arguments = [*words("tesla", "pdd", 2), "--out", tmp_path / "runs", "--dry-run"]
    answer = ddbench("run", *arguments)
    line = next(line for line in answer.out.splitlines() if "matcher.syn_steps" in line)
    assert [cell.strip() for cell in line.strip("│").split("│")] == ["matcher.syn_steps", "3", "flag"]
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_counts_the_experts_of_all_stages():
    plan = ddbench("run", *words("tesla", "pdd", 2), "--dry-run", "--json").json
    assert plan["forecast"]["experts"] == 2 * 2
    assert plan["forecast"]["stages"] == 2
    assert plan["forecast"]["iterations"] == 2 * 4
    assert plan["forecast"]["student steps N"] == 12


def test_a_dry_run_names_the_folder_that_the_run_then_uses(shop):
    plan = ddbench("run", *words("tesla", ipc=2), "--dry-run", "--json").json
    assert plan["folder"] == the_run(shop[1]).name


def test_a_dry_run_refuses_what_the_run_would_refuse():
    assert ddbench("run", *words("random", "pdd", 1), "--dry-run").code == 2
    assert ddbench("run", *words("random", ipc=1000), "--dry-run").code == 2


# ---------------------------------------------------------------------------------------------- resume


def test_resume_goes_on_with_a_run_by_its_folder_name_or_key(shop, at_home):
    folder = the_run(at_home)
    for name in (folder, folder.name, folder.name.rsplit("-", 1)[1]):
        before = artefacts(at_home)
        answer = ddbench("run", "--resume", name, "--out", at_home, "--students", 2, *ALONE, "--json")
        assert answer.code == 0, answer.err
        assert [row["run"] for row in answer.json] == [folder.name]
        assert artefacts(at_home) == before


def test_resume_from_another_folder_finds_the_run_in_its_place(shop, at_home, monkeypatch, tmp_path):
    monkeypatch.chdir(the_run(at_home))
    answer = ddbench("run", "--resume", ".", "--students", 2, *ALONE, "--json")
    assert answer.code == 0, answer.err
    assert [row["accuracy_mean"] for row in answer.json] == [
        row["accuracy_mean"] for row in shop[2].json if row["matcher"] == "tesla"
    ]


def test_resume_of_a_run_on_a_gpu_needs_one(at_home, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    folder = tmp_path / "runs" / the_run(at_home).name
    shutil.copytree(the_run(at_home), folder)
    write_json(folder / "spec.json", read_json(folder / "spec.json") | {"device": "cuda"}, sealed=True)
    answer = ddbench("run", "--resume", folder.name, "--out", folder.parent, *ALONE)
    assert answer.code == 2, answer.err
    assert "finds no CUDA device here" in " ".join(answer.err.split())


def test_experts_train_with_the_threads_that_their_key_names(monkeypatch):
    from ddbench.cli.run import _build
    from ddbench.run.spec import Request

    set_to: list[int] = []
    monkeypatch.setenv("DDBENCH_THREADS", "3")
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    monkeypatch.setattr("ddbench.plugins.loaded", lambda _: pytest.fail(f"threads: {set_to}"))
    with pytest.raises(pytest.fail.Exception, match=r"threads: \[3\]"):
        _build(Request("toy", "tesla", device="cpu"), 1, quiet=True)


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (["--ipc", 3], "ipc: 2 -> 3"),
        (["--seed", 9], "seed: 0 -> 9"),
        (["-o", "matcher.syn_steps=5"], "matcher.syn_steps: 3 -> 5"),
        (["--matcher", "mtt"], "matcher.name: tesla -> mtt"),
        (["-o", "protocol.steps=99"], "protocol.steps: 12 -> 99"),
        (["-o", "network.width=4"], "network.width: 8 -> 4"),
    ],
)
def test_resume_refuses_a_changed_option_with_the_difference(at_home, change, difference):
    before = artefacts(at_home)
    answer = ddbench("run", "--resume", the_run(at_home).name, "--out", at_home, *change)
    assert answer.code == 2
    assert difference in error_of(answer)
    assert artefacts(at_home) == before


def test_resume_accepts_the_options_that_the_run_has(at_home):
    same = ["--ipc", 2, "--matcher", "tesla", "-o", "matcher.syn_steps=3", "--device", "cpu"]
    arguments = ["--resume", the_run(at_home).name, "--out", at_home, "--students", 2, *ALONE]
    assert ddbench("run", *arguments, *same, "--json").code == 0


def test_resume_of_a_run_that_is_not_there_exits_3(tmp_path):
    answer = ddbench("run", "--resume", "nothing", "--out", tmp_path)
    assert answer.code == 3
    assert "no run 'nothing'" in error_of(answer)


def copied(shop, tmp_path) -> tuple[Path, Path]:
    out = tmp_path / "runs"
    shutil.copytree(shop[1], out)
    return out, the_run(out)


def tamper(folder: Path, group: str, name: str, value) -> None:
    record = read_json(folder / "spec.json")
    (record if group == "" else record[group])[name] = value
    (folder / "spec.json").write_text(json.dumps(record))


def test_the_same_command_on_a_tampered_spec_is_refused_with_the_difference(shop, at_home, tmp_path):
    out, folder = copied(shop, tmp_path)
    tamper(folder, "", "ipc", 3)
    before = artefacts(out)
    answer = ddbench("run", *words("tesla", ipc=2), "--out", out)
    assert answer.code == 2
    assert "ipc: 3 -> 2" in answer.err
    assert artefacts(out) == before


@pytest.mark.parametrize(("group", "name", "value"), [("", "ipc", 3), ("declared", "matcher tesla", "0.9")])
def test_resume_of_a_run_with_another_spec_is_refused_and_starts_no_other(shop, at_home, tmp_path, group, name, value):
    out, folder = copied(shop, tmp_path)
    tamper(folder, group, name, value)
    before = artefacts(out)
    answer = ddbench("run", "--resume", folder.name, "--out", out, *ALONE)
    assert answer.code == 2, "it went on, or started another run"
    assert name in answer.err
    assert artefacts(out) == before


# ---------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["run", "--matcher", "telsa"], 2, ["no matcher called 'telsa'", "did you mean 'tesla'", "random"]),
        (["run", "--scheduler", "pddd"], 2, ["no scheduler called 'pddd'", "did you mean 'pdd'"]),
        (["run", "--dataset", "digit"], 2, ["no dataset called 'digit'", "did you mean 'digits'"]),
        (["run", "--network", "convnt"], 2, ["no network called 'convnt'", "did you mean 'convnet'"]),
        (["run", "--protocol", "pdd-papre"], 2, ["no protocol called", "did you mean 'pdd-paper'"]),
        (["run", "-o", "matcher.syn_stps=3"], 2, ["syn_stps", "did you mean 'syn_steps'", "valid options: steps, "]),
        (["run", "-o", "macher.steps=3"], 2, ["macher.steps", "did you mean 'matcher'", "dataset, matcher"]),
        (["run", "-o", "steps"], 2, ["GROUP.NAME=VALUE"]),
        (["run", "-o", "matcher.steps=many"], 2, ["matcher.steps", "valid integer", "'many'"]),
        (["run", "-o", "matcher.steps=0"], 2, ["matcher.steps", "greater than or equal to 1", "'0'"]),
        (["run", "-o", "matcher.lr_img=-1"], 2, ["matcher.lr_img", "greater than 0"]),
        (["run", "-o", "matcher.lr_img=nan"], 2, ["matcher.lr_img", "finite"]),
        (["run", "-o", "matcher.curvature=half"], 2, ["matcher.curvature", "'exact'", "'zero'"]),
        (["run", "--ipc", "0"], 2, ["--ipc must be at least 1"]),
        (["run", "--dataset", "toy", "--ipc", "1000"], 2, ["--ipc 1000", "'toy'", "36 training images"]),
        (["run", "--dataset", "toy", "--scheduler", "pdd", "--ipc", "3"], 2, ["3 images per class", "5 stages"]),
        (["run", "--dataset", "images", "-o", "dataset.root=/no/where"], 3, ["/no/where"]),
        (["run", "--dataset", "images"], 2, ["-o dataset.root="]),
        (["eval", "no-such-file.safetensors"], 3, ["no-such-file.safetensors"]),
        (["compare", "no-such-run"], 3, ["no run 'no-such-run'"]),
        (["info", "telsa"], 2, ["nothing is called 'telsa'", "did you mean 'tesla'"]),
        (["check-grad", "--matcher", "random"], 2, ["'random'", "nothing to check"]),
        (["check-grad", "-o", "network.width=3"], 2, ["options of the matcher only"]),
        (["check-grad", "-o", "matcher.syn_stps=3"], 2, ["did you mean 'syn_steps'"]),
        (["experts", "--matcher", "telsa"], 2, ["did you mean 'tesla'"]),
    ],
)
def test_a_refused_request_is_one_sentence_with_the_way_out(arguments, code, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = ddbench(*arguments)
    assert answer.code == code
    for fragment in said:
        assert fragment in error_of(answer), fragment


@pytest.mark.parametrize(
    "arguments",
    [words("random", ipc=1000), words("random", "pdd", 1), [*words("random"), "-o", "network.depth=9"]],
    ids=["ipc", "stages", "depth"],
)
def test_a_run_that_is_refused_leaves_no_folder_behind(tmp_path, arguments):
    answer = ddbench("run", *arguments, "--out", tmp_path / "runs")
    assert answer.code == 2
    assert error_of(answer)
    assert ddbench("compare", "--out", tmp_path / "runs", "--json").json == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--matchr", "tesla"],
        ["run", "--ipc", "ten"],
        ["run", "--students", "0"],
        ["run", "--repeats", "0"],
        ["run", "--format", "xml"],
        ["run", "--device", "tpu"],
        ["list", "matcher"],
        ["eval"],
        ["check-grad", "--steps", "0"],
        ["run", "--seed", "-1"],
        ["eval", "x", "--seed", "-1"],
        ["check-grad", "--lr", "0"],
        ["ru"],
    ],
)
def test_a_wrong_flag_exits_2_without_a_traceback(arguments):
    answer = ddbench(*arguments)
    assert answer.code == 2
    assert answer.out == ""
    assert error_of(answer)
    assert "Error:" not in answer.err


def test_cuda_where_there_is_none_is_refused():
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    answer = ddbench("run", "--device", "cuda", "--dataset", "toy")
    assert answer.code == 2
    assert "--device cuda" in error_of(answer)


@pytest.mark.parametrize("threads", ["0", "two", "-1", "", "²", "1025", "99999999", "9" * 5000])
def test_a_wrong_number_of_threads_is_refused(monkeypatch, threads):
    monkeypatch.setitem(THREAD, "DDBENCH_THREADS", threads)
    answer = ddbench("run", "--dataset", "toy", "--dry-run")
    assert answer.code == 2
    assert "DDBENCH_THREADS" in error_of(answer)


def test_an_unwritable_out_exits_3(tmp_path):
    (tmp_path / "file").write_text("")
    answer = ddbench("run", *words("random"), *ALONE, "--out", tmp_path / "file" / "runs")
    assert answer.code == 3
    assert "Traceback" not in answer.err


def test_a_diverged_run_exits_1_with_the_iteration_and_advice_and_keeps_its_state(tmp_path):
    arguments = ["run", *words("tesla", matcher__lr_img=1e12), *ALONE, "--out", tmp_path / "runs", "--json"]
    answer = ddbench(*arguments)
    assert answer.code == 1
    assert "Traceback" not in answer.err
    assert re.search(r"iteration \d+ of stage 0", answer.err)
    assert "try" in answer.err
    (row,) = answer.json
    assert row["status"] == "diverged"
    assert re.search(r"iteration \d+", row["error"])
    assert (row["accuracy_mean"], row["n"]) == (None, 0)
    folder = the_run(tmp_path / "runs")
    assert (folder / "stage-0" / "checkpoint.safetensors").exists()
    before = artefacts(folder)
    assert ddbench(*arguments).code == 1
    assert artefacts(folder) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", ["run", "experts", "eval"])
def test_an_interrupted_command_exits_130_and_says_how_to_go_on(shop, at_home, tmp_path, monkeypatch, number, command):
    from ddbench.cli.console import Display

    show = Display.__call__

    def interrupting(self, event):
        os.kill(os.getpid(), number)
        show(self, event)

    arguments = {
        "run": ["run", *words("random"), *ALONE, "--out", str(tmp_path / "runs with spaces")],
        "experts": ["experts", *words("tesla", matcher__experts=3)],
        "eval": ["eval", str(the_run(at_home)), "--students", "7"],
    }[command]
    if command == "experts":
        monkeypatch.setenv("DDBENCH_HOME", str(tmp_path / "home"))
    with monkeypatch.context() as patched:
        patched.setattr(Display, "__call__", interrupting)
        answer = ddbench(*arguments)
    assert answer.code == 130
    assert answer.out == ""
    assert "Traceback" not in answer.err
    assert command_in(answer.err) == arguments
    for left in (at_home / the_run(at_home) / "evaluations").glob("*.json"):
        if read_json(left)["n"] == 7:
            left.unlink()


# ---------------------------------------------------------------------------------------------- eval


def test_eval_of_a_run_shows_the_evaluation_it_has(shop, at_home):
    before = artefacts(at_home)
    answer = ddbench("eval", the_run(at_home), "--students", 2, "--json")
    assert answer.code == 0
    (row,) = answer.json
    (first,) = [r for r in shop[2].json if r["matcher"] == "tesla"]
    beside = {name: first.pop(name) for name in ("above_random", "random") if name in first}  # which `run` graded
    assert beside
    assert row == first
    assert artefacts(at_home) == before


def test_eval_of_a_file_alone_on_another_machine_needs_no_flags(shop, tmp_path):
    path = tmp_path / "elsewhere.safetensors"
    shutil.copy(the_run(shop[1]) / "distilled.safetensors", path)
    answer = ddbench("eval", path, "--students", 2, "--json", home=tmp_path / "home")
    assert answer.code == 0, answer.err
    (row,) = answer.json
    (first,) = [r for r in shop[2].json if r["matcher"] == "tesla"]
    same = (
        "dataset",
        "matcher",
        "scheduler",
        "network",
        "ipc",
        "seed",
        "protocol",
        "steps",
        "selection",
        "label_type",
        "accuracy_mean",
        "accuracy_std",
        "n",
        "status",
        "image_bytes",
        "label_bytes",
    )
    assert {name: row[name] for name in same} == {name: first[name] for name in same}
    assert set(row) >= FIELDS


def test_eval_with_other_students_seed_or_network_is_another_evaluation(shop, tmp_path):
    path = tmp_path / "set.safetensors"
    shutil.copy(the_run(shop[1]) / "distilled.safetensors", path)

    def row(*options):
        return ddbench("eval", path, "--json", *options, home=tmp_path / "home").json[0]

    assert row("--students", 3)["n"] == 3
    assert row("--students", 1, "--seed", 4)["evaluation_seed"] == 4
    other = row("--students", 1, "-o", "network.width=4")
    assert other["network"] == "convnet(width=4)"
    other = row("--students", 1, "-o", "protocol.steps=3")
    assert other["steps"] == 3
    assert other["protocol"].startswith("default-custom")


def test_eval_on_several_networks_is_one_table_with_a_row_for_each(shop, tmp_path):
    folder = copied(shop, tmp_path)[1]
    answer = ddbench(
        "eval",
        folder / "distilled.safetensors",
        "--network",
        "convnet, mlp,vit",
        "-o",
        "network.width=4",
        "-o",
        "network.dim=8",
        "-o",
        "network.heads=2",
        "-o",
        "network.depth=2",
        "--students",
        2,
        "--json",
        home=shop[0],
    )
    assert answer.code == 0, answer.err
    names = [row["network"].partition("(")[0] for row in answer.json]
    assert names == ["convnet", "mlp", "vit"]
    assert all(row["n"] == 2 and 0 <= row["accuracy_mean"] <= 1 for row in answer.json)
    assert "dim=8" in answer.json[2]["network"]
    assert "dim" not in answer.json[0]["network"]


def test_eval_on_several_networks_refuses_an_option_that_none_of_them_has(shop, tmp_path):
    folder = copied(shop, tmp_path)[1]
    answer = ddbench("eval", folder, "--network", "convnet,vit", "-o", "network.breadth=4", home=shop[0])
    assert answer.code == 2
    assert "none of the networks convnet, vit has an option 'breadth'" in error_of(answer)


def test_eval_of_one_file_by_two_protocols_names_both(shop, tmp_path):
    path = the_run(shop[1]) / "distilled.safetensors"
    arguments = ["--students", 1, "--protocol", "pdd-paper", "-o", "protocol.epochs=2", "--json"]
    row = ddbench("eval", path, *arguments, home=tmp_path / "home").json[0]
    assert row["protocol"].startswith("pdd-paper")
    assert row["steps"] == 2  # two epochs of one batch


def test_eval_trains_no_student_twice(shop, tmp_path, monkeypatch):
    path = the_run(shop[1]) / "distilled.safetensors"
    first = ddbench("eval", path, "--students", 2, "--json", home=tmp_path / "home")

    def never(*_, **__):
        raise AssertionError("a student was trained again")

    monkeypatch.setattr("ddbench.grade.student.teach", never)
    again = ddbench("eval", path, "--students", 2, "--json", home=tmp_path / "home")
    assert again.json == first.json


def test_eval_refuses_test_data_of_another_task(shop, tmp_path):
    path = the_run(shop[1]) / "distilled.safetensors"
    answer = ddbench("eval", path, "--dataset", "digits", "--students", 1)
    assert answer.code == 3
    assert "classes" in error_of(answer)
    answer = ddbench("eval", path, "-o", "dataset.size=16", "--students", 1)
    assert answer.code == 3
    assert "dataset.size=8" in error_of(answer)


def test_eval_refuses_options_of_the_matcher(shop):
    answer = ddbench("eval", the_run(shop[1]), "-o", "matcher.steps=3")
    assert answer.code == 2
    assert "not of matcher" in error_of(answer)


def test_eval_of_a_damaged_file_exits_3(shop, tmp_path):
    whole = (the_run(shop[1]) / "distilled.safetensors").read_bytes()
    path = tmp_path / "damaged.safetensors"
    for damaged in (whole[:-100], whole[:-1] + bytes([whole[-1] ^ 1]), b"", b"not a file of tensors", whole[:4]):
        path.write_bytes(damaged)
        answer = ddbench("eval", path)
        assert answer.code == 3
        assert error_of(answer)


def test_eval_of_an_unfinished_run_says_how_to_finish_it(shop, at_home, tmp_path):
    out, folder = copied(shop, tmp_path)
    (folder / "distilled.safetensors").unlink()
    answer = ddbench("eval", folder.name, "--out", out)
    assert answer.code in (2, 3)
    assert "--resume" in error_of(answer)


def test_a_run_whose_set_was_damaged_is_not_evaluated(shop, at_home, tmp_path):
    out, folder = copied(shop, tmp_path)
    path = folder / "distilled.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    for command in (["run", *words("tesla", ipc=2), *ALONE, "--out", out], ["eval", folder, "--students", 1]):
        answer = ddbench(*command)
        assert answer.code == 3
        assert "damaged" in answer.err


# ------------------------------------------------------------------------------- compare, list, info, ...


def test_compare_shows_all_runs_of_the_folder_or_those_named(at_home):
    everything = ddbench("compare", "--out", at_home, "--json").json
    assert {row["matcher"] for row in everything} == {"tesla", "random"}
    folder = the_run(at_home)
    for name in (folder, folder.name, folder.name.rsplit("-", 1)[1]):
        (row,) = ddbench("compare", name, "--out", at_home, "--json").json
        assert row["matcher"] == "tesla"
        assert set(row) >= FIELDS


def test_compare_of_an_ambiguous_name_lists_the_candidates(at_home):
    answer = ddbench("compare", "toy-random", "--out", at_home)
    assert answer.code == 3
    assert error_of(answer).count("toy-random-single") == 2


def test_compare_of_nothing_is_empty_data(tmp_path):
    assert ddbench("compare", "--out", tmp_path / "none", "--json").json == []
    answer = ddbench("compare", "--out", tmp_path / "none")
    assert (answer.code, answer.out) == (0, "")
    assert "no runs" in answer.err


def test_compare_shows_an_unfinished_run_as_such(shop, tmp_path):
    out, folder = copied(shop, tmp_path)
    (folder / "result.json").unlink()
    shutil.rmtree(folder / "evaluations")
    row = next(r for r in ddbench("compare", "--out", out, "--json").json if r["matcher"] == "tesla")
    assert (row["status"], row["accuracy_mean"], row["n"]) == ("incomplete", None, 0)


BUILT_IN = {
    "matchers": {
        "at-bptt",
        "att",
        "dance",
        "datm",
        "dc",
        "dm",
        "dream",
        "dsa",
        "el2n",
        "forgetting",
        "frepo",
        "ftd",
        "herding",
        "idc",
        "idm",
        "k-center",
        "k-means",
        "mtt",
        "ncfm",
        "pad",
        "random",
        "rat-bptt",
        "rded",
        "selmatch",
        "sre2l",
        "tesla",
        "tgdd",
    },
    "schedulers": {"single", "pdd", "seqmatch", "boost"},
    "datasets": {
        "digits",
        "toy",
        "images",
        "hf",
        "mnist",
        "fashionmnist",
        "kmnist",
        "svhn",
        "cifar10",
        "cifar100",
        "stl10",
        "imagenette",
        "eurosat",
        "gtsrb",
        "tinyimagenet",
        "imagenet",
    },
    "networks": {
        "convnet",
        "mlp",
        "lenet",
        "alexnet",
        "vgg11",
        "resnet18",
        "resnet18-ap",
        "vit",
        "torchvision",
    },
    "metrics": {"accuracy"},
}


@pytest.mark.parametrize("kind", BUILT_IN)
def test_list_names_the_plugins_of_a_kind_with_what_they_are(kind):
    found = ddbench("list", kind, "--json").json
    assert {entry["name"] for entry in found} >= BUILT_IN[kind]
    assert all(entry["summary"] and entry["package"] for entry in found)
    table = ddbench("list", kind).out
    assert all(name in table for name in BUILT_IN[kind])


def test_list_runs_names_them_with_their_status(at_home):
    found = ddbench("list", "runs", "--out", at_home, "--json").json
    assert len(found) == 3
    assert {entry["status"] for entry in found} == {"ok"}
    assert the_run(at_home).name in {entry["run"] for entry in found}
    assert the_run(at_home).name in ddbench("list", "runs", "--out", at_home).out


def test_list_runs_of_an_empty_folder_is_empty_data(tmp_path):
    assert ddbench("list", "runs", "--out", tmp_path, "--json").json == []


@pytest.mark.parametrize("name", sorted(set.union(*BUILT_IN.values())))
def test_info_tells_every_option_with_type_default_and_source(name):
    about = ddbench("info", name, "--json").json[0]
    assert about["name"] == name
    assert about["doc"]
    assert about["package"] == "ddbench"
    for option in about["options"]:
        assert set(option) >= {"option", "type", "default", "what"}
        assert option["what"], f"{option['option']} is not explained"
    text = ddbench("info", name).out
    assert all(option["option"] in text for option in about["options"])


def test_info_tells_the_recipes_with_source_and_whether_they_are_verified(with_recipe):
    about = ddbench("info", "tesla", "--json").json[0]
    recipe = next(r for r in about["recipes"] if "lr_img=77" in r["options"])
    assert recipe["source"] == "a paper"
    assert recipe["verified"] is True
    assert "ipc=[1, 5]" in recipe["match"]
    assert "a paper" in ddbench("info", "tesla").out


def test_info_lays_markdown_out_and_leaves_mathematics_as_it_is():
    text = ddbench("info", "tesla").out
    assert "``" not in text
    assert "| --- |" not in text
    assert "theta*_t, theta*_{t+M}" in text
    assert "L = sum_c |" in ddbench("info", "dm").out


def test_info_gives_the_defaults_of_the_fields():
    options = {o["option"]: o for o in ddbench("info", "tesla", "--json").json[0]["options"]}
    declared = {f"matcher.{f.name}": f.default for f in fields(registry().get("matcher", "tesla").cls)}
    texts = {name: ",".join(map(str, value)) for name, value in declared.items() if isinstance(value, tuple)}
    assert {name: o["default"] for name, o in options.items()} == declared | texts
    assert options["matcher.syn_steps"]["type"] == "integer of at least 1"
    assert options["matcher.lr_init"]["type"] == "number above 0, or auto"
    assert options["matcher.later_max_start"]["type"] == "any number of: integer"


def test_plugins_lists_all_with_their_packages():
    answer = ddbench("plugins", "--json")
    assert answer.code == 0
    assert answer.json["broken"] == []
    found = {(p["kind"], p["name"]) for p in answer.json["plugins"]}
    assert {("matcher", "tesla"), ("scheduler", "pdd"), ("dataset", "digits"), ("network", "convnet")} <= found
    assert {p["package"] for p in answer.json["plugins"]} == {"ddbench"}
    assert "tesla" in ddbench("plugins").out


@pytest.mark.parametrize(("method", "options"), [("tesla", ["-o", "matcher.curvature=exact"]), ("mtt", [])])
def test_check_grad_finds_the_exact_gradient_exact(method, options):
    answer = ddbench("check-grad", "--matcher", method, "--steps", 5, *options, "--json")
    assert answer.code == 0
    found = {g["gradient"]: g for g in answer.json["gradients"]}
    assert set(found) == {"images", "labels", "lr"}
    for row in found.values():
        assert row["relative_error"] < 1e-10
        assert row["cosine"] == pytest.approx(1, abs=1e-12)
        assert row["norm_ratio"] == pytest.approx(1, abs=1e-10)


def test_check_grad_finds_teslas_formula_close_but_not_exact():
    found = {g["gradient"]: g for g in ddbench("check-grad", "--steps", 8, "--json").json["gradients"]}
    assert 1e-4 < found["images"]["relative_error"] < 1
    assert 0.5 < found["images"]["cosine"] < 1
    table = ddbench("check-grad", "--steps", 8).out
    assert "cosine" in table
    assert f"{found['images']['cosine']:.6f}" in table


def test_check_grad_finds_zero_and_exact_equal_after_one_step():
    for row in ddbench("check-grad", "--steps", 1, "--json").json["gradients"]:
        assert row["relative_error"] < 1e-12


# ---------------------------------------------------------------------------------------------- experts


def test_experts_are_trained_ahead_and_then_used_by_the_run(tmp_path, monkeypatch):
    home = tmp_path / "home"
    answer = ddbench("experts", *words("tesla"), home=home)
    assert answer.code == 0, answer.err
    (folder,) = (home / "experts").iterdir()
    assert str(folder) in answer.out
    assert answer.out.startswith("2 experts")
    before = artefacts(home)
    assert ddbench("experts", *words("tesla"), home=home).code == 0
    assert artefacts(home) == before
    done = ddbench("run", *words("tesla"), *ALONE, "--students", 1, "--out", tmp_path / "runs", "--json", home=home)
    assert done.code == 0
    assert "experts 1/2" not in done.err
    assert artefacts(folder) == artefacts(home / "experts" / folder.name)
    assert len(list((home / "experts").iterdir())) == 1
    assert done.json[0]["expert_seconds"] > 0


def test_experts_of_a_matcher_without_any_are_none(tmp_path):
    answer = ddbench("experts", *words("random"), home=tmp_path)
    assert answer.code == 0
    assert "needs no experts" in answer.err
    assert not (tmp_path / "experts").exists()


def fails_with(monkeypatch, error: BaseException) -> None:
    """``ddbench run`` as the script is called, with work that ends in ``error``."""

    def work(*_, **__):
        raise error

    monkeypatch.setattr("ddbench.run.runs.carry_out", work)
    monkeypatch.setattr("sys.argv", ["ddbench", "run", "--dataset", "toy", "-q"])
    main()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "No space left on device", "runs/metrics.jsonl"), "No space left on device (runs/metrics.jsonl)"),
        (MemoryError(), "a smaller -o matcher.batch_syn"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "a smaller -o matcher.batch_syn"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried"),
            "a smaller -o matcher.batch_syn",
        ),
    ],
    ids=["disk", "python", "cuda", "cpu"],
)
def test_a_disk_or_a_memory_that_is_full_is_one_sentence(monkeypatch, capsys, error, words):
    with pytest.raises(SystemExit) as exit_:
        fails_with(monkeypatch, error)
    assert exit_.value.code == 3
    said = capsys.readouterr().err
    assert words in " ".join(said.split())
    assert "Traceback" not in said


def test_a_library_that_cannot_be_loaded_is_one_sentence(monkeypatch, capsys):
    with pytest.raises(SystemExit) as exit_:
        fails_with(monkeypatch, ImportError("libtorch_cpu.so: failed to map segment from shared object"))
    assert exit_.value.code == 3
    assert "error: libtorch_cpu.so: failed to map" in capsys.readouterr().err


def test_an_interrupt_outside_of_long_work_names_the_command_that_goes_on(monkeypatch, capsys):
    with pytest.raises(SystemExit) as exit_:
        fails_with(monkeypatch, KeyboardInterrupt())
    assert exit_.value.code == 130
    said = " ".join(capsys.readouterr().err.split())
    assert said == "error: interrupted; everything finished so far is kept; to go on: ddbench run --dataset toy -q"


def test_another_error_of_torch_keeps_its_traceback(monkeypatch):
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        fails_with(monkeypatch, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_a_network_that_cannot_take_the_images_is_refused_before_a_folder_is_made(tmp_path):
    out = tmp_path / "runs"
    answer = ddbench("run", "--dataset", "toy", "--network", "vgg11", "--out", out, home=tmp_path / "home")
    assert answer.code == 2
    assert "cannot take images of 8x8 pixels" in error_of(answer)
    assert not out.exists()


# ---------------------------------------------------------------------------------------------- datasets


def test_info_of_a_dataset_shows_sizes_classes_statistics_and_licence(tmp_path):
    answer = ddbench("info", "digits", home=tmp_path)
    assert answer.code == 0, answer.err
    for words_shown in ("1,294", "144", "359", "10: 0, 1, 2", "1 x 8 x 8", "meanstd", "CC BY 4.0", "https://"):
        assert words_shown in answer.out, words_shown


def test_info_of_a_dataset_as_json_counts_what_the_options_choose(tmp_path):
    answer = ddbench("info", "digits", "-o", "dataset.classes=3,5", "-o", "dataset.limit=100", "--json", home=tmp_path)
    (about,) = answer.json
    measured = about["data"]["measured"]
    assert measured["classes"] == ["3", "5"]
    assert measured["train images"] + measured["validation images"] == 100
    assert len(measured["digest"]) == 64


def test_info_of_data_that_are_not_here_downloads_nothing_and_says_what_is_missing(tmp_path):
    answer = ddbench("info", "cifar10", home=tmp_path)
    assert answer.code == 0
    assert "no data here" in answer.err
    assert "ddbench prepare cifar10" in answer.err
    assert "cs.toronto.edu" in answer.out
    assert not list(tmp_path.rglob("*.tar.gz"))


def test_info_of_a_dataset_that_does_not_tell_whether_its_data_are_here_says_so_in_one_sentence(tmp_path, monkeypatch):
    plugin = registry().get("dataset", "toy")
    silent = make_dataclass("Silent", [], namespace={"name": "silent", "load": lambda self: None})
    known = registry().plugins | {("dataset", "silent"): replace(plugin, name="silent", cls=silent)}
    monkeypatch.setattr(registry(), "plugins", known)
    answer = ddbench("info", "silent", home=tmp_path)
    assert answer.code == 0, answer.err
    assert " ".join(answer.err.split()) == (
        "dataset 'silent' does not tell if data are here; `ddbench prepare silent` gets them"
    )


@pytest.mark.parametrize("name", ["DDBENCH_HOME", "DDBENCH_DATA"])
def test_a_folder_of_a_user_that_the_system_does_not_know_is_refused_in_one_sentence(monkeypatch, name):
    monkeypatch.setenv(name, "~no-such-user/cache")
    answer = ddbench("prepare", "cifar10")
    assert answer.code == 2
    assert f"{name} is ~no-such-user/cache" in error_of(answer)


def test_prepare_loads_a_dataset_and_shows_what_it_is(tmp_path):
    answer = ddbench("prepare", "toy", "-o", "dataset.size=16", home=tmp_path)
    assert answer.code == 0, answer.err
    assert "1 x 16 x 16" in answer.out
    assert ddbench("prepare", "toy", "--json", home=tmp_path).json["measured"]["classes"] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["prepare", "mnits"], 2, "did you mean 'mnist'?"),
        (["prepare", "toy", "-o", "matcher.steps=3"], 2, "only options of the dataset"),
        (["prepare", "toy", "-o", "dataset.limt=3"], 2, "did you mean 'limit'?"),
        (["info", "tesla", "-o", "dataset.limit=3"], 2, "is not a dataset"),
        (["prepare", "images", "-o", "dataset.root=/nowhere/at/all"], 3, "/nowhere/at/all"),
    ],
)
def test_prepare_and_info_refuse_in_one_sentence(tmp_path, arguments, code, said):
    answer = ddbench(*arguments, home=tmp_path)
    assert answer.code == code
    assert said in error_of(answer)


def test_images_that_were_left_out_are_named_and_counted_by_a_run(tmp_path):
    files = pictures.tree(train=8, test=4, size=(8, 8)) | {"train/dog/3.png": b"no picture"}
    root = pictures.folder(tmp_path / "photos", files)
    tiny = [
        w for name, value in options("random").items() if "per_class" not in name for w in ("-o", f"{name}={value}")
    ]
    arguments = ["run", "--dataset", f"images:{root}", "--matcher", "random", *tiny, "--no-ceiling", "--students", 1]
    answer = ddbench(*arguments, "--out", tmp_path / "runs", home=tmp_path / "home")
    assert answer.code == 3
    assert "train/dog/3.png" in error_of(answer)
    answer = ddbench(*arguments, "-o", "dataset.skip_broken=true", "--out", tmp_path / "runs", home=tmp_path / "home")
    assert answer.code == 0, answer.err
    assert "left out 1 of 24 images" in answer.err
    assert "train/dog/3.png" in answer.err


def test_progress_may_hold_text_on_a_terminal(monkeypatch):
    from rich.console import Console

    from ddbench.base.progress import Event
    from ddbench.cli import console

    terminal = Console(file=io.StringIO(), force_terminal=True, width=200)
    monkeypatch.setattr(console, "_console", lambda **_: terminal)
    with console.Display() as display:
        display(Event("skipped broken [red] images", 1, 2, {"files": "a[/b].png", "loss": 0.25}))
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.file.getvalue())
    (line,) = {text.strip() for text in re.split(r"[\r\n]+", shown) if "1/2" in text}
    assert line.startswith("skipped broken [red] images ")
    assert "1/2 files a[/b].png  loss 0.25 left" in line


def test_a_run_without_validation_images_selects_on_test_data_and_is_not_graded_by_other_rules(tmp_path):
    options = {"dataset.validation": 0, "protocol.epochs": 2, "protocol.checks": 1}
    options |= {"matcher.labels": "teacher", "matcher.teacher_epochs": 1}
    flags = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    words = ("--dataset", "toy", "--matcher", "random", "--protocol", "mtt-paper", "--no-random", *flags)
    made = ddbench("run", *words, "--out", tmp_path, "--students", 1, "--json", home=tmp_path / "home")
    assert made.code == 0
    assert {row["selection"] for row in made.json if row["matcher"] == "random"} == {"test"}
    (folder,) = tmp_path.glob("toy-random-single-ipc1-seed0-*")
    again = ddbench("eval", folder, "--protocol", "default", "--students", 1, home=tmp_path / "home")
    assert again.code == 2
    assert "there are no validation images to select on" in again.err
