"""Runs small enough for tests: toy data, a ConvNet of width 8, a few steps; and processes that may be killed."""

from __future__ import annotations

import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from ddbench.data.dataset import Dataset
from ddbench.run.run import Run, Settings
from ddbench.run.spec import Request, RunSpec, resolve

RULES = {
    "dataset.per_class": 20,
    "network.width": 8,
    "experts.batch": 9,
    "experts.lr": 0.01,
    "protocol.steps": 12,
    "protocol.judges": 1,
    "protocol.lrs": "0.03",
    "protocol.checks": 2,
    "protocol.ceiling_epochs": 1,
}
TRAJECTORY = {
    "matcher.steps": 4,
    "matcher.syn_steps": 3,
    "matcher.experts": 2,
    "matcher.span": 1,
    "matcher.max_start": 2,
    "matcher.lr_img": 10.0,
    "matcher.lr_lr": 1e-6,
    "matcher.lr_init": 0.01,
    "matcher.momentum": 0.5,
}
THREAD = {"DDBENCH_THREADS": "1", "OMP_NUM_THREADS": "1"}


def options(matcher: str = "tesla", scheduler: str = "single", **more: Any) -> dict[str, Any]:
    """The options of a tiny run; ``matcher__steps=2`` in ``more`` is ``matcher.steps=2``."""
    chosen = RULES | (TRAJECTORY if matcher in ("tesla", "mtt") else {})
    if scheduler == "pdd":
        chosen = chosen | {"scheduler.stages": 2}
    if matcher == "random" and more.get("matcher__labels") == "teacher":
        chosen = chosen | {"matcher.teacher_epochs": 1}
    return chosen | {name.replace("__", "."): value for name, value in more.items()}


def words(matcher: str = "tesla", scheduler: str = "single", ipc: int = 1, **more: Any) -> list[str]:
    """The same as arguments of ``ddbench run`` (and ``experts``)."""
    base = ["--dataset", "toy", "--matcher", matcher, "--scheduler", scheduler, "--ipc", str(ipc)]
    return base + [w for name, value in options(matcher, scheduler, **more).items() for w in ("-o", f"{name}={value}")]


def request(matcher: str = "tesla", scheduler: str = "single", ipc: int = 1, seed: int = 0, **more: Any) -> Request:
    flags = tuple((name, str(value)) for name, value in options(matcher, scheduler, **more).items())
    return Request("toy", matcher, scheduler, ipc=ipc, seed=seed, device="cpu", flags=flags)


def spec(matcher: str = "tesla", scheduler: str = "single", ipc: int = 1, seed: int = 0, **more: Any) -> RunSpec:
    with patch.dict(os.environ, THREAD):
        return resolve(request(matcher, scheduler, ipc, seed, **more)).spec


def run(out: Path, made: RunSpec, dataset: Dataset | None = None, students: int = 2, seconds: float = 20.0) -> Path:
    """Carry a run out in this process; returns its folder."""
    work = Run(made, dataset or made.dataset.load(), Settings(out, students, seconds))
    work.execute()
    return work.folder


@dataclass(frozen=True)
class Answer:
    """What a command did: its exit code, and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def ddbench(*arguments: Any, home: Path | None = None) -> Answer:
    """Run a command line in this process, as the ``ddbench`` script does; a traceback fails the test."""
    from ddbench.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    argv = ["ddbench", *map(str, arguments)]
    place = THREAD | ({"DDBENCH_HOME": str(home)} if home else {})
    with patch.object(sys, "argv", argv), patch.dict(os.environ, place), redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code
    assert isinstance(code, int)
    return Answer(code, out.getvalue(), err.getvalue())


# A process that has imported torch once and forks for each command. What runs is the real command line in a
# real process of its own, which a signal can end; only its imports are shared.
_SERVER = """
import json, os, signal, sys
import torch, pandas, pydantic, sklearn, safetensors.torch, torch.fx.experimental.symbolic_shapes
import ddbench.cli.main, ddbench.cli.run, ddbench.files.target, ddbench.results.compare
import ddbench.run.references, ddbench.run.run, ddbench.run.spec
import ddbench_tesla, ddbench_pdd, ddbench_schedulers, ddbench_trajectories, ddbench_networks, ddbench_datasets
import ddbench_coresets, ddbench_decoupled, ddbench_matching, ddbench_meta, ddbench_metrics
import ddbench.cli.suite, ddbench.plugins, ddbench.suite.runner, ddbench.suite.status
import PIL.JpegImagePlugin, PIL.PngImagePlugin, rich.console, rich.progress, rich.table
torch.set_num_threads(1)
# What any process finds out anew, and what comes with ddbench does not change; a child loads plugins of its own.
ddbench.run.spec.resolve(ddbench.run.spec.Request("toy", "tesla", "pdd", ipc=3, device="cpu"))
ddbench.plugins.registry.cache_clear()

