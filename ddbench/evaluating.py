"""``ddbench eval``: a run, or a file that describes itself, graded on test data."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ddbench.cache import home
from ddbench.errors import UsageError
from ddbench.files import Distilled
from ddbench.grading import Evaluation, evaluate
from ddbench.plugins import registry
from ddbench.protocols import Protocol, altered, named
from ddbench.records import make
from ddbench.results import graded, ordered, rows
from ddbench.run import with_augment
from ddbench.spec import pick_device, split_dataset, split_flags


@dataclass(frozen=True)
class EvalOptions:
    """What ``ddbench eval`` may be told; by default everything comes from the file."""

    students: int = 5
    seed: int | None = None
    device: str = "auto"
    dataset: str | None = None
    network: str | None = None
    protocol: str | None = None
    flags: tuple[tuple[str, str], ...] = ()
    quiet: bool = False

    def per_network(self) -> list[EvalOptions]:
        """One set of options for each of the networks named, separated by commas.

        With several, an option of networks goes to those that have it.
        """
        names = [name.strip() for name in (self.network or "").split(",") if name.strip()]
        if len(names) < 2:
            return [self]
        known = {name: {f.name for f in fields(registry().get("network", name).cls)} for name in names}
        for option, _ in self.flags:
            group, _, field = option.partition(".")
            if group == "network" and not any(field in has for has in known.values()):
                raise UsageError(f"none of the networks {', '.join(names)} has an option {field!r}")
        return [replace(self, network=name, flags=self._flags_for(known[name])) for name in names]

    def _flags_for(self, has: set[str]) -> tuple[tuple[str, str], ...]:
        return tuple(
            flag for flag in self.flags if not flag[0].startswith("network.") or flag[0].partition(".")[2] in has
        )


def evaluate_run(folder: Path, options: EvalOptions) -> list[dict[str, Any]]:
    """Add an evaluation to a finished run, and return all its rows."""
    path = folder / "distilled.safetensors"
    if not path.exists():
        raise UsageError(f"{folder} holds no distilled set yet; finish it with `ddbench run --resume {folder}`")
    plan, seed, threads = _plan(Distilled.load(path), options)
    evaluate(plan, folder / "evaluations", threads=threads, seed=seed)
    return rows(folder)


def evaluate_file(path: Path, options: EvalOptions) -> dict[str, Any]:
    """Grade a file that stands alone; students are stored in the cache."""
    distilled = Distilled.load(path)
    plan, seed, threads = _plan(distilled, options)
    record = evaluate(plan, home() / "evaluations", threads=threads, seed=seed)
    spec, sets = distilled.about["spec"], distilled.curriculum.sets
    row = {
        "dataset": plan.dataset.name,
        "matcher": spec["matcher"]["name"],
        "scheduler": spec["scheduler"]["name"],
        "ipc": spec["ipc"],
        "seed": seed,
        "steps": plan.distilled.teaching.steps,
        "selection": distilled.about["selection"],
        "label_type": sets[0].label_type,
        "image_bytes": sum(s.image_bytes for s in sets),
        "label_bytes": sum(s.label_bytes for s in sets),
        "status": "ok",
        "run": path.name,
    }
    return ordered(row | graded(record))


def _plan(distilled: Distilled, options: EvalOptions) -> tuple[Evaluation, int, int]:
    """The evaluation that the file describes, with what the options change."""
    spec = distilled.about["spec"]
    chosen, main = split_dataset(options.dataset) if options.dataset else (None, ())
    given = split_flags((*main, *options.flags))
    if wrong := set(given) - {"dataset", "network", "protocol"}:
        raise UsageError(f"eval takes options of dataset, network and protocol, not of {', '.join(sorted(wrong))}")
    source = _plugin("dataset", spec["dataset"], chosen, given)
    if options.network or "network" in given:
        distilled = replace(distilled, network=_plugin("network", spec["network"], options.network, given))
    dataset = source.load()
    protocol = make(Protocol, spec["protocol"], "protocol")
    if options.protocol or "protocol" in given:
        base = named(options.protocol) if options.protocol else protocol
        protocol = altered(base, given.get("protocol", {}))
        images = sum(len(s) for s in distilled.curriculum.sets)
        teaching = protocol.evaluation(images, len(distilled.curriculum.phases))
        distilled = replace(distilled, teaching=with_augment(teaching, dataset.augment))
    seed = spec["seed"] if options.seed is None else options.seed
    plan = Evaluation(distilled, dataset, protocol, options.students, pick_device(options.device))
    return plan, seed, spec["threads"]


def _plugin(kind: str, recorded: dict[str, Any], name: str | None, given: dict[str, dict[str, str]]) -> Any:
    """The recorded dataset or network, or another by name, with the options given."""
    held = recorded["options"] if name in (None, recorded["name"]) else {}
    return make(registry().get(kind, name or recorded["name"]).cls, held | given.get(kind, {}), kind)
