"""Around every call of a plugin: what belongs to the whole process is afterwards what it was before.

A plugin is trusted code, and other people's results must still not depend on it: a default dtype that one of them sets
would otherwise be that of everything after it, under keys that know nothing of it. Whatever a plugin raises that is no
error of ddbench becomes a :class:`PluginError` that names it, ``sys.exit`` included; its prints go to stderr, since
stdout holds data. An entry and an exit take about ten microseconds, or a hundred with the generators.
"""

from __future__ import annotations

import _signal  # type: ignore[reportMissingImports] # signal.getsignal takes twenty times as long
import dis
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from io import TextIOBase
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch

from ddbench.base.progress import note
from ddbench.errors import DDBenchError, PluginError, out_of_memory

_SAID: set[tuple[str, str]] = set()  # notes are given once
LONGEST = 300  # characters of what a plugin raised that a sentence quotes
_RAISE = dis.opmap["RAISE_VARARGS"]
_READ_BY_US = ("DDBENCH_", "HOME", "XDG_CACHE_HOME")  # variables that say where results go, and with how many threads


class guarded:  # noqa: N801 - used as a function, and called around every step: a generator would take longer
    """``with guarded("step() of matcher 'mine'"):`` around a call of a plugin.

    ``sown`` says that the block is inside a ``Seed.scope``, which gives the generators back; ``mixed``, that it holds
    code of ddbench as well, whose exceptions pass: then only exits are the plugin's. Raises PluginError for what a
    plugin should not raise; errors of ddbench, full disks and memory that is short pass as they are, and so does the
    KeyboardInterrupt of a signal.
    """

    __slots__ = ("_drawn", "_held", "_streams", "mixed", "sown", "what")

    def __init__(self, what: str, *, sown: bool = False, mixed: bool = False) -> None:
        self.what = what
        self.sown = sown
        self.mixed = mixed

    def __enter__(self) -> None:
        self._held = [look() for look in _LOOKS]
        self._drawn = None if self.sown else _generators()
        self._streams = _silence()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        _speak(self._streams)
        if self._held != [look() for look in _LOOKS]:
            self._restore()
        if self._drawn is not None:
            _give_back(self._drawn)
        if error is None or _passes(error, trace) or (self.mixed and isinstance(error, Exception)):
            return
        reason = told(error)
        raise PluginError(f"{self.what} raised {reason}{_place(trace)}", reason) from error

    def _restore(self) -> None:
        for part, before in zip(PARTS, self._held, strict=True):
            with suppress(RuntimeError, OSError, ValueError):  # a working folder that is gone, say
                if part.look() != before:
                    part.restore(before)
                    if part.name and (self.what, part.name) not in _SAID:
                        _SAID.add((self.what, part.name))
                        note(f"{self.what} changed {part.name}, which is set back: others depend on it")


def told(error: BaseException) -> str:
    """What was raised as one line: its type, and its words as far as it can say them."""
    try:
        words = " ".join(str(error).split())
    except BaseException:  # noqa: BLE001 - a plugin's exception is a plugin's code
        words = "(it cannot say what)"
    words = "".join(c if c.isprintable() else "?" for c in words)
    cut = words if len(words) <= LONGEST else f"{words[:LONGEST]}..."
    return f"{type(error).__name__}: {cut}".removesuffix(": ")


def _passes(error: BaseException, trace: TracebackType) -> bool:
    """Whether an error is not the plugin's own."""
    if isinstance(error, KeyboardInterrupt):
        return not _raised_by_a_plugin(trace)
    return isinstance(error, (DDBenchError, OSError)) or out_of_memory(error)


def _raised_by_a_plugin(trace: TracebackType) -> bool:
    """Whether a ``raise`` of its own brought it, and no signal between any two instructions."""
    last = _frames(trace)[-1]
    name = last.tb_frame.f_globals.get("__name__", "")
    ours = name == "ddbench" or name.startswith("ddbench.")  # the handler of signals
    return not ours and last.tb_frame.f_code.co_code[last.tb_lasti] == _RAISE