def at_event(what, number, left):
    # the signal arrives while an event is being reported, the left-th of its kind
    from ddbench.cli.console import Display
    show = Display.__call__
    def shown(self, event):
        nonlocal left
        left -= event.what.startswith(what)
        if left == 0:
            left = -1
            os.kill(os.getpid(), number)
        show(self, event)
    Display.__call__ = shown

def at_sync(number, left):
    # the signal arrives just before the left-th fsync: what is not on disk yet may or may not be
    sync = os.fsync
    def synced(handle):
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), number)
        sync(handle)
    os.fsync = synced

def child(order):
    os.environ.update(order["env"])
    sys.path[:0] = order["path"]
    # Python takes bytecode for a source's where second and size agree, and a test edits a plugin within a second
    sys.dont_write_bytecode = True
    for stream, path in ((1, order["out"]), (2, order["err"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), stream)
    os.close(0)
    if "event" in order:
        at_event(order["event"], order["signal"], order["count"])
    if "sync" in order:
        at_sync(order["signal"], order["sync"])
    sys.argv = ["ddbench", *order["words"]]
    code = 1
    try:
        ddbench.cli.main.main()
    except SystemExit as end:
        code = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)

print("ready", flush=True)
for line in sys.stdin:
    order = json.loads(line)
    if "words" in order:
        pid = os.fork()
        if pid == 0:
            child(order)
        print(pid, flush=True)
    else:
        pid, status = os.waitpid(order["pid"], os.WNOHANG if order["poll"] else 0)
        print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None), flush=True)
"""


class Forks:
    """Starts ``ddbench`` commands as processes, without importing torch for each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._server = subprocess.Popen(
            [sys.executable, "-P", "-c", _SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | THREAD,
            start_new_session=True,
        )
        self._count = 0
        assert self._read() == "ready"

    def _read(self) -> str:
        assert self._server.stdout is not None
        return self._server.stdout.readline().strip()

    def ask(self, order: dict[str, Any]) -> Any:
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        return json.loads(self._read())

    def start(self, arguments: list[Any], home: Path, path: tuple[str, ...] = (), **moment: Any) -> Command:
        """Start a command. ``event, signal, count`` or ``sync, signal`` make it signal itself at that moment."""
        self._count += 1
        out, err = (self.folder / f"{self._count}.{name}" for name in ("out", "err"))
        order = {"words": [str(a) for a in arguments], "env": {**THREAD, "DDBENCH_HOME": str(home)}, "path": list(path)}
        pid = self.ask(order | {"out": str(out), "err": str(err)} | moment)
        return Command(self, pid, out, err)

    def run(self, arguments: list[Any], home: Path, path: tuple[str, ...] = (), **moment: Any) -> Answer:
        return self.start(arguments, home, path, **moment).wait()

    def close(self) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait(60)
        self._server.stdout.close()


@dataclass(frozen=True)
class Command:
    """A command that runs in a process of its own."""

    forks: Forks
    pid: int
    out: Path
    err: Path

    def poll(self) -> Answer | None:
        """What it did, if it has ended; ask no more after that."""
        code = self.forks.ask({"pid": self.pid, "poll": True})
        return None if code is None else self._answer(code)

    def wait(self) -> Answer:
        return self._answer(self.forks.ask({"pid": self.pid, "poll": False}))

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)  # the server has not reaped it, so the pid is still its own

    def end_after(self, seconds: float, number: signal.Signals) -> Answer:
        """Send a signal after some time, unless the command has ended by itself."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if answer := self.poll():
                return answer
            time.sleep(0.002)
        self.signal(number)
        return self.wait()

    def _answer(self, code: int) -> Answer:
        read = [path.read_text() if path.exists() else "" for path in (self.out, self.err)]
        return Answer(code, *read)


def command_in(text: str) -> list[str]:
    """The arguments of the ``ddbench ...`` command that a message ends with."""
    assert "ddbench " in text, text
    return shlex.split(text.strip()[text.index("ddbench ") :])[1:]


def artefacts(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file below a folder, but locks: its bytes and the time of its last change."""
    found = [p for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.endswith("lock")]
    return {str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns) for p in found}
