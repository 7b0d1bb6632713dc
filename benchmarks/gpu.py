"""Everything that only a GPU shows, in one command; what it prints belongs in docs/performance.md.

    python -m benchmarks.gpu --out results-gpu                              # speed and memory, on noise
    python -m benchmarks.gpu --out results-gpu --data cifar10-jpeg.zip      # and seconds to 60 % at width 128
    python -m benchmarks.gpu --out results-gpu --only precision engine      # some parts
    python -m benchmarks.gpu --out rehearsal --rehearse                     # on a CPU, tiny: do the scripts work?

| part | what it shows |
| --- | --- |
| tests | those marked ``gpu`` |
| precision | errors and times of a step in float32, tf32 and bf16, with and without channels-last, width 128 |
| engine | the engine against two-pass TESLA and MTT's autograd, eager and compiled, in float32 and tf32 |
| memory | peak bytes over the student's steps, and how many times tesla's that of mtt is |
| iteration, students | one iteration; evaluated students one at a time and together |
| experts | expert epochs against a loop over a DataLoader: ten times as fast, together, is what is aimed at |
| growth | time and memory against five axes |

Each part is a process of its own with its log in ``--out``; one that fails stops no other, and the summary says which.
Ends at once, with exit code 3, where torch finds no CUDA device.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent


def parts(out: Path, data: str | None, rehearse: bool) -> dict[str, list[str]]:
    """The name of each part and the command that carries it out."""
    python, on = sys.executable, ["--device", "cpu" if rehearse else "cuda"]
    bench = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    tiny = ["--width", "8", "--rounds", "1"] if rehearse else []

    def timed(name: str, *some: str) -> list[str]:
        return [*bench, str(HERE / f"test_bench_{name}.py"), f"--benchmark-json={out / name}.json", *some]

    found = {
        "tests": [*bench, "-m", "gpu", str(HERE.parent / "tests"), *(["--collect-only"] if rehearse else [])],
        "precision": [python, str(HERE / "precision.py"), *on, *tiny, *(["--images", "4"] if rehearse else [])],
        "engine": [
            python,
            str(HERE / "two_pass.py"),
            *on,
            *tiny,
            "--precisions",
            "float32",
            "tf32",
            "--batch",
            *(["4", "--steps", "2", "--kinds", "eager"] if rehearse else ["100", "--steps", "10"]),
        ],
        "memory": [python, str(HERE / "memory.py"), *on, *(["--steps", "1", "2"] if rehearse else [])],
        "iteration": timed("iteration", *(["-k", "5"] if rehearse else [])),
        "students": timed("students", *(["-k", "digits"] if rehearse else [])),
        "experts": timed("experts"),
        "growth": [python, str(HERE / "growth.py"), *on, "--out", str(out), *(tiny or ["--width", "128"])],
    }
    if data is not None:
        found["time to accuracy"] = [
            python,
            str(HERE / "time_to_accuracy.py"),
            "--full",
            "--target",
            "0.6",
            "--data",
            data,
            "--out",
            str(out / "runs"),
        ]
    return found


def faster(path: Path) -> str:
    """How many times as fast as the first way of a benchmark the others are, by their medians."""
    medians = {b["params"]["way"]: b["stats"]["median"] for b in json.loads(path.read_text())["benchmarks"]}
    base = next(iter(medians))
    return "; ".join(f"{way}: {medians[base] / own:.2f} times as fast as {base}" for way, own in medians.items())


def carried_out(name: str, command: list[str], out: Path, device: str) -> int:
    """Run one part, and print the end of its log; its exit code."""
    log, begun = out / f"{name.replace(' ', '-')}.log", time.monotonic()
    with log.open("w") as stream:
        own = os.environ | {"DDBENCH_DEVICE": device}
        done = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, cwd=HERE, env=own)
    print(f"\n## {name}: exit {done.returncode}, {time.monotonic() - begun:.0f} s ({' '.join(command)})")
    print("\n".join(log.read_text().splitlines()[-40:]), flush=True)
    if name == "experts" and not done.returncode:
        print(faster(out / "experts.json"), flush=True)
    return done.returncode


def main() -> None:
    """Run all parts, and print the last lines of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", help="an archive of CIFAR-10's images, {train,test}/<class>/*")
    parser.add_argument("--only", nargs="+", metavar="PART", help="these parts")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with tiny sizes; nothing is measured")
    given = parser.parse_args()
    import torch

    if not given.rehearse and not torch.cuda.is_available():
        print("torch finds no CUDA device here: nothing was measured", file=sys.stderr)
        sys.exit(3)
    given.out.mkdir(parents=True, exist_ok=True)
    device = "a rehearsal on the CPU" if given.rehearse else torch.cuda.get_device_name()
    print(f"{device}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    found = parts(given.out.resolve(), given.data, given.rehearse)
    unknown = set(given.only or ()) - found.keys()
    if unknown:
        parser.error(f"no part is called {', '.join(sorted(unknown))}; there are {', '.join(found)}")
    where = "cpu" if given.rehearse else "cuda"
    chosen = {name: command for name, command in found.items() if name in (given.only or found)}
    failed = [name for name, command in chosen.items() if carried_out(name, command, given.out.resolve(), where)]
    print(f"\nfailed: {', '.join(failed) or 'nothing'}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
