"""Records of applications: results that outlive an interruption, and are checked when they are read again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Gt, Lt, MinLen
from pydantic import BeforeValidator, TypeAdapter

from ddbench.base.cache import canonical, digest, read_json, write_json
from ddbench.base.opening import refuse_links
from ddbench.base.schema import Fraction, Held, Number, Text, Whole
from ddbench.errors import DataError

Accuracies = Annotated[list[Fraction], MinLen(1)]


def _rate(value: object) -> object:
    """A student lr: a number or its text, ``own`` for the set's, None where there was nothing to select."""
    if value not in ("own", None):
        TypeAdapter(Annotated[float, Gt(0), Lt(1e9)]).validate_python(value)
    return value


Rate = Annotated[Number | Text | None, BeforeValidator(_rate)]


class Trained(Held):
    """The students of one architecture on one kind of data."""

    accuracies: Accuracies
    seconds: Number
    parameters: Whole


class _Continual(Held):
    lrs: dict[Text, Rate]
    found: dict[Text, Accuracies]


class _Search(Held):
    lrs: dict[Text, Rate]
    found: dict[Text, Trained]


_RESULTS: dict[str, type[Held]] = {"continual": _Continual, "architecture-search": _Search}


@dataclass(frozen=True, eq=False)
class Record:
    """Results by name in one JSON file, each stored as soon as it is there. Student lrs are called ``lr/NAME``."""

    path: Path
    identity: dict[str, Any]
    about: dict[str, Any]
    results: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, name: str, identity: dict[str, Any], about: dict[str, Any]) -> Record:
        """The record of what ``identity`` decides, with the results that are there already."""
        path = folder / f"{name}-{digest([name, identity])[:12]}.json"
        refuse_links(path, folder.parent)
        return cls(path, identity, about, _results(path, name, identity) if path.exists() else {})

    def get(self, name: str, work: Callable[[], Any]) -> Any:
        """The result ``name``, made by ``work`` and stored if it is not there yet."""
        if name not in self.results:
            self.results[name] = work()
            self.save(complete=False)
        return self.results[name]

    def save(self, *, complete: bool, **more: Any) -> dict[str, Any]:
        """Write the file, and return what it holds."""
        held = {"complete": complete, "about": self.about, "identity": self.identity, "results": self.results} | more
        write_json(self.path, held)
        return held


def _results(path: Path, name: str, identity: dict[str, Any]) -> dict[str, Any]:
    """What a record holds. Raises DataError for another set's, and for results that are none."""
    held, damaged = read_json(path), f"{path} is damaged ({{}}); delete it to have it made again"
    results = held.get("results") if isinstance(held, dict) else None
    if not isinstance(results, dict) or canonical(held.get("identity")) != canonical(identity):
        raise DataError(damaged.replace("{}", "it is of another set, or of other rules"))
    lrs = {name: value for name, value in results.items() if name.startswith("lr/")}
    found = {name: value for name, value in results.items() if name not in lrs}
    _RESULTS[name].checked({"lrs": lrs, "found": found}, damaged)
    return results
