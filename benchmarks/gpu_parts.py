"""The parts of ``python -m benchmarks.gpu``: each is a process that says its figures as soon as it knows them.

    python benchmarks/gpu_parts.py training '{"device": "cuda", "seconds": 100}'

Lines on stdout that begin with ``@`` are JSON: a figure, a run, or what it is doing now. What is ``known`` is not
measured again. Variants of a part are timed in one process, taking turns, in five rounds; one that has no time left to
warm up (``warm`` seconds) is left for the next call, one that fails says why, and one that this ddbench does not have
is no variant. The figures of shapes alone are on noise.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TextIO

import torch
from memory import _cpu_peak, _cuda_peak
from torch import nn
from torch.nn.functional import cross_entropy
from two_pass import CLASSES, SHAPE, STRATEGY, methods, task

HERE = Path(__file__).resolve().parent
sys.path.insert(1, str(HERE.parent))

from benchmarks.gpu_records import timed  # noqa: E402 - this is a script beside others, and one of a package
from ddbench import DDBenchError, Examples, Network, Preprocessing, RealData, Recipe, Seed, Student, fit  # noqa: E402
from ddbench.plugins import registry  # noqa: E402
from ddbench.train.compile import account  # noqa: E402
from ddbench.train.fit_together import fit_together  # noqa: E402
from ddbench.train.precision import switched  # noqa: E402

ROUNDS = 5
LOST = 4  # exit code: the device answers no more
MARGIN = 15.0  # seconds for the rounds, when the last variant has warmed up
BATCH, IPC, T = 256, 10, 20
_out: TextIO | None = None  # a copy of stdout, which pytest captures


def say(**told: Any) -> None:
    """One line to whoever started this process."""
    print("\n@" + json.dumps(told), file=_out, flush=True)  # whatever stands on the line before it


@dataclasses.dataclass(frozen=True)
class Orders:
    """What the campaign asks of a part. ``tiny`` is for rehearsals."""

    device: str = "cuda"
    seconds: float = 600.0
    known: frozenset[str] = frozenset()
    tiny: bool = False
    data: str = ""
    records: str = ""
    began: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.began)

    def due(self, variants: Iterable[str]) -> list[str]:
        return [name for name in variants if name not in self.known]

    def done(self) -> None:
        """Wait for the device."""
        if self.device == "cuda":
            torch.cuda.synchronize()


@dataclasses.dataclass(frozen=True)
class Variant:
    """``make()`` gives the work of one round, which is ``amount`` of the unit; ``warm`` seconds until it runs fast.

    Work that gives a number has its own clock: these are its seconds.
    """

    make: Callable[[], Callable[[], object]]
    amount: float = 1.0
    warm: float = 3.0
    honest: Callable[[], str] = lambda: ""  # why the work was not what was asked for, asked after it has warmed up


def race(part: str, unit: str, variants: dict[str, Variant], base: str, orders: Orders, *, rate: bool) -> None:
    """Say the figures of all variants that are not known, timed taking turns, beside ``base``.

    A rate is an amount per second; otherwise a figure is milliseconds for each of the amount.
    """
    ready: dict[str, Callable[[], object]] = {}
    due = orders.due(variants)
    for name in dict.fromkeys([base, *due] if due else []):
        if ready and orders.left < variants[name].warm + MARGIN:
            say(left=name)
            continue
        say(doing=name)
        try:
            work = variants[name].make()
            for _ in range(2):
                work()
            orders.done()
            reason = variants[name].honest()
        except DDBenchError as error:  # it is not for this device
            say(part=part, variant=name, unit=unit, refused=str(error)[:500])
        except Exception as error:  # noqa: BLE001 - one variant fails, the others go on
            failed(error, orders, part=part, variant=name, unit=unit)
        else:
            if reason:
                say(part=part, variant=name, unit=unit, refused=reason)
            else:
                ready[name] = work
    say(doing="rounds")
    seconds: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(ROUNDS):
        for name in list(ready):
            try:
                orders.done()
                began = time.perf_counter()
                own = ready[name]()
                orders.done()
                seconds[name].append(own if isinstance(own, float) else time.perf_counter() - began)
            except Exception as error:  # noqa: BLE001 - as above
                del ready[name]
                failed(error, orders, part=part, variant=name, unit=unit)

    def values(name: str) -> list[float]:
        amount = variants[name].amount
        return [amount / s if rate else 1000 * s / amount for s in seconds[name]]

    for name in ready:
        say(**timed(part, name, unit, values(name), values(base) if base in ready else None))


def failed(error: Exception, orders: Orders, **figure: str) -> None:
    """Say why a variant is none; ends the process where the error took the device along, for another to go on."""
    say(**figure, error=f"{type(error).__name__}: {error}"[:500])
    if not answers(orders):
        say(left="what follows: the device answers no more")
        sys.exit(LOST)


def answers(orders: Orders) -> bool:
    """Whether the device can still be used: CUDA reports an illegal access in every later call, too."""
    try:
        orders.done()
        torch.ones(1, device=orders.device).sum().item()
    except Exception:  # noqa: BLE001 - of whatever kind
        return False
    return True


# -- training --------------------------------------------------------------------------------------------------


def real(orders: Orders) -> RealData:
    """Random pixels on the device, as a dataset lies there."""
    count = 512 if orders.tiny else 25_600
    pixels = torch.randint(0, 256, (count, *SHAPE), dtype=torch.uint8)
    return RealData(pixels, torch.arange(count) % CLASSES, Preprocessing.fit(pixels), CLASSES).to(orders.device)


def network(orders: Orders) -> Network:
    source = registry().get("network", "convnet").cls(width=8 if orders.tiny else 128)
    return Network(source, SHAPE, CLASSES, torch.device(orders.device))


def module(orders: Orders) -> nn.Module:
    """ConvNet-D3 of torch's own layers, as published code has it."""
    width, layers, channels = 8 if orders.tiny else 128, list[nn.Module](), SHAPE[0]
    for _ in range(3):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.GroupNorm(width, width), nn.ReLU(), nn.AvgPool2d(2)]
        channels = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * width, CLASSES)).to(orders.device)


