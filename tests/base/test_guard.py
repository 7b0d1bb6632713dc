"""Around a call of a plugin: the process is as it was, what it printed is on stderr, and its exits are its failures."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from ddbench.base import guard
from ddbench.base.guard import guarded
from ddbench.base.progress import noting
from ddbench.errors import DataError, InterruptedRun, PluginError

KEPT: list[Any] = []


def entered(mode: Any) -> None:
    mode.__enter__()
    KEPT.append(mode)


CHANGES: dict[str, Callable[[], object]] = {
    "default dtype": lambda: torch.set_default_dtype(torch.float64),
    "default device": lambda: torch.set_default_device("meta"),
    "a device that is entered and not left": lambda: entered(torch.device("meta")),
    "threads": lambda: torch.set_num_threads(3),
    "gradients": lambda: torch.set_grad_enabled(False),
    "inference mode": lambda: entered(torch.inference_mode()),
    "anomaly detection": lambda: torch.autograd.set_detect_anomaly(True),
    "determinism": lambda: torch.use_deterministic_algorithms(True),
    "hooks on all modules": lambda: torch.nn.modules.module.register_module_forward_hook(lambda *_: None),
    "hooks with names": lambda: torch.nn.modules.module.register_module_forward_hook(lambda *_: None, with_kwargs=True),
    "oneDNN": lambda: setattr(torch.backends.mkldnn, "enabled", False),
    "cuDNN": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "precision": lambda: torch.set_float32_matmul_precision("medium"),
    "precision by the newer switch": lambda: setattr(torch.backends.mkldnn.matmul, "fp32_precision", "bf16"),
    "warnings": lambda: warnings.simplefilter("ignore"),
    "NumPy's errors": lambda: np.seterr(all="raise"),
    "working folder": lambda: os.chdir("/"),
    "umask": lambda: os.umask(0),
    "where results go": lambda: os.environ.update(DDBENCH_HOME="/elsewhere", DDBENCH_NEW="1"),
    "signals": lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN),
    "torch's generator": lambda: torch.manual_seed(1),
    "NumPy's generator": lambda: np.random.seed(1),
    "Python's generator": lambda: random.seed(1),
    "denormal numbers": lambda: torch.set_flush_denormal(True),
    "stdout": lambda: setattr(sys, "stdout", None),
    "a closed stdout": lambda: sys.stdout.close(),
}


def process() -> list[Any]:
    """All that a plugin may change and others depend on."""
    generators = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    named = {name: value for name, value in os.environ.items() if name.startswith("DDBENCH_")}
    others = [look() for look in guard._LOOKS if look is not guard._variables]
    return [*others, generators, named, sys.stdout, sys.stderr, float(torch.tensor([1e-40]).mul(1))]


@pytest.mark.parametrize("what", CHANGES)
def test_a_call_leaves_the_process_as_it_was(what):
    torch.use_deterministic_algorithms(False)  # torch loads modules for it, which filter warnings
    before = process()
    with guarded("a plugin"):
        CHANGES[what]()
    assert process() == before
    assert not sys.stderr.closed


@pytest.mark.parametrize("what", ["default dtype", "threads"])
def test_a_call_that_fails_leaves_the_process_as_it_was(what):
    before = process()
    with pytest.raises(PluginError), guarded("a plugin"):
        fails(ValueError(), CHANGES[what])
    assert process() == before


def test_what_was_set_back_is_said_once():
    notes: list[str] = []
    with noting(notes.append):
        for _ in range(3):
            with guarded("step() of matcher 'loud'"):
                torch.set_default_dtype(torch.float64)
                warnings.simplefilter("ignore")
    assert notes == ["step() of matcher 'loud' changed torch's default dtype, which is set back: others depend on it"]


def test_inside_a_scope_the_generators_are_left_to_the_scope():
    with guarded("a plugin", sown=True):
        torch.manual_seed(5)
    assert torch.initial_seed() == 5


class Odd(BaseException):
    pass


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (SystemExit(0), "SystemExit: 0"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (GeneratorExit(), "GeneratorExit"),
        (Odd("no exception"), "Odd: no exception"),
        (Mute(), "Mute: (it cannot say what)"),
        (ValueError("two\nlines \x1b[31m\u202e"), "ValueError: two lines ?[31m?"),
        (StopIteration("over"), "StopIteration: over"),
    ],
    ids=lambda given: type(given).__name__ if isinstance(given, BaseException) else "",
)
def test_whatever_a_plugin_raises_is_its_failure_in_one_sentence_that_says_where(error, said):
    with pytest.raises(PluginError) as caught, guarded("step() of matcher 'mine'"):
        fails(error)
    assert str(caught.value).startswith(f"step() of matcher 'mine' raised {said} (at test_guard.py:")
    assert caught.value.reason == said
    assert caught.value.__cause__ is error


def fails(error: BaseException, first: Callable[[], object] = list) -> None:
    first()
    raise error


def test_a_long_message_is_cut():
    with pytest.raises(PluginError) as caught, guarded("a plugin"):
        raise ValueError("x" * 100_000)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "error",
    [DataError("no data"), InterruptedRun("stop"), MemoryError(), OSError(28, "full"), RuntimeError("out of memory")],
    ids=lambda error: type(error).__name__,
)
def test_what_is_not_the_plugins_failure_passes(error):
    with pytest.raises(type(error)) as caught, guarded("a plugin"):
        raise error
    assert caught.value is error


@pytest.fixture
def heard():
    """SIGINT as a terminal's process hears it: one that a shell started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
def test_the_interruption_of_a_signal_is_not_the_plugins():
    def waits() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        sum(range(10_000_000))

    with pytest.raises(KeyboardInterrupt), guarded("a plugin"):
        waits()


def test_where_code_of_ddbench_is_in_the_block_only_exits_are_the_plugins():
    with pytest.raises(ZeroDivisionError), guarded("a network", mixed=True):
        1 / 0
    with pytest.raises(PluginError, match="a network raised SystemExit"), guarded("a network", mixed=True):
        sys.exit(0)


def test_guards_nest():
    def inner() -> None:
        torch.set_default_dtype(torch.float64)
        with guarded("inner"):
            fails(ValueError(), lambda: torch.set_default_dtype(torch.float32))

    with pytest.raises(PluginError, match="inner raised ValueError"), guarded("outer"):
        inner()
    assert torch.get_default_dtype() == torch.float32


PRINTS = """
import os, subprocess, sys
from ddbench.base.guard import guarded
print("data before")
with guarded("a plugin"):
    print("printed")
    print("to the first stream", file=sys.__stdout__)
    os.write(1, b"written\\n")
    subprocess.run(["echo", "by another process"])
print("data after")
"""


def test_prints_of_a_plugin_go_to_stderr_whichever_way_they_are_made():
    done = subprocess.run([sys.executable, "-c", PRINTS], capture_output=True, text=True, check=True)
    assert done.stdout == "data before\ndata after\n"
    for words in ("printed", "to the first stream", "written", "by another process"):
        assert words in done.stderr


def test_without_streams_a_plugin_is_called_all_the_same():
    code = "from ddbench.base.guard import guarded\nwith guarded('x'): print('y')"
    closed = ["sh", "-c", 'exec "$0" -c "$1" >&- 2>&-', sys.executable, code]
    assert subprocess.run(closed, check=False).returncode == 0
