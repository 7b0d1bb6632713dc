"""When code is compiled, what was compiled in this process, and how it came out.

``auto`` compiles where that pays for itself, a rule of shapes and counts: the same spec always runs the same code.
Whether code or precision is good enough for a shape is asked once, of a fresh network and random images: it is not the
iteration at which a run resumes that decides. What is asked, and against what it is checked, its users say
(:mod:`ddbench.trajectory.engine`).
"""

from __future__ import annotations

import importlib
import logging
import math
import os
import stat
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from types import FunctionType
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from ddbench.base.cache import digest, home
from ddbench.base.progress import note
from ddbench.train.network import Network
from ddbench.train.precision import Precision

Kind = Literal["auto", "eager", "compiled"]
_T = TypeVar("_T")
CODE_FOLDER = "TORCHINDUCTOR_CACHE_DIR"

# Relative errors, against eager code in float32, up to which other code is used: of the middle image's gradient, and
# of sums over the batch. Sums may differ more: where rounding takes a ReLU across its kink, one image's gradient
# jumps, and the sum's with it (2e-3 seen at width 128); a wrong formula is wrong for all of them. On CUDA neither side
# rounds to TF32, but kernels are chosen from more algorithms (Winograd's rounds more): nothing is measured there.
BOUNDS = {"cpu": (1e-4, 1e-2), "cuda": (1e-3, 1e-2)}
# The same for lower precisions. An error of a twentieth, at a right angle, takes a thousandth from what a step along
# the gradient gains. For fresh ConvNets of width 32 and 128, TF32 (its rounding imitated on a CPU) is off by 1 to 4 %,
# bfloat16 by 6 to 11 %. Errors grow with training: after 30 and 150 steps on noise those of TF32 are 5 and 14 %.
ROUNDED = (5e-2, 5e-2)
# Seconds that compiling both functions of one shape takes: 20 to 120 were seen on CPUs, 44 on the machine of an H200.
COMPILE_SECONDS = {"cpu": 120.0, "cuda": 44.0}
# Seconds that a compiled student step saves. On the CPU for each 10^9 operations of its forward pass and on one thread:
# between 0.03 (width 128, exact) and 0.11 (width 32, zero) were seen. On CUDA for a step, whatever its size: 17.1 ms
# became 5.5 for 100 images at width 128, where 633 launches bound the eager step. Smaller batches launch as many
# kernels, larger ones have more memory traffic to save: neither saves less.
SAVED = {"cpu": 0.03, "cuda": 0.0116}


@dataclass(frozen=True)
class Built:
    """How one shape came out: for the record of a stage. ``errors`` are those against eager code in float32."""

    engine: Literal["compiled", "eager"]
    precision: Precision
    shape: tuple[int, ...]
    curvature: bool
    seconds: float
    errors: dict[str, float] = field(default_factory=dict)
    reason: str | None = None  # why it is not what was asked for

    def note(self) -> dict[str, Any]:
        return {**{k: v for k, v in vars(self).items() if v is not None}, "shape": list(self.shape)}


_made: dict[str, tuple[Any, Built]] = {}
_used: dict[str, None] = {}  # keys of _made, in order
_settled: dict[str, dict[str, Any]] = {}  # notes of earlier processes, by the same keys


def verdicts() -> dict[str, dict[str, Any]]:
    """What was to be compiled or lowered since the last account, and how it came out, as JSON, by a key of each."""
    return {key: _made[key][1].note() for key in _used}


def account() -> list[dict[str, Any]]:
    """The verdicts; a new account begins."""
    notes = list(verdicts().values())
    _used.clear()
    return notes


def settle(notes: dict[str, dict[str, Any]]) -> None:
    """Hold to earlier verdicts: what a stage began with it ends with, wherever it is resumed. A new account begins."""
    _used.clear()
    _settled.update(notes)