def plain(orders: Orders, *, tf32: bool = True, bf16: bool = False, compiled: bool = False) -> Variant:
    """A loop of plain torch over one batch that lies there: no data to draw, nothing augmented."""
    steps = 2 if orders.tiny else 150

    def make() -> Callable[[], None]:
        form = torch.channels_last if bf16 else torch.contiguous_format
        own = module(orders).to(memory_format=form)
        x = torch.randn(BATCH, *SHAPE, device=orders.device).contiguous(memory_format=form)
        y = torch.arange(BATCH, device=orders.device) % CLASSES
        optimiser, model = torch.optim.SGD(own.parameters(), 0.01), torch.compile(own) if compiled else own

        def work() -> None:
            with switched(tf32=tf32):
                for _ in range(steps):
                    optimiser.zero_grad(set_to_none=True)
                    with torch.autocast(orders.device, torch.bfloat16, enabled=bf16):
                        loss = cross_entropy(model(x).float(), y)
                    loss.backward()
                    optimiser.step()

        return work

    return Variant(make, BATCH * steps, 40.0 if compiled else 2.0)


# How an expert is trained, by switches of its recipe; a combination that a ddbench does not have is left out.
SWITCHES: dict[str, dict[str, Any]] = {
    "ddbench": {},
    "ddbench, plain kernels, eager": {"kernels": "plain", "launch": "eager"},
    "ddbench, plain kernels, graph": {"kernels": "plain", "launch": "graph"},
    "ddbench, fused kernels, eager": {"kernels": "fused", "launch": "eager"},
    "ddbench, fused kernels, graph": {"kernels": "fused", "launch": "graph"},
    "ddbench, fused kernels, graph, tf32": {"kernels": "fused", "launch": "graph", "precision": "tf32"},
    "ddbench, fused kernels, graph, bf16": {"kernels": "fused", "launch": "graph", "precision": "bf16"},
    "ddbench, plain kernels, graph, bf16": {"kernels": "plain", "launch": "graph", "precision": "bf16"},
    "ddbench, fused kernels, graph, float32": {"kernels": "fused", "launch": "graph", "precision": "float32"},
}
UNAUGMENTED = ("ddbench", "ddbench, fused kernels, graph", "ddbench, fused kernels, graph, bf16")
EPOCHS = 3


def recipe(augment: str, options: dict[str, Any]) -> Recipe | None:
    """None where this ddbench has no such option."""
    if not options.keys() <= {f.name for f in dataclasses.fields(Recipe)}:
        return None
    return Recipe(epochs=EPOCHS, batch=BATCH, lr=0.01, augment=augment, **options)


def ours(orders: Orders, made: Recipe, data: RealData) -> Variant:
    """The trainer, by its own clock: without the first epoch, in which kernels are built and graphs recorded."""
    own = network(orders)
    start = Student(own.init(Seed(0)))

    def work() -> float:
        ends: list[float] = []

        def ended(*_: object) -> None:
            orders.done()
            ends.append(time.perf_counter())

        fit(own, start, data, made, Seed(0), what=None, on_epoch=ended)
        return ends[-1] - ends[0]

    return Variant(lambda: work, BATCH * made.per_epoch(len(data)) * (EPOCHS - 1), 15.0)