def _frames(trace: TracebackType | None) -> list[TracebackType]:
    found = []
    while trace is not None:
        found.append(trace)
        trace = trace.tb_next
    return found


def _place(trace: TracebackType) -> str:
    """Where in its own file a plugin was: the innermost line of the file that was called."""
    inside = _frames(trace)[1:]
    if not inside:
        return ""
    file = inside[0].tb_frame.f_code.co_filename
    line = [part.tb_lineno for part in inside if part.tb_frame.f_code.co_filename == file][-1]
    return f" (at {Path(file).name}:{line})"


# ---------------------------------------------------------------------------- what belongs to the whole process
# Some of it is asked of torch._C: the public names take ten times as long.


class _Part(NamedTuple):
    look: Callable[[], Any]
    restore: Callable[[Any], object]
    name: str = ""  # for people; libraries that a plugin loads filter warnings and the like, which nobody need know


def _default_device() -> Any:
    return getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)


def _set_default_device(before: Any) -> None:
    torch.set_default_device(None if before is None else before.device)


def _cut_modes(before: int) -> None:
    while torch._C._len_torch_function_stack() > before:
        torch._C._pop_torch_function_stack()


def _set_inference(before: bool) -> None:
    mode = torch.inference_mode(before)
    mode.__enter__()
    _ENTERED.append(mode)  # it ends when it is collected


_PRECISIONS = (
    ("generic", "all"),
    ("cuda", "conv"),
    ("cuda", "rnn"),
    ("cuda", "matmul"),
    ("mkldnn", "conv"),
    ("mkldnn", "matmul"),
)
_READ_PRECISION = torch._C._get_fp32_precision_getter


def _products() -> tuple[str | None, list[str]]:
    """What float32 products are rounded to, by torch's older switch and by its newer ones."""
    try:
        older = torch.get_float32_matmul_precision()
    except RuntimeError:  # they disagree: somebody set newer ones
        older = None
    return older, [_READ_PRECISION(*which) for which in _PRECISIONS]


def _set_products(before: tuple[str | None, list[str]]) -> None:
    older, newer = before
    if older is not None:
        torch.set_float32_matmul_precision(older)
    for which, value in zip(_PRECISIONS, newer, strict=True):
        torch._C._set_fp32_precision_setter(*which, value)


def _set_filters(before: tuple[Any, ...]) -> None:
    warnings.filters[:] = before  # type: ignore[index]
    warnings._filters_mutated()  # type: ignore[attr-defined]


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _folder() -> str | None:
    try:
        return os.getcwd()  # noqa: PTH109 - around every step
    except FileNotFoundError:
        return None


def _variables() -> dict[Any, Any]:
    return dict(getattr(os.environ, "_data", os.environ))


def _set_variables(before: dict[Any, Any]) -> None:
    """Those that ddbench reads; plugins and libraries may talk to one another by the rest."""
    held = getattr(os.environ, "_data", {})
    for name in held.keys() | before.keys():
        if os.fsdecode(name).startswith(_READ_BY_US) and held.get(name) != before.get(name):
            if name in before:
                os.environ[os.fsdecode(name)] = os.fsdecode(before[name])
            else:
                del os.environ[os.fsdecode(name)]


def _handlers() -> tuple[Any, Any]:
    return _signal.getsignal(2), _signal.getsignal(15)  # SIGINT, SIGTERM


def _set_handlers(before: tuple[Any, Any]) -> None:
    if threading.current_thread() is threading.main_thread():
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(number, handler)


def _set_deterministic(before: int) -> None:
    torch.set_deterministic_debug_mode(before)


_ENTERED: list[Any] = []
_CUDNN = ("enabled", "benchmark", "deterministic")


def _cudnn() -> tuple[bool, ...]:
    return torch._C._get_cudnn_enabled(), torch._C._get_cudnn_benchmark(), torch._C._get_cudnn_deterministic()


