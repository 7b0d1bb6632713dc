"""The only module that knows pluggy: load plugins one by one, isolate the broken, look up by name."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import pluggy

from ddbench import hookspecs
from ddbench.base import installed
from ddbench.base import recipes as recipe_files
from ddbench.base.guard import guarded, told
from ddbench.base.recipes import RecipeEntry
from ddbench.base.signatures import methods_flaw
from ddbench.errors import DataError, DDBenchError, PluginError, UsageError, did_you_mean

if TYPE_CHECKING:
    from ddbench.data.dataset import Dataset
    from ddbench.hookspecs import DatasetSource, Matcher, Metric, Published, Scheduler
    from ddbench.problem.problem import Memory, Needs, Problem

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,31}")
METHODS: dict[str, dict[str, tuple[str, ...]]] = {  # what each kind must have, and is called with
    "dataset": {"load": ()},
    "matcher": {"init": ("problem",), "step": ("problem", "state", "k"), "result": ("problem", "state")},
    "scheduler": {"next": ("task", "done"), "phases": ("n",)},
    "network": {"build": ("shape", "classes")},
    "metric": {},
    "executor": {"opened": ("folder",)},
}
KINDS = hookspecs.KINDS
EITHER = {"metric": {"__call__": ("logits", "targets"), "examine": ("student",)}}  # one of these


@dataclass(frozen=True)
class Plugin:
    """A registered class, where it came from, and its recipes."""

    kind: str
    name: str
    cls: type
    package: str
    version: str
    recipes: tuple[RecipeEntry, ...] = ()

    @property
    def declared(self) -> str:
        """The version that the class declares of what it computes; keys hold this one, not the distribution's."""
        return declared_version(self.cls)

    def recipe(self, situation: dict[str, Any], usual: str = "paper", asked: str | None = None) -> RecipeEntry | None:
        """The most specific recipe that fits, one called ``usual`` before others; of equally specific ones the first.

        With ``asked``, only those of that name.
        """
        fitting = [r for r in self.recipes if r.fits(situation) and asked in (None, r.name)]
        return max(fitting, key=lambda r: (r.name == usual, len(r.match)), default=None)


@dataclass(frozen=True)
class Broken:
    """A plugin that could not be loaded, and why; everything else goes on without it."""

    name: str
    package: str
    reason: str

    def __str__(self) -> str:
        return f"plugin {self.name!r} of {self.package} is skipped: {self.reason}"


@dataclass
class Registry:
    """All plugins of this installation, by kind and name."""

    plugins: dict[tuple[str, str], Plugin] = field(default_factory=dict)
    broken: list[Broken] = field(default_factory=list)

    def names(self, kind: str) -> list[str]:
        return sorted(name for k, name in self.plugins if k == kind)

    def get(self, kind: str, name: str) -> Plugin:
        """Look a plugin up, or raise with the nearest name and the valid ones."""
        found = self.plugins.get((kind, name))
        if found:
            return found
        for broken in self.broken:
            if broken.name == name:
                raise DataError(f"{kind} {name!r} is not available: {broken}")
        names = self.names(kind)
        hint = did_you_mean(name, names)
        lost = f"; {'; '.join(map(str, self.broken))}" if self.broken else ""  # it may be what one of them brings
        raise UsageError(f"no {kind} called {name!r}{hint} (valid ones: {', '.join(names)}){lost}")

    def add(self, plugin: Plugin) -> None:
        other = self.plugins.get((plugin.kind, plugin.name))
        if other:
            raise DataError(
                f"two {plugin.kind}s are called {plugin.name!r}: one from {other.package} {other.version}, "
                f"one from {plugin.package} {plugin.version}; uninstall one of the two packages"
            )
        self.plugins[plugin.kind, plugin.name] = plugin

    def load(self, entry: EntryPoint) -> None:
        """Load one entry point; whatever it raises makes it broken, and nothing else."""
        package = entry.dist.name if entry.dist else entry.value
        version = entry.dist.version if entry.dist else "0"
        try:
            with guarded(f"loading plugin {entry.name!r}"):
                found = _collect(entry.load(), entry.name, package, version)
        except Exception as error:  # noqa: BLE001 - any failure of a plugin is its own
            self.broken.append(Broken(entry.name, package, getattr(error, "reason", "") or told(error)))
            return
        for plugin in found:
            self.add(plugin)


def _collect(module: Any, name: str, package: str, version: str) -> list[Plugin]:
    """Everything that one plugin registers."""
    manager = pluggy.PluginManager("ddbench")
    manager.add_hookspecs(hookspecs)
    manager.register(module, name=name)
    manager.check_pending()
    if not manager.get_hookcallers(module):
        hooks = ", ".join(hookspecs.HOOKS)
        raise ValueError(f"it implements none of the hooks {hooks}; decorate them with ddbench.hookimpl")
    found: list[Plugin] = []
    for kind in KINDS:
        getattr(manager.hook, f"register_{kind}s")(register=_register(kind, package, version, found))
    return found


