"""The device, and what a figure was measured with: peak memory, the machine, and the code."""

from __future__ import annotations

import ctypes
import resource
import shutil
import subprocess
import sys
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path

import torch

from ddbench.errors import UsageError

DEVICES = ("auto", "cpu", "cuda")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_freed_memory() -> None:
    """Have glibc keep what torch frees, until the next :func:`reset_peak`.

    By default every large tensor is mapped, zeroed page by page and unmapped again; a narrow ConvNet on one thread
    spends a third of its time on that (60 steps of 100 images, width 16: 2.2 s against 1.5 s). Same bits.
    """
    with suppress(OSError, AttributeError):  # another C library has other rules
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def reset_peak(device: str) -> None:
    """Start a new measurement, where the system can (CUDA; Linux for the CPU)."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        return
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what earlier work freed is not this work's
    with suppress(OSError):  # where it cannot, the peak is that of the whole process so far: an upper bound
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: str) -> int:
    """Peak since the last reset: allocated on CUDA, resident memory of the process on the CPU."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def anonymous_bytes() -> int:
    """Memory of this process that no file backs (Linux): what it allocated, without pages of mapped files."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError("this system does not tell anonymous memory apart")


def machine(device: str) -> dict[str, str]:
    """What a figure was measured on."""
    import platform

    name = torch.cuda.get_device_name() if device.startswith("cuda") else _processor()
    return {
        "device": name,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "system": f"{platform.system()} {platform.machine()}",
        "ddbench": code(),
    }


@cache
def code() -> str:
    """The version of this ddbench and, in a checkout, the commit: ``0.1.0 (131d6126a6)``, with ``-dirty`` for edits."""
    version, root, git = metadata.version("ddbench"), Path(__file__).resolve().parents[2], shutil.which("git")
    if git is None or not (root / ".git").exists():
        return version
    words = [git, "-C", str(root), "describe", "--always", "--abbrev=10", "--exclude=*", "--dirty"]
    said = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603  (fixed words, no shell)
    return f"{version} ({said.stdout.strip()})" if said.returncode == 0 else version


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return "CPU"


def pick_device(name: str, *, here: bool = True) -> str:
    """``auto`` is CUDA where there is one, and ``cuda:0`` is ``cuda``.

    Asking for CUDA without one is an error, unless it need not be ``here``.
    """
    name = "cuda" if name == "cuda:0" else name
    if name.startswith("cuda:") and name[5:].isdecimal():
        raise UsageError(
            f"--device {name} asked for, but ddbench works on one GPU, the first that it sees: run it with "
            f"CUDA_VISIBLE_DEVICES={name[5:]} and --device cuda"
        )
    if name not in DEVICES:
        raise UsageError(
            f"--device must be one of {', '.join(DEVICES)}, got {name!r}: ddbench runs on CPUs and on CUDA"
        )
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if here and name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda asked for, but torch finds no CUDA device here; use --device cpu or auto")
    return name
