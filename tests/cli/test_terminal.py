"""What a new user meets: the end of a run, names in one piece, a run from a file, completion, one word for errors."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from tiny import artefacts, ddbench, words

from ddbench.base.cache import read_json
from ddbench.base.machine import pick_device
from ddbench.cli import console
from ddbench.errors import UsageError
from ddbench.run.spec import resolve
from ddbench.suite.single import read_run


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A cache and a folder with two seeds of k-means beside random images and the ceiling."""
    base = tmp_path_factory.mktemp("terminal")
    arguments = [*words("k-means"), "--students", 2, "--repeats", 2, "--out", base / "runs"]
    return base, ddbench("run", *arguments, home=base / "home")


def run_of(base: Path, matcher: str = "k-means", seed: int = 0) -> Path:
    (found,) = base.glob(f"runs/toy-{matcher}-single-ipc1-seed{seed}-*")
    return found


def terminal(monkeypatch, width: int) -> io.StringIO:
    shown = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None, soft_wrap=True)
    monkeypatch.setattr(console, "_console", lambda **_: shown)
    return shown.file


def test_a_run_ends_with_what_came_out_beside_what_is_known_and_the_next_commands(shop):
    base, answer = shop
    said = answer.err.splitlines()
    (line,) = [text for text in said if text.startswith("k-means on toy, ipc 1: ")]
    number = r"\d+\.\d"
    interval = rf"\[{number}, {number}\]"
    assert re.fullmatch(
        rf"k-means on toy, ipc 1: {number} {interval}( ‡)? % \(2 seeds\); random images {number} %, "
        rf"the whole training set {number} %",
        line,
    )
    at = said.index(line)
    assert said[at + 1] == f"in 2 runs in {base / 'runs'}, the first {run_of(base).name}"
    assert said[at + 2].startswith(f"next: ddbench compare --out {base / 'runs'} and ddbench report ")


def test_quiet_runs_say_nothing_but_warnings(shop):
    base, _ = shop
    answer = ddbench("run", *words("k-means"), "--students", 2, "--out", base / "runs", "-q", home=base / "home")
    assert all(text.startswith("warning: ") for text in answer.err.splitlines())
    assert "k-means" in answer.out


def test_what_is_refused_was_not_started(tmp_path):
    for arguments in (words("random", "pdd", 1), words("random", ipc=1000)):
        answer = ddbench("run", *arguments, "--out", tmp_path / "runs")
        assert answer.code == 2
        assert "starting" not in answer.err


@pytest.mark.parametrize("width", [40, 80])
def test_names_of_runs_stay_in_one_piece_beside_their_accuracies(shop, width, monkeypatch):
    base, _ = shop
    out = terminal(monkeypatch, width)
    assert ddbench("list", "runs", "--out", base / "runs").code == 0
    row = next(text for text in out.getvalue().splitlines() if run_of(base).name in text)
    assert re.search(r" ok +\d+\.\d ± \d+\.\d +2", row)
    (entry,) = [
        e for e in ddbench("list", "runs", "--out", base / "runs", "--json").json if e["run"] == run_of(base).name
    ]
    assert entry["accuracy_mean"] > 0


def test_a_run_folder_holds_the_file_that_repeats_it(shop, tmp_path):
    base, _ = shop
    file = run_of(base, seed=1) / "run.toml"
    before = artefacts(base / "runs")
    answer = ddbench("run", "--config", file, "--no-ceiling", "--out", base / "runs", home=base / "home")
    assert answer.code == 0
    assert artefacts(base / "runs") == before
    again = ddbench("run", "--config", file, "--no-random", "--no-ceiling", "--out", tmp_path, home=base / "home")
    assert again.code == 0
    (made,) = tmp_path.iterdir()
    assert made.name == run_of(base, seed=1).name
    assert read_json(made / "spec.json") == read_json(run_of(base, seed=1) / "spec.json")
    assert (made / "distilled.safetensors").read_bytes() == (file.parent / "distilled.safetensors").read_bytes()


def test_flags_come_before_a_file(shop):
    file = run_of(shop[0]) / "run.toml"
    plan = ddbench(
        "run", "--config", file, "--seed", 7, "--ipc", 2, "-o", "protocol.steps=13", "--dry-run", "--json"
    ).json
    assert plan["folder"].startswith("toy-k-means-single-ipc2-seed7-")
    assert plan["options"]["protocol.steps"]["value"] == 13
    assert plan["options"]["network.width"]["value"] == 8


def test_a_run_without_its_file_is_read_and_gone_on_with(shop, tmp_path):
    base, _ = shop
    ddbench(
        "run",
        "--config",
        run_of(base) / "run.toml",
        "--no-random",
        "--no-ceiling",
        "--out",
        tmp_path,
        home=base / "home",
    )
    (made,) = tmp_path.iterdir()
    (made / "run.toml").unlink()
    assert ddbench("run", "--resume", made, "--no-random", "--no-ceiling").code == 0
    assert len(ddbench("compare", "--out", tmp_path, "--json").json) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('dataset = "toy"\nmatcher = ["dm", "random"]\nipc = 1\n', "describes 2 runs, and --config takes one"),
        ('dataset = "toy"\nmatcher = "dm"\n', "names no ipc"),
        ('dataset = "toy"\nmatcher = "dm"\nipc = 1\nsteps = 3\n', "has no key 'steps'"),
        ('dataset = "toy"\nmatcher = "dm"\nipc = 1\nstudents = 0\n', "students of"),
        ('dataset = "toy"\nmatcher = "dm"\nipc = 1\ndevice = 3\n', "device of"),
        ("dataset =", "is not TOML"),
    ],
)
def test_a_file_that_is_no_run_is_refused_in_one_sentence(tmp_path, text, said):
    (tmp_path / "run.toml").write_text(text)
    answer = ddbench("run", "--config", tmp_path / "run.toml", "--dry-run")
    assert answer.code == 2
    assert said in answer.err
    assert answer.err.count("error: ") == 1