def _set_cudnn(before: tuple[bool, ...]) -> None:
    for name, value in zip(_CUDNN, before, strict=True):
        setattr(torch.backends.cudnn, name, value)


def _set_mkldnn(before: bool) -> None:
    torch.backends.mkldnn.enabled = before  # type: ignore[assignment]


_HOOKED = tuple(  # on every module of the process
    held
    for name, held in vars(torch.nn.modules.module).items()
    if name.startswith("_global_") and isinstance(held, dict)
)


def _hooks() -> tuple[tuple[Any, ...], ...]:
    return tuple(tuple(held.items()) for held in _HOOKED)


def _set_hooks(before: tuple[tuple[Any, ...], ...]) -> None:
    for held, items in zip(_HOOKED, before, strict=True):
        held.clear()
        held.update(items)


PARTS = (
    _Part(torch.get_default_dtype, torch.set_default_dtype, "torch's default dtype"),
    _Part(_default_device, _set_default_device, "torch's default device"),
    _Part(torch._C._len_torch_function_stack, _cut_modes),
    _Part(torch.get_num_threads, torch.set_num_threads, "torch's number of threads"),
    _Part(torch.is_inference_mode_enabled, _set_inference, "torch's inference mode"),
    _Part(torch.is_grad_enabled, torch._C._set_grad_enabled, "whether torch computes gradients"),
    _Part(torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    _Part(torch.get_deterministic_debug_mode, _set_deterministic, "whether torch is deterministic"),
    _Part(torch._C._get_mkldnn_enabled, _set_mkldnn, "whether torch uses oneDNN"),
    _Part(_cudnn, _set_cudnn, "how torch uses cuDNN"),
    _Part(_products, _set_products, "torch's precision of products"),
    _Part(_hooks, _set_hooks, "the hooks on all modules"),
    _Part(lambda: tuple(warnings.filters), _set_filters),
    _Part(np.geterr, lambda before: np.seterr(**before)),
    _Part(_folder, lambda before: before and os.chdir(before), "the working folder"),
    _Part(_umask, os.umask),
    _Part(_variables, _set_variables),
    _Part(_handlers, _set_handlers),
)
_LOOKS = tuple(part.look for part in PARTS)


def _generators() -> tuple[Any, ...]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda


def _give_back(before: tuple[Any, ...]) -> None:
    python, numpy, torchs, cuda = before
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(torchs)
    if cuda:
        torch.cuda.set_rng_state_all(cuda)
    torch.set_flush_denormal(False)  # nobody can ask whether it is set, and nothing in ddbench sets it


# ---------------------------------------------------------------------------- where prints go


class _Stderr(TextIOBase):
    """What a plugin finds as ``sys.stdout``; it may be closed without harm."""

    def write(self, text: str) -> int:  # type: ignore[override]
        errors = sys.stderr
        return len(text) if errors is None else errors.write(text)

    def flush(self) -> None:
        _flush(sys.stderr)

    def close(self) -> None: ...


_STDERR = _Stderr()


def _silence() -> tuple[Any, Any, int | None]:
    """Send what is printed to stderr, also by libraries and processes that know only the number of the stream."""
    before = sys.stdout
    _flush(before)
    _flush(sys.__stdout__)
    sys.stdout = _STDERR
    kept = None
    try:
        kept = os.dup(1)
        os.dup2(2, 1)
    except OSError:  # one of them is closed
        pass
    return before, sys.stderr, kept


def _speak(before: tuple[Any, Any, int | None]) -> None:
    stream, errors, kept = before
    _flush(sys.__stdout__)
    sys.stdout, sys.stderr = stream, errors
    if kept is not None:
        os.dup2(kept, 1)
        os.close(kept)


def _flush(stream: Any) -> None:
    try:  # noqa: SIM105 - contextlib.suppress takes longer, and this is around every step
        stream.flush()
    except Exception:  # noqa: BLE001, S110 - closed, or gone: whoever writes to it will say so
        pass