def training(orders: Orders) -> None:
    """Images per second of one expert, of ddbench and of its peers."""
    data, base = real(orders), "plain torch, TF32"
    variants = {base: plain(orders)}
    for augment, how in ((STRATEGY, ", DSA"), ("", ", nothing augmented")):
        for name, options in SWITCHES.items():
            made = recipe(augment, options)
            if made is not None and (augment or name in UNAUGMENTED):
                variants[name + how] = ours(orders, made, data)
    variants |= {
        "plain torch, float32": plain(orders, tf32=False),
        "plain torch, bf16, channels-last": plain(orders, bf16=True),
        "torch.compile, TF32": plain(orders, compiled=True),
        "torch.compile, bf16, channels-last": plain(orders, bf16=True, compiled=True),
    }
    race("training", "images/s", variants, base, orders, rate=True)


def together(orders: Orders) -> None:
    """Images per second of several students by one vectorised step, against one at a time, by images in a batch."""
    own, steps = network(orders), 2 if orders.tiny else 40
    for batch in (4, 10) if orders.tiny else (10, 50, 100, BATCH):
        images = torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(0)).to(orders.device)
        labels = torch.eye(CLASSES, device=orders.device)[torch.arange(batch) % CLASSES]
        made = Recipe(steps=steps, batch=batch, lr=0.01, augment=STRATEGY)
        base = f"{batch} images, one at a time"
        variants = {base: _students(own, Examples(images, labels), made, 1)}
        for count in (2,) if orders.tiny else (5, 10):
            variants[f"{batch} images, {count} together"] = _students(own, Examples(images, labels), made, count)
        race("together", "images/s", variants, base, orders, rate=True)


def _students(own: Network, examples: Examples, made: Recipe, count: int) -> Variant:
    seeds = [Seed(0) / i for i in range(count)]
    starts = [Student(own.init(seed)) for seed in seeds]

    def work() -> None:
        if count == 1:
            fit(own, starts[0], examples, made, seeds[0], what=None)
        else:
            fit_together(own, starts, examples, made, seeds, lrs=[None] * count, what=None)

    return Variant(lambda: work, len(examples) * (made.steps or 0) * count)


# -- unrolls ---------------------------------------------------------------------------------------------------


def shapes(orders: Orders) -> tuple[int, int, int]:
    """Width, images, student steps."""
    return (8, 20, 2) if orders.tiny else (128, 10 * IPC, T)


def _as_asked(name: str) -> Callable[[], str]:
    """Whether the engine did what a variant's name says: it falls back to eager steps in float32, and says why."""

    def reason() -> str:
        notes = account()
        kind = next((word for word in ("compiled", "eager") if word in name), "")
        precision = next((word for word in ("tf32", "bf16") if word in name), "float32")
        wrong = [n for n in notes if kind and (n["engine"], n["precision"]) != (kind, precision)]
        return f"{wrong[0]['engine']} in {wrong[0]['precision']}: {wrong[0].get('reason')}" if wrong else ""

    return reason


def unrolls(orders: Orders) -> None:
    """Milliseconds of a student's step: TESLA's gradient, ours and two passes of plain autograd, and MTT's."""
    width, images, steps = shapes(orders)
    made = task(width, images, steps, device=orders.device)
    kinds = ("eager", "compiled")  # a rehearsal compiles nothing
    work = methods(made, kinds, ("float32", "tf32", "bf16"))
    order = sorted(work, key=lambda name: ("compiled" in name and ("tf32" in name or "bf16" in name), "bf16" in name))
    variants = {
        name: Variant(lambda name=name: work[name], steps, 60.0 if "compiled" in name else 5.0, _as_asked(name))
        for name in order
    }
    race("unrolls", "ms per student step", variants, "two-pass", orders, rate=False)


def memory(orders: Orders) -> None:
    """The most bytes that an unroll holds at one time beyond its arguments, and what torch keeps for it.

    What a CUDA graph needs lies in memory of its own, which counts as kept and not as held.
    """
    width, images, steps = shapes(orders)
    made = task(width, images, steps, device=orders.device)
    work = methods(made, ("eager", "compiled"))
    for name in orders.due(work):
        if orders.left < (60.0 if "compiled" in name else 5.0):
            say(left=name)
            continue
        say(doing=name)
        try:
            for unit, value in _peaks(work[name], orders).items():
                say(part="memory", variant=name, unit=unit, value=round(value / 1e6, 1))
        except Exception as error:  # noqa: BLE001 - one variant fails, the others go on
            failed(error, orders, part="memory", variant=name, unit="MB")


def _peaks(work: Callable[[], object], orders: Orders) -> dict[str, float]:
    if orders.device != "cuda":
        work()
        return {"MB": _cpu_peak(work)}
    gc.collect()
    torch.cuda.empty_cache()
    kept = torch.cuda.memory_reserved()
    for _ in range(3):  # compiled, recorded, replayed
        work()
    torch.cuda.reset_peak_memory_stats()
    return {"MB": _cuda_peak(work), "MB kept": torch.cuda.max_memory_reserved() - kept}


