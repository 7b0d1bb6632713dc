"""Everything that only a GPU shows, in one command; what it prints belongs in docs/performance.md.

    python -m benchmarks.gpu --out results-gpu                              # speed and memory, on noise
    python -m benchmarks.gpu --out results-gpu --data cifar10-jpeg.zip      # and seconds to 60 % at width 128

Each part is a process of its own with its log in ``--out``; one that fails stops no other, and the summary says which.
Ends at once, with exit code 3, where torch finds no CUDA device.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent


def parts(out: Path, data: str | None) -> dict[str, list[str]]:
    """The name of each part and the command that carries it out."""
    python = sys.executable
    bench = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    found = {
        "tests": [*bench, "-m", "gpu", str(HERE.parent / "tests")],
        "memory": [python, str(HERE / "memory.py"), "--device", "cuda"],
        "iteration": [*bench, str(HERE / "test_bench_iteration.py"), f"--benchmark-json={out / 'iteration.json'}"],
        "students": [*bench, str(HERE / "test_bench_students.py"), f"--benchmark-json={out / 'students.json'}"],
        "experts": [*bench, str(HERE / "test_bench_experts.py"), f"--benchmark-json={out / 'experts.json'}"],
        "growth": [python, str(HERE / "growth.py"), "--device", "cuda", "--width", "128", "--out", str(out)],
    }
    if data is not None:
        found["time to accuracy"] = [python, str(HERE / "time_to_accuracy.py"), "--full", "--target", "0.6", "--data",
                                     data, "--out", str(out / "runs")]  # fmt: skip
    return found


def main() -> None:
    """Run all parts, and print the last lines of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", help="an archive of CIFAR-10's images, {train,test}/<class>/*")
    given = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        print("torch finds no CUDA device here: nothing was measured", file=sys.stderr)
        sys.exit(3)
    given.out.mkdir(parents=True, exist_ok=True)
    device = torch.cuda.get_device_name()
    print(f"{device}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    failed = []
    for name, command in parts(given.out.resolve(), given.data).items():
        log, begun = given.out / f"{name.replace(' ', '-')}.log", time.monotonic()
        with log.open("w") as stream:
            done = subprocess.run(
                command, stdout=stream, stderr=subprocess.STDOUT, cwd=HERE, env=os.environ | {"DDBENCH_DEVICE": "cuda"}
            )
        failed += [name] if done.returncode else []
        print(f"\n## {name}: exit {done.returncode}, {time.monotonic() - begun:.0f} s ({' '.join(command)})")
        print("\n".join(log.read_text().splitlines()[-40:]), flush=True)
    print(f"\nfailed: {', '.join(failed) or 'nothing'}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