def once(
    key: str, devices: Sequence[torch.device], make: Callable[[dict[str, Any] | None], tuple[_T, Built]], *, noted: bool
) -> _T:
    """What ``make`` makes, made once for each key; it is given the verdict of an earlier process, if there was one.

    ``noted`` puts the verdict on the account. Making draws no numbers that a caller would miss, and warns of nothing.
    """
    if noted:
        _used[key] = None
    if key not in _made:
        with torch.random.fork_rng(devices), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about parts of itself
            _made[key] = make(_settled.get(key))
    return _made[key][0]


def pays(network: Network, batch: int, steps: int) -> bool:
    """Whether ``steps`` student steps on ``batch`` images win back the time of compiling: a rule, not a measurement.

    Measured on CPUs and on CUDA; never elsewhere.
    """
    device = network.device.type
    if device not in SAVED:
        return False
    if device == "cuda":
        return steps * SAVED[device] > COMPILE_SECONDS[device]
    saved = SAVED[device] * batch * steps / 1e9 / torch.get_num_threads()  # seconds for an operation of a forward pass
    # Counting loads torch's compiler, which takes seconds: not where no network of this size could pay. A parameter
    # works once at each position of the image, at most.
    most = 2 * network.parameters * math.prod(network.shape[1:])
    return most * saved > COMPILE_SECONDS[device] and forward_flops(network) * saved > COMPILE_SECONDS[device]


def ready() -> None:
    """Before torch compiles: what it makes is kept under ``DDBENCH_HOME`` for other runs, and it warns of nothing.

    ``TORCHINDUCTOR_CACHE_DIR`` is another folder for it. What is in it is torch's, found by code, shapes and versions.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir  # loads the whole compiler

    if os.environ.get(CODE_FOLDER) in (None, default_cache_dir()):  # parts of torch set it to their own when they load
        folder = home() / f"compiled-{os.getuid()}"
        if _private(folder):
            os.environ[CODE_FOLDER] = str(folder)
        else:
            note(f"{folder} is not this user's alone, so compiled code is not kept there: it would be run")
    if not torch.cuda.is_available():  # then the module tells, once it is loaded, of every toolkit that it finds
        logger = logging.getLogger("torch.utils.cpp_extension")
        before, logger.disabled = logger.disabled, True
        with redirect_stderr(StringIO()), suppress(ImportError):
            importlib.import_module(logger.name)
        logger.disabled = before


def _private(folder: Path) -> bool:
    """Whether a folder, made where there is none, is this user's and closed to everybody else."""
    with suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
        return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
    return False


_flops: dict[str, int] = {}


def forward_flops(network: Network) -> int:
    """Multiplications and additions of a forward pass of one image, counted on the meta device."""
    from torch.utils.flop_counter import FlopCounterMode  # loads Triton, which most commands have no use for

    key = digest(network.identity)
    if key not in _flops:
        shapes = Network(network.source, network.shape, network.classes, torch.device("meta"), network.dtype)
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            images = torch.empty(2, *network.shape, dtype=network.dtype)  # batch norm wants more than one
            shapes.apply(torch.empty(network.length, dtype=network.dtype), images)
        _flops[key] = counter.get_total_flops() // 2
    return _flops[key]


def badness(error: float) -> float:
    """What is not a number is the worst."""
    return math.inf if math.isnan(error) else error


def relative_error(found: Tensor, expected: Tensor, scale: Tensor | None = None) -> float:
    """The relative error of a vector or number; of rows, the median of theirs."""
    rows = 1 if expected.ndim < 2 else len(expected)
    off = (found.double() - expected.double()).view(rows, -1).norm(dim=1)
    size = expected.double().view(rows, -1).norm(dim=1) if scale is None else scale.double()
    return float((off / size.clamp_min(1e-30)).median())


def fresh(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function with code of its own: dynamo counts recompilations by code object, and gives up after a few."""
    assert isinstance(function, FunctionType)
    return FunctionType(
        function.__code__.replace(), function.__globals__, function.__name__, None, function.__closure__
    )


def replayed(function: Callable[..., Any], like: Tensor) -> Callable[..., Any]:
    """On CUDA, marks each call as the start of a replay, so that results of earlier calls may be overwritten."""
    if not like.is_cuda:
        return function

    def once(*arguments: Tensor) -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        return function(*arguments)

    return once
