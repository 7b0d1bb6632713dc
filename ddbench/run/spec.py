"""RunSpec: everything that decides a distilled set; its hash is the run's key.

Options come from three places, the first that speaks wins: a flag, a recipe, the field's default.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, TypeVar

from ddbench.base.cache import digest
from ddbench.base.machine import pick_device
from ddbench.base.options import changed, describe, make, options, without_removed
from ddbench.base.recipes import RecipeEntry
from ddbench.errors import DataError, UsageError, did_you_mean
from ddbench.grade.protocol import Protocol, altered, named
from ddbench.hookspecs import DatasetSource, Matcher, NetworkSource, Scheduler
from ddbench.plugins import Plugin, declared_version, decodes, main_option, registry
from ddbench.problem.decode import Decoder
from ddbench.run import recipes as recipe_book
from ddbench.run.defaults import DATASET, MATCHER, NETWORK, SCHEDULER
from ddbench.run.named import teachers_named
from ddbench.run.record import RunRecord, SpecRecord
from ddbench.train.fit import TRAINER_VERSION, Recipe

_R = TypeVar("_R", bound=RunRecord)
SCHEMA = 1
MOST_THREADS = 1024  # with millions OpenMP ends the process
PLUGGED = ("dataset", "matcher", "scheduler", "network")
GROUPS = (*PLUGGED, "experts", "protocol", "decoder")
# Students of every method must be trained alike on the same network, so only a dataset's recipe sets these.
SHARED = ("network", "protocol")
EXPERTS = Recipe(epochs=20, lr=0.03, batch=64)  # for thousands of images; recipes of published runs bring theirs


@dataclass(frozen=True)
class Request:
    """What a user asks for, before recipes and defaults fill in the rest."""

    dataset: str = DATASET
    matcher: str = MATCHER
    scheduler: str = SCHEDULER
    network: str = NETWORK
    ipc: int = 1
    seed: int = 0
    protocol: str | None = "default"  # None for what is usual for the dataset on the device
    device: str = "auto"
    flags: tuple[tuple[str, str], ...] = ()  # (group.option, value)
    recipe: str | None = None  # of the matcher: fast, paper, DATASET:IPC; None for what is usual on the dataset
    here: bool = True  # whether the device must be: a run can be planned for, or sent to, another machine

    @property
    def picked(self) -> str:
        """The device, ``auto`` no longer among them. Raises UsageError where it is missing."""
        return pick_device(self.device, here=self.here)

    def with_seed(self, seed: int) -> Request:
        return replace(self, seed=seed)


@dataclass(frozen=True)
class RunSpec:
    """A run, fully resolved. ``dataset``, ``matcher``, ``scheduler`` and ``network`` are plugin objects."""

    dataset: DatasetSource
    matcher: Matcher[object]
    scheduler: Scheduler
    network: NetworkSource
    ipc: int
    seed: int
    experts: Recipe
    protocol: Protocol
    decoder: Decoder
    device: str
    threads: int
    versions: tuple[tuple[str, str], ...]  # (plugin, package and version)

    def record(self) -> dict[str, Any]:
        """The spec as JSON, with every option: what ``spec.json`` holds."""
        return {
            "schema": SCHEMA,
            "trainer": TRAINER_VERSION,
            **{group: describe(getattr(self, group)) for group in PLUGGED},
            "ipc": self.ipc,
            "seed": self.seed,
            "experts": options(self.experts),
            "protocol": options(self.protocol),
            "protocol_digest": self.protocol.digest,
            "decoder": options(self.decoder),
            "device": self.device,
            "dtype": "float32",
            "threads": self.threads,
            "versions": dict(self.versions),
            "declared": self.declared,
        }

    @property
    def declared(self) -> dict[str, str]:
        """The version of what it computes that each plugin declares, by its kind and name."""
        plugins = {kind: getattr(self, kind) for kind in PLUGGED}
        found = {f"{kind} {plugin.name}": declared_version(type(plugin)) for kind, plugin in plugins.items()}
        return found | {f"teacher {name}": plugin.declared for name, plugin in teachers_named(self.matcher).items()}

    @cached_property
    def key(self) -> str:
        """The digest of what differs from defaults, so that options added later rename no run.

        Of a plugin it holds the package and the version that the class declares, not the package's: that changes with
        every commit where it comes from a tag.
        """
        packages = {name: text.rpartition(" ")[0] for name, text in self.versions}
        return self.old_key({name: f"{package} {self.declared.get(name, 1)}" for name, package in packages.items()})

    def old_key(self, versions: dict[str, str]) -> str:
        """The key that ddbench 0.1 gave, from the packages and their ``versions``."""
        identity = {name: value for name, value in self.record().items() if name != "declared"} | {
            **{group: describe(getattr(self, group), changed) for group in PLUGGED},
            **{group: changed(getattr(self, group)) for group in ("experts", "protocol", "decoder")},
            "versions": versions,
        }
        return digest(identity)[:12]

    @property
    def folder(self) -> str:
        """The run's folder name: readable, and unique by the key."""
        words = (self.dataset.name, self.matcher.name, self.scheduler.name)
        return f"{'-'.join(words)}-ipc{self.ipc}-seed{self.seed}-{self.key}"


