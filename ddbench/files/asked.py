"""What ``ddbench eval`` may be told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from ddbench.base.options import make, option_text
from ddbench.errors import UsageError, did_you_mean
from ddbench.grade.evaluation import default_metrics
from ddbench.plugins import registry
from ddbench.run.spec import GROUPS

Options = Mapping[str, object]


@dataclass(frozen=True)
class EvalOptions:
    """What ``ddbench eval`` may be told; by default everything comes from the file."""

    students: int = 5
    seed: int | None = None
    device: str = "auto"
    dataset: str | None = None
    network: str | None = None
    protocol: str | None = None
    metrics: str | None = None
    pixels: str = "auto"
    labels: str = "auto"
    experiment: int = 0
    together: bool | None = None
    transfer: bool = False
    fetch: bool = False
    flags: tuple[tuple[str, str], ...] = ()
    quiet: bool = False

    def per_network(self) -> list[EvalOptions]:
        """One set of options for each of the networks named, separated by commas.

        With several, an option of networks goes to those that have it.
        """
        names = [name.strip() for name in (self.network or "").split(",") if name.strip()]
        if self.network is not None and not names:
            raise UsageError("--network is empty; name one, or several separated by commas")
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

    def chosen_metrics(self) -> dict[str, Any]:
        """The metrics asked for with their options: by default all that are not costly, and any that has an option.

        Options are flags ``metric.NAME.OPTION``; ``--metrics all`` means every one there is.
        """
        given: dict[str, dict[str, str]] = {}
        for option, value in self.flags:
            group, _, rest = option.partition(".")
            name, _, field = rest.partition(".")
            if group == "metric":
                if not field:
                    raise UsageError(f"option {option!r} must be metric.NAME.OPTION, such as metric.ece.bins=10")
                given.setdefault(name, {})[field] = value
        if self.metrics is None:
            names = [*default_metrics(), *given]
        else:
            names = [n.strip() for n in self.metrics.split(",") if n.strip()]
            if not names:
                raise UsageError("--metrics is empty; name some, or say all")
            names = registry().names("metric") if names == ["all"] else names
        classes = {name: registry().get("metric", name).cls for name in dict.fromkeys(names)}
        if lost := [name for name in given if name not in classes]:
            raise UsageError(f"options are given for the metric {lost[0]!r}, which --metrics leaves out; name it there")
        return {name: make(cls, given.get(name, {}), f"metric.{name}") for name, cls in classes.items()}

    def plain_flags(self) -> tuple[tuple[str, str], ...]:
        """The flags that are not of metrics."""
        return tuple(flag for flag in self.flags if not flag[0].startswith("metric."))


def flags_of(options: Mapping[str, Options], *more: str) -> tuple[tuple[str, str], ...]:
    """``matcher_options={"syn_steps": 30}`` as the command line writes it: ``matcher.syn_steps=30``."""
    groups = {f"{group}_options": group for group in (*GROUPS, *more)}
    for name in options:
        if name not in groups:
            raise UsageError(f"there is no argument {name!r}{did_you_mean(name, groups)} ({', '.join(groups)})")
    return tuple(
        (f"{groups[n]}.{key}", option_text(value)) for n, some in options.items() for key, value in some.items()
    )
