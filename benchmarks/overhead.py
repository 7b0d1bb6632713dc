"""The share of a run that is spent outside torch's kernels: in Python, in autograd's bookkeeping, in files.

    python benchmarks/overhead.py --matcher tesla --ipc 10

A run on digits, from nothing, with the caches empty, in a process that has loaded torch and the plugins. It needs
Linux's ``perf`` (Debian: ``apt-get install linux-perf``), which notes the native stack ``--rate`` times in a second of
CPU time. Nothing is added to the run but pauses, and those fall between samples. The innermost frame that says where it
belongs decides:

| place | |
| --- | --- |
| arithmetic | loops over numbers: vectorised ones, oneDNN's, MKL's |
| set-up | the rest of what torch's dispatcher calls for the CPU: preparing loops, allocating, oneDNN's descriptors |
| autograd | building graphs and walking through them |
| binding | between Python and torch |
| Python | the interpreter |
| other | NumPy, hashing, files |

The first two are torch's kernels. The C library, the kernel of the system and the dispatcher count for whoever called
them, so that allocating or zeroing the result of an operator is the operator's. The error given is that of drawing n
samples, two standard deviations; samples whose stack says nothing widen it by their share.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ddbench.base.machine import keep_freed_memory
from ddbench.run.run import Run, Settings
from ddbench.run.spec import Request, resolve

INSIDE, OUTSIDE = ("arithmetic", "set-up"), ("autograd", "binding", "Python", "other")
# These work for their callers: the C library, the system's kernel, torch's allocator, the run time of OpenMP.
PASSED = (
    "libc.so",
    "libm.so",
    "libstdc++",
    "libgcc",
    "ld-linux",
    "libpthread",
    "libc10",
    "libgomp",
    "[kernel",
    "[vdso",
)
DISPATCH = ("at::_ops", "at::redispatch", "c10::", "std::", "operator ")
LOOPS = re.compile(
    r"dnnl::impl::cpu|AVX2|AVX512|DEFAULT|Vectorized|function_ref|_kernel|[Kk]ernel_?[Ii]mpl|cpublas|gemm|Sleef|mt19937"
)
FRAME = re.compile(r"\s+[0-9a-f]+ (.*) \((\S.*)\)$")  # address, symbol, library


def place(stack: list[tuple[str, str]]) -> str:
    """Where a sample belongs; its frames are (symbol, library), the innermost first."""
    for symbol, library in stack:
        if library.startswith(("[JIT]", "perf-")):
            return "arithmetic"  # oneDNN's generated code, which nobody can look behind
        if library.startswith(PASSED) or library in ("[unknown]", "anon"):
            continue
        if not library.startswith("libtorch_cpu"):
            names = {"libtorch_python": "binding", "libpython": "Python", "python": "Python"}
            return next((name for start, name in names.items() if library.startswith(start)), "other")
        name = symbol if symbol.startswith("at::(anonymous") else symbol.split("(")[0]
        if "function_ref" not in name and "native" not in name and name.startswith(DISPATCH):
            continue
        if "torch::" in name and "at::" not in name.split("torch::")[0]:
            return "autograd"
        if any(word in name for word in ("at::", "mkl", "dnnl", "ideep", "gemm")):
            loops = LOOPS.search(symbol.replace("wrap_kernel", "")) or name.startswith("mkl_")
            return "arithmetic" if loops and "TensorIteratorBase::" not in name else "set-up"
    return "undecided"


def stacks(recorded: Path) -> Iterator[list[tuple[str, str]]]:
    """The samples of a recording."""
    script = ["perf", "script", "--no-inline", "-i", str(recorded), "-F", "ip,sym,dso"]
    with subprocess.Popen(script, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        stack: list[tuple[str, str]] = []
        for line in process.stdout:
            if found := FRAME.match(line):
                stack.append((found[1], found[2].rsplit("/", 1)[-1]))
            elif not line.strip() and stack:
                yield stack
                stack = []
        if stack:
            yield stack


@contextmanager
def sampled(into: Path, rate: int) -> Iterator[None]:
    """Record this process's stacks while the block runs."""
    control, answer = into.with_suffix(".control"), into.with_suffix(".answer")
    for pipe in (control, answer):
        os.mkfifo(pipe)
    command = ["perf", "record", "-q", "-e", "cpu-clock", "-F", str(rate), "--call-graph", "dwarf,8192"]
    command += ["-p", str(os.getpid()), "-o", str(into), "-D", "-1", f"--control=fifo:{control},{answer}"]
    with subprocess.Popen(command) as process, control.open("r+b", 0) as ask, answer.open("r+b", 0) as hear:
        ask.write(b"enable\n")
        hear.read(4)  # perf is ready
        try:
            yield
        finally:
            process.send_signal(signal.SIGINT)


def measured(request: Request, rate: int) -> tuple[float, Counter[str]]:
    """Seconds of CPU time of a whole run in an empty home, and how many samples belong to each place."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DDBENCH_HOME"] = folder
        spec = resolve(request).spec
        run = Run(spec, spec.dataset.load(), Settings(Path(folder) / "runs"))
        recorded = Path(folder) / "perf.data"
        with sampled(recorded, rate):
            begun = time.process_time()
            run.execute()
            seconds = time.process_time() - begun
        return seconds, Counter(map(place, stacks(recorded)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--matcher", default="tesla")
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--rate", type=int, default=199, help="samples in a second; 199")
    parser.add_argument("-o", action="append", default=[], metavar="GROUP.NAME=VALUE")
    given = parser.parse_args()
    if shutil.which("perf") is None:
        sys.exit("this needs Linux's perf (Debian: apt-get install linux-perf)")
    flags = tuple(tuple(pair.split("=", 1)) for pair in given.o)
    request = Request("digits", given.matcher, ipc=given.ipc, flags=flags)  # type: ignore[arg-type]
    torch.set_num_threads(1)
    keep_freed_memory()
    seconds, found = measured(request, given.rate)
    n = found.total()
    outside = sum(found[name] for name in OUTSIDE) / n
    error = 2 * (outside * (1 - outside) / n) ** 0.5 + found["undecided"] / n
    print(f"{given.matcher}, ipc {given.ipc}: {100 * outside:.1f} % outside torch's kernels (± {100 * error:.1f})")
    print(
        f"of {seconds:.1f} s of CPU time, {n} samples: "
        + ", ".join(f"{name} {100 * found[name] / n:.1f}" for name in (*INSIDE, *OUTSIDE, "undecided"))
    )


if __name__ == "__main__":
    main()