@dataclass(frozen=True)
class Resolved:
    """A spec, and where each of its options came from: ``group.option`` -> (value, origin).

    ``warning`` says that the matcher has no recipe for what is asked, with the nearest.
    """

    spec: RunSpec
    origins: dict[str, tuple[Any, str]]
    warning: str | None = None


def resolve(request: Request) -> Resolved:
    """Fill in recipes and defaults. Raises UsageError for unknown names, options, or values."""
    if request.ipc < 1:
        raise UsageError(f"--ipc must be at least 1, got {request.ipc}")
    if request.seed < 0:
        raise UsageError(f"--seed must be at least 0, got {request.seed}")
    dataset, given = split_dataset(request.dataset)
    request = replace(request, dataset=dataset, flags=(*given, *request.flags))
    chosen = {kind: registry().get(kind, getattr(request, kind)) for kind in PLUGGED}
    origins: dict[str, tuple[Any, str]] = {}
    flags = split_flags(request.flags)
    recipes = recipes_for(chosen, request)
    made: dict[str, Any] = {}
    rules = named(request.protocol or recipe_book.usual_rules(dataset, request.picked), dataset)
    for group in GROUPS:
        base = {"experts": EXPERTS, "protocol": rules, "decoder": Decoder()}.get(group)
        made[group] = fill(group, chosen.get(group), base, recipes, flags.get(group, {}), origins)
    spec = RunSpec(
        **{group: made[group] for group in GROUPS},
        ipc=request.ipc,
        seed=request.seed,
        device=request.picked,
        threads=usual_threads(),
        versions=versions_of(chosen, made["matcher"]),
    )
    if spec.decoder.factor > 1 and not decodes(spec.matcher):
        raise UsageError(f"matcher {spec.matcher.name!r} works on stored images alone; leave decoder.factor at 1")
    if spec.protocol.selects == "validation" and getattr(spec.dataset, "validation", None) == 0:
        raise UsageError(
            f"protocol {spec.protocol.name!r} selects on validation images, and dataset.validation=0 holds none out; "
            "hold some out (0.1 is usual), or take a published protocol, which selects on test data (mtt-paper, say) "
            "or on nothing (dsa-paper)"
        )
    return Resolved(spec, origins, unfitted(request))


def situation_of(request: Request) -> dict[str, Any]:
    """What recipes are matched on."""
    asked = {"dataset": request.dataset, "ipc": request.ipc, "scheduler": request.scheduler}
    return asked | {"device": request.picked}


def unfitted(request: Request) -> str | None:
    """What is to be said where the matcher has no recipe for what is asked, unless one of another place is taken."""
    if request.recipe is not None:
        return None
    return recipe_book.missing(registry().get("matcher", request.matcher), situation_of(request))


def known_options(record: dict[str, Any]) -> dict[str, Any]:
    """The record without options that plugins no longer have, where these stand at what was their default."""
    classes = {kind: registry().get(kind, record[kind]["name"]).cls for kind in PLUGGED}
    kept = {kind: without_removed(cls, record[kind].get("options", {}), kind) for kind, cls in classes.items()}
    return record | {kind: record[kind] | {"options": options} for kind, options in kept.items()}


def without_gone(run: _R) -> _R:
    """The same of a run; as it is where a plugin is not here, or an option that is gone stands at another value."""
    try:
        held = known_options(run.spec.json_value())
    except (UsageError, DataError):
        return run
    return run.model_copy(update={"spec": SpecRecord.model_validate(held)})


def current(run: _R) -> _R:
    """That, with options that its version lacked at their defaults, as in keys: later runs are of the same setting."""
    run = without_gone(run)
    held = run.spec.json_value()
    try:
        made = from_record(held).record()
    except (UsageError, DataError):
        return run
    filled = {group: made[group] for group in GROUPS}
    return run.model_copy(update={"spec": SpecRecord.model_validate(held | filled)})


def from_record(record: dict[str, Any]) -> RunSpec:
    """The spec that a ``spec.json`` describes, with the plugins of this installation."""
    plugins = {kind: registry().get(kind, record[kind]["name"]) for kind in PLUGGED}
    made = {kind: make(plugin.cls, record[kind]["options"], kind) for kind, plugin in plugins.items()}
    return RunSpec(
        **made,
        ipc=record["ipc"],
        seed=record["seed"],
        experts=make(Recipe, record.get("experts", {}), "experts"),
        protocol=make(Protocol, record["protocol"], "protocol"),
        decoder=make(Decoder, record.get("decoder", {}), "decoder"),
        device=record.get("device") or pick_device("auto"),
        threads=record.get("threads") or usual_threads(),
        versions=versions_of(plugins, made["matcher"]),
    )