def _register(kind: str, package: str, version: str, found: list[Plugin]) -> Callable[..., None]:
    def register(cls: type, *, recipes: Path | None = None) -> None:
        check_class(kind, cls)
        entries = recipe_files.read(recipes, cls.name) if recipes else ()  # type: ignore[attr-defined]
        found.append(Plugin(kind, cls.name, cls, package, version, entries))  # type: ignore[attr-defined]

    return register


def declared_version(cls: Any) -> str:
    """What a class declares as its ``version``; an option of that name is none."""
    options = {f.name for f in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else set()
    return "1" if "version" in options else str(getattr(cls, "version", "1"))


def check_class(kind: str, cls: Any) -> None:
    """Raise ValueError when a class cannot be registered as a plugin of this kind."""
    if not inspect.isclass(cls) or not dataclasses.is_dataclass(cls) or not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise ValueError(f"register a class decorated with @dataclass(frozen=True), got {cls!r}")
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{cls.__name__}.name must match {_NAME.pattern}, got {name!r}")
    if (kind, name) == ("metric", "diverged"):  # what records say of a student
        raise ValueError(f"a {kind} cannot be called {name!r}, which records use for something else")
    if flaw := methods_flaw(cls, METHODS[kind], EITHER.get(kind, {})):
        raise ValueError(f"{kind} {name!r} has {flaw}")
    options = {f.name for f in dataclasses.fields(cls)}
    version = getattr(cls, "version", "1")
    if "version" not in options and not (isinstance(version, (str, int)) and _VERSION.fullmatch(str(version))):
        raise ValueError(f"{kind} {name!r}.version must be a short text or a whole number, got {version!r}")
    if kind == "matcher" and "published" not in options and not _are_published(getattr(cls, "published", ())):
        raise ValueError(
            f"matcher {name!r}.published must be a tuple of ddbench.Published, got {getattr(cls, 'published', None)!r}"
        )
    if kind in EITHER and not any(callable(getattr(cls, method, None)) for method in EITHER[kind]):
        raise ValueError(f"metric {name!r} has neither __call__(logits, targets) nor examine(student)")


@cache
def registry() -> Registry:
    """All entry points of the group ``ddbench`` that are wanted (``ddbench.base.installed``), loaded once."""
    loaded, strict = Registry(), installed.strict()
    for entry in installed.wanted(entry_points(group="ddbench")):
        loaded.load(entry)
    if strict and loaded.broken:
        lost = "; ".join(f"{b.name!r} of {b.package}: {b.reason}" for b in loaded.broken)
        raise DataError(f"plugins cannot be loaded, and {installed.STRICT}=1 asks for all of them: {lost}")
    return loaded


# What a plugin may leave out, and what then stands for it: nobody else asks a plugin what it has.


def _called(plugin: Any, kind: str, method: str, wanted: type | tuple[type, ...] | None, *given: Any) -> Any:
    """What a method returns, which must be of the type ``wanted``; None for any."""
    what = f"{method}() of {kind} {plugin.name!r}"
    with guarded(what):
        made = getattr(plugin, method)(*given)
    if wanted is not None and not isinstance(made, wanted):
        name = "number" if isinstance(wanted, tuple) else wanted.__name__
        raise PluginError(f"{what} must return a {name}, not {type(made).__name__}")
    return made


def loaded(source: DatasetSource) -> Dataset:
    """The data of a source, checked. Raises DataError for data that are not as they say."""
    from ddbench.data.dataset import Dataset

    return _called(source, "dataset", "load", Dataset).checked()


def needs_of(matcher: Matcher[object], problem: Problem) -> Needs:
    """The experts and teachers that a matcher wants made; nothing for one that does not say."""
    from ddbench.problem.problem import Needs

    return _called(matcher, "matcher", "needs", Needs, problem) if isinstance(matcher, hookspecs.Needing) else Needs()


def memory_of(matcher: Matcher[object], problem: Problem) -> Memory:
    """What a matcher takes on the device; the set with one momentum for one that does not say."""
    from ddbench.problem.problem import Memory

    if isinstance(matcher, hookspecs.Forecasting) and callable(matcher.memory):  # and not an option of that name
        return _called(matcher, "matcher", "memory", Memory, problem)
    return Memory(problem.state_bytes())


def staged(matcher: Matcher[object], problem: Problem) -> Matcher[object]:
    """A matcher as it is in a problem's stage: itself, where it does not say otherwise."""
    if not isinstance(matcher, hookspecs.Staging) or not callable(matcher.staged):
        return matcher
    return _called(matcher, "matcher", "staged", type(matcher), problem)


def notes_of(matcher: Matcher[object]) -> dict[str, dict[str, object]]:
    """How a matcher works in this stage, for its record."""
    return _called(matcher, "matcher", "notes", dict) if _noting(matcher) else {}


def resume_with(matcher: Matcher[object], noted: dict[str, dict[str, object]]) -> None:
    """Begin a stage, or go on with one in which ``noted`` was noted."""
    if _noting(matcher):
        _called(matcher, "matcher", "resume", None, noted)


def passes_of(matcher: Matcher[object], problem: Problem) -> float | None:
    """Images that go forwards and backwards in an iteration; None for a matcher that does not tell."""
    if not isinstance(matcher, hookspecs.Pricing) or not callable(matcher.passes):
        return None
    return float(_called(matcher, "matcher", "passes", (int, float), problem))


def stuck_of(matcher: Matcher[object], problem: Problem, rows: list[dict[str, float]]) -> str | None:
    """What a matcher says of a tenth of its iterations if they lead nowhere; nothing for one that does not look."""
    if not isinstance(matcher, hookspecs.Watching) or not callable(matcher.stuck):
        return None
    said = _called(matcher, "matcher", "stuck", None, problem, rows)
    return None if said is None else str(said)


def _noting(matcher: Matcher[object]) -> TypeGuard[hookspecs.Noting]:
    """Whether it notes, and does not only have options of these names."""
    return isinstance(matcher, hookspecs.Noting) and callable(matcher.notes) and callable(matcher.resume)


def wants_networks(matcher: Matcher[object]) -> bool:
    """Whether a matcher may want experts or teachers."""
    return isinstance(matcher, hookspecs.Needing)


def takes_steps(plugin: Plugin) -> bool:
    """Whether a matcher learns images by default; a coreset takes no step."""
    return bool(getattr(plugin.cls, "steps", 0))


def decodes(matcher: Matcher[object]) -> bool:
    """Whether a matcher matches what stored images decode to."""
    return bool(getattr(matcher, "decodes", False))


def soft_labels(matcher: Matcher[object]) -> bool:
    """Whether a matcher labels its images otherwise than by their class."""
    return getattr(matcher, "labels", "hard") != "hard"


def paper(plugin: Plugin) -> tuple[str, str]:
    """Where a method was published, in a few words, and its address on the web; empty where it does not say."""
    words, address = (getattr(plugin.cls, name, "") for name in ("paper", "paper_url"))
    return words if isinstance(words, str) else "", address if isinstance(address, str) else ""


def published_names(plugin: Plugin) -> tuple[Published, ...]:
    """The names of a matcher in the table of published accuracies."""
    said = getattr(plugin.cls, "published", ())
    return said if _are_published(said) else ()


def _are_published(said: object) -> TypeGuard[tuple[Published, ...]]:
    return isinstance(said, tuple) and all(isinstance(name, hookspecs.Published) for name in said)


def published_schedule(scheduler: Scheduler) -> str | None:
    """The name of a scheduler, with its options, in the table of published accuracies."""
    said = getattr(scheduler, "published", None)
    return said if isinstance(said, str) else None


def missing(source: DatasetSource) -> str | None:
    """What ``load`` would have to get first; None when the data are at hand, as far as the source tells."""
    if not isinstance(source, hookspecs.Telling):
        return f"dataset {source.name!r} does not tell if data are here; `ddbench prepare {source.name}` gets them"
    try:
        said = _called(source, "dataset", "missing", None)
        return None if said is None else str(said)
    except DDBenchError as error:
        return str(error)


def about(source: DatasetSource) -> dict[str, str]:
    """What holds without the data: licence, homepage, published sizes."""
    return dict(getattr(source, "about", {}))


def main_option(plugin: Plugin) -> str | None:
    """The option that ``--dataset NAME:VALUE`` sets."""
    return getattr(plugin.cls, "argument", None)


def remote(plugin: Plugin) -> bool:
    """Whether the options of a dataset may name any place on the network: then nobody but the user says which."""
    return bool(getattr(plugin.cls, "remote", False))


def downloads(plugin: Plugin) -> bool:
    """Whether a dataset is got from the network where it is not here yet."""
    return bool(getattr(plugin.cls, "downloads", False))


def costly(plugin: Plugin) -> bool:
    """Whether a metric is computed only when asked for."""
    return bool(getattr(plugin.cls, "costly", False))


def marks(metric: Metric, steps: int) -> set[int]:
    """The optimiser steps, of ``steps``, after which a metric wants a student's vector."""
    if not isinstance(metric, hookspecs.Marking):
        return set()
    wanted = _called(metric, "metric", "marks", Iterable, steps)
    return {int(step) for step in wanted if 0 < step <= steps}