def test_a_file_gives_the_run_whatever_its_options_hold(tmp_path):
    from ddbench.run.again import config_of
    from ddbench.run.spec import Request

    flags = (("dataset.root", "my photos/ä.zip"), ("dataset.classes", '"a, b",c'), ("matcher.labels", "teacher"))
    made = resolve(Request("images", "random", device="cpu", seed=3, flags=flags)).spec
    (tmp_path / "run.toml").write_text(config_of(made, 4))
    held = read_run(tmp_path / "run.toml")
    assert (held.seeds, held.students, held.threads) == ((3,), 4, made.threads)
    assert resolve(held.request.with_seed(3)).spec.key == made.key


def test_where_nothing_fits_the_values_of_the_column_are_named(shop):
    answer = ddbench("compare", "--out", shop[0] / "runs", "--where", "matcher=kmeans")
    assert answer.code == 2
    assert "no row meets matcher=kmeans: matcher is k-means, random" in answer.err


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cuda:1", "CUDA_VISIBLE_DEVICES=1"),
        ("mps", "auto, cpu, cuda"),
        ("tpu", "auto, cpu, cuda"),
        ("cuda:x", "cuda:x"),
    ],
)
def test_devices_that_are_not_for_us_are_refused_in_a_sentence(name, said):
    answer = ddbench("run", "--dataset", "toy", "--device", name, "--dry-run")
    assert answer.code == 2
    assert answer.err.startswith("error: ")
    assert said in answer.err


def test_the_first_gpu_is_cuda(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("cuda:0") == "cuda"
    with pytest.raises(UsageError):
        pick_device("mps")


@pytest.mark.parametrize("command", [["run", "--dataset", "toy"], ["check-grad"], ["eval", "x"]])
def test_a_negative_seed_is_refused(command):
    answer = ddbench(*command, "--seed", "-1")
    assert (answer.code, answer.out) == (2, "")
    assert "--seed" in answer.err
    assert answer.err.count("error:") == 1
    assert "Error:" not in answer.err


def test_eval_shows_every_metric_that_it_measured_and_goes_on_past_a_network_that_cannot(shop, tmp_path):
    base, _ = shop
    file = run_of(base) / "distilled.safetensors"
    answer = ddbench(
        "eval",
        file,
        "--network",
        "vgg11,mlp",
        "--metrics",
        "ece,curve",
        "--students",
        1,
        "--out",
        tmp_path,
        home=base / "home",
    )
    assert answer.code == 1
    assert "--network vgg11 is left out: network 'vgg11' cannot take images of 8x8 pixels" in answer.err
    shown = [text.split() for text in answer.out.splitlines()]
    assert any("ece" in text for text in shown)
    assert any(any(word.startswith("curve.") for word in text) for text in shown)
    alone = ddbench("eval", file, "--network", "vgg11", "--students", 1, "--out", tmp_path, home=base / "home")
    assert (alone.code, alone.out) == (2, "")


@pytest.mark.parametrize("command", [["report"], ["export", "--format", "npz", "--to", "{to}"]])
def test_out_is_where_runs_are_and_to_what_is_written(shop, tmp_path, command):
    words_ = [word.format(to=tmp_path / "set.npz") for word in command]
    key = run_of(shop[0]).name[-12:]
    answer = ddbench(words_[0], key, *words_[1:], "--out", shop[0] / "runs")
    assert answer.code == 0, answer.err
    assert Path(answer.out.strip()).exists()


def completed(line: str, shell: str = "bash", **more: str) -> list[str]:
    """What a shell is offered for the last word of a command line."""
    told = {"_DDBENCH_COMPLETE": f"{shell}_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv = ['ddbench']; from ddbench.cli.main import main; main()"],
        env=os.environ | told | more,
        capture_output=True,
        text=True,
        check=False,
    )
    return [text.partition(",")[2] for text in done.stdout.splitlines()]


def test_shells_complete_commands_options_and_runs(shop):
    assert completed("ddbench comp") == ["compare"]
    assert "--repeats" in completed("ddbench run --re")
    assert completed(f"ddbench report --out {shop[0] / 'runs'} toy-k-means-single-ipc1-seed1") == [
        run_of(shop[0], seed=1).name
    ]


@pytest.mark.parametrize(
    ("shell", "mark"), [("bash", "complete -o"), ("zsh", "#compdef ddbench"), ("fish", "complete --no-files")]
)
def test_the_script_of_each_shell_is_told(shell, mark):
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv = ['ddbench']; from ddbench.cli.main import main; main()"],
        env=os.environ | {"_DDBENCH_COMPLETE": f"{shell}_source"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert mark in done.stdout