def with_flags(record: dict[str, Any], changes: dict[str, Any], flags: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    """The record with some parts asked for differently: to tell what flags beside --resume would change."""
    new = json.loads(json.dumps(record))
    for name, value in changes.items():
        group = name if name in ("ipc", "seed", "device") else f"{name}.name"
        if name == "protocol":
            new[name]["name"] = value
        elif group.endswith(".name"):
            new[name] = new[name] | {"name": value}
        else:
            new[name] = pick_device(value) if name == "device" else value
    own = {"experts": Recipe, "protocol": Protocol, "decoder": Decoder}
    for group, given in split_flags(flags).items():
        held = new[group] if group in own else new[group]["options"]
        cls = own.get(group) or registry().get(group, new[group]["name"]).cls
        held |= {name: options(make(cls, held | given, group))[name] for name in given}
    return new


def versions_of(plugins: dict[str, Plugin], matcher: Matcher[object]) -> tuple[tuple[str, str], ...]:
    """The package and version of each plugin, and of each network that the matcher names as a teacher."""
    used = [*plugins.items(), *(("teacher", p) for p in teachers_named(matcher).values())]
    return tuple((f"{kind} {p.name}", f"{p.package} {p.version}") for kind, p in used)


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "", *, added: bool = True) -> list[str]:
    """What differs between two records, as ``path: old -> new`` lines; without ``added``, not what only ``new`` has."""
    lines = []
    for name in sorted({*old, *new} if added else old):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            lines += differences(before, after, f"{prefix}{name}.", added=added)
        elif before != after:
            lines.append(f"{prefix}{name}: {before} -> {after}")
    return [line.replace("options.", "") for line in lines]


def usual_threads() -> int:
    """CPU bits depend on the number of threads, so it is part of the spec: DDBENCH_THREADS, or all cores."""
    given = os.environ.get("DDBENCH_THREADS")
    if given is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not (given.isascii() and given.isdecimal() and len(given) < 10 and 1 <= int(given) <= MOST_THREADS):
        raise UsageError(f"DDBENCH_THREADS must be a number of threads from 1 to {MOST_THREADS}, got {given[:40]!r}")
    return int(given)


def split_dataset(name: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """``images:photos.zip`` -> ``images`` and the flag that sets its main option, ``dataset.root``.

    Which option that is, the source says in its class attribute ``argument``.
    """
    short, colon, value = name.partition(":")
    if not colon:
        return name, ()
    option = main_option(registry().get("dataset", short))
    if option is None:
        raise UsageError(f"the dataset {short!r} takes nothing after a colon; write --dataset {short}")
    return short, ((f"dataset.{option}", value),)


def split_flags(flags: tuple[tuple[str, str], ...]) -> dict[str, dict[str, str]]:
    """``(("matcher.steps", "30"),)`` -> ``{"matcher": {"steps": "30"}}``; unknown groups are refused."""
    split: dict[str, dict[str, str]] = {}
    for name, value in flags:
        group, _, option = name.partition(".")
        if group not in GROUPS or not option:
            hint = did_you_mean(group, GROUPS)
            raise UsageError(f"option {name!r} must be GROUP.NAME with a group of {', '.join(GROUPS)}{hint}")
        split.setdefault(group, {})[option] = value
    return split


def recipes_for(chosen: dict[str, Plugin], request: Request) -> list[tuple[str, RecipeEntry]]:
    """The fitting recipes, weakest first: the dataset's, then the matcher's."""
    situation = situation_of(request)
    own = recipe_book.chosen(chosen["matcher"], situation, request.recipe)
    if own is not None and any(group in own.options for group in SHARED):
        raise UsageError(f"the recipe of {request.matcher!r} sets {SHARED}, which belong to the dataset's recipe")
    found = (("dataset", chosen["dataset"].recipe(situation)), ("matcher", own))
    return [(kind, entry) for kind, entry in found if entry is not None]


def fill(
    group: str,
    plugin: Plugin | None,
    base: Any,
    recipes: list[tuple[str, RecipeEntry]],
    flags: dict[str, str],
    origins: dict[str, tuple[Any, str]],
) -> Any:
    """Build one group's object from base or class, recipes and flags; note where each option came from."""
    values: dict[str, Any] = options(base) if base is not None else {}
    origin = dict.fromkeys(values, f"protocol {base.name}" if isinstance(base, Protocol) else "default")
    for kind, entry in recipes:
        given = dict(entry.options.get(group, {}))
        if plugin is not None and given.pop("name", plugin.name) != plugin.name:
            continue  # hyperparameters of another network or scheduler
        if isinstance(base, Protocol) and base.name != "default":
            continue  # published rules are the same on every dataset
        values |= given
        origin |= dict.fromkeys(
            given, f"{kind} recipe ({entry.name}, {'verified' if entry.verified else 'unverified'}; {entry.source})"
        )
    plain = dict(values)
    values |= flags
    origin |= dict.fromkeys(flags, "flag")
    cls: Any = plugin.cls if plugin else type(base)
    made = altered(make(Protocol, plain, group), flags) if group == "protocol" else make(cls, values, group)
    for f in fields(cls):
        origins[f"{group}.{f.name}"] = (getattr(made, f.name), origin.get(f.name, "default"))
    return made