def precision(orders: Orders) -> None:
    """Relative errors of lower precisions, of a student's second-order pass."""
    from precision import NAMES, errors, given

    width, images, _ = shapes(orders)
    for state, trained in (("fresh", 0), ("after 30 steps on noise", 30)):
        say(doing=state)
        for name, off in errors(given(width, images, 2 if trained and orders.tiny else trained, orders.device)).items():
            variant = f"{name}, {state}"
            for what, value in zip(NAMES, off, strict=True):
                if what == "images" and variant not in orders.known:
                    say(part="precision", variant=variant, unit=f"relative error of {what}", value=value)


# -- tests and runs --------------------------------------------------------------------------------------------


def tests(orders: Orders) -> None:
    """The tests that are marked ``gpu``, each a figure: its seconds, or why it failed. A process of their own."""
    import gpu_outcomes

    root = HERE.parent
    files = [str(path) for path in sorted((root / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]
    words = ["-q", "-p", "no:cacheprovider", "-p", "gpu_outcomes", "-m", "gpu", f"--rootdir={root}"]
    words += ["-c", str(root / "pyproject.toml"), *files]
    own = {gpu_outcomes.VARIABLE: json.dumps(sorted(orders.known))}
    own["PYTHONPATH"] = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run([sys.executable, "-m", "pytest", *words], cwd=root, env=os.environ | own, check=False)
    if done.returncode not in (0, 1, 5):  # passed, failed, or nothing was left
        sys.exit(done.returncode if done.returncode > 0 else LOST)


CELL = "tesla, ipc 10, ZCA, labels of experts"


def cell(orders: Orders) -> None:
    """One cell of a paper's table at its size: CIFAR-10, a ConvNet of width 128, 10 images per class."""
    if CELL in orders.known:
        return
    small = "network.width=4 protocol.steps=3 protocol.judges=1 protocol.lrs=0.01 experts.epochs=2 "
    small += "matcher.experts=1 matcher.max_start=1 matcher.span=1 matcher.steps=2 matcher.syn_steps=2 "
    large = "network.width=128 experts.batch=256 experts.lr=0.01 experts.epochs=14 experts.epoch_steps=none "
    large += "matcher.experts=10 matcher.max_start=12 matcher.span=2 matcher.steps=1500 matcher.syn_steps=20 "
    large += "matcher.curvature=zero matcher.window=none matcher.outer=adam matcher.lr_img=0.03 matcher.lr_init=0.03 "
    large += "matcher.labels=teacher protocol.lrs=0.01,0.03 "
    options = ((small if orders.tiny else large) + "dataset.zca=true matcher.batch_syn=none").split()
    say(doing=CELL)
    with tempfile.TemporaryDirectory() as folder:
        words = [
            "run",
            "--dataset",
            f"images:{orders.data}",
            "--matcher",
            "tesla",
            "--ipc",
            "1" if orders.tiny else "10",
        ]
        words += [
            "--device",
            orders.device,
            "--no-random",
            "--no-ceiling",
            "--quiet",
            "--format",
            "json",
            "--out",
            folder,
        ]
        words += [word for option in options for word in ("-o", option)]
        began = time.monotonic()
        done = subprocess.run([sys.executable, "-m", "ddbench", *words], capture_output=True, text=True, check=False)
        took = time.monotonic() - began
        if done.returncode:
            say(part="cell", variant=CELL, unit="s", error=done.stderr.strip()[-1500:])
            return
        (row,) = json.loads(done.stdout)
        notes = json.loads((Path(folder) / row["run"] / "stage-0" / "result.json").read_text())
        kept = (
            "matcher",
            "scheduler",
            "ipc",
            "protocol",
            "accuracy_mean",
            "accuracy_std",
            "n",
            "distil_seconds",
            "expert_seconds",
            "selection_seconds",
            "peak_bytes",
            "device",
        )
        say(
            run={name: row[name] for name in kept}
            | {"seconds": round(took, 1), "options": options, "checks": notes.get("checks", []), "note": CELL}
        )
        say(part="cell", variant=CELL, unit="s", value=round(took, 1))


PARTS: dict[str, Callable[[Orders], None]] = {
    "tests": tests,
    "training": training,
    "unrolls": unrolls,
    "memory": memory,
    "precision": precision,
    "together": together,
    "cell": cell,
}


def main() -> None:
    """Carry out one part."""
    name, text = sys.argv[1:]
    told = json.loads(text)
    orders = Orders(**told | {"known": frozenset(told.get("known", []))})
    torch.set_num_threads(int(os.environ.get("DDBENCH_THREADS", "1")))
    global _out
    with os.fdopen(os.dup(1), "w") as _out:
        PARTS[name](orders)


if __name__ == "__main__":
    main()
