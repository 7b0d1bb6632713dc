"""The share of a run that is spent outside torch's kernels: in Python, in autograd's bookkeeping, in files.

    python benchmarks/overhead.py --matcher tesla --ipc 10

A run on digits, from nothing and in this process, with the caches empty: kernels are what torch's profiler books as
an operator's own time; the rest of the process's CPU time is overhead. The profiler itself costs time, most of it
outside kernels, so the share is an upper bound; the run is made once more without it to tell by how much.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from ddbench.meter import keep_freed_memory
from ddbench.run import Run, Settings
from ddbench.spec import Request, resolve


def work(request: Request) -> float:
    """Seconds of CPU time of a whole run in an empty home."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DDBENCH_HOME"] = folder
        spec = resolve(request).spec
        dataset = spec.dataset.load()
        begun = time.process_time()
        Run(spec, dataset, Settings(Path(folder) / "runs")).execute()
        return time.process_time() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--matcher", default="tesla")
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("-o", action="append", default=[], metavar="GROUP.NAME=VALUE")
    given = parser.parse_args()
    flags = tuple(tuple(pair.split("=", 1)) for pair in given.o)
    request = Request("digits", given.matcher, ipc=given.ipc, flags=flags)  # type: ignore[arg-type]
    torch.set_num_threads(1)
    keep_freed_memory()
    plain = work(request)
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as seen:
        profiled = work(request)
    kernels = sum(e.self_cpu_time_total for e in seen.key_averages() if e.key.startswith("aten::")) / 1e6
    print(f"{given.matcher}, ipc {given.ipc}: {plain:.1f} s of CPU time; {profiled:.1f} s with the profiler, of which")
    print(
        f"{kernels:.1f} s in kernels: at most {100 * (1 - kernels / profiled):.0f} % outside; if all of the profiler's"
    )
    print(f"own time is all outside kernels, {100 * max(0.0, 1 - kernels / plain):.0f} %")


if __name__ == "__main__":
    main()
