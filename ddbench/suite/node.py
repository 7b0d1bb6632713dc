"""The other end of a suite: a job of it arrives on a node, which looks whether it is the place for it.

What it was sent by must be what runs here: the same files, the same ddbench, the same plugins. What else it finds, the
suite is told in ``<job>.node.json`` beside the order.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import Field

from ddbench.base.cache import lock, write_json
from ddbench.base.machine import code
from ddbench.base.schema import Digest, Held, Text
from ddbench.errors import BusyError, DataError, UsageError
from ddbench.plugins import loaded, needs_of, registry, staged
from ddbench.run.prepare import for_experts
from ddbench.run.run import first_problem
from ddbench.run.sources import sources
from ddbench.run.spec import Request, RunSpec, resolve

SKEW = 300.0  # seconds that clocks may differ without a word


class Order(Held):
    """What a node is told: the words of a command, or experts to train for a request."""

    words: list[Text]
    request: dict[str, Any]
    experts: dict[str, Any] | None = None
    out: Text
    folder: Text
    lock: Text
    ddbench: Text
    versions: dict[Text, Text]
    sources: dict[Text, Digest] = Field(default={})


def arrive(path: Path) -> Order:
    """Take an order, if this node is the place for it. Raises DataError with what is to be done there otherwise."""
    here = socket.gethostname()
    if not path.exists():
        raise DataError(
            f"node {here} does not see {path}: --out must lie on a file system that all nodes share, by the same path"
        )
    order = Order.from_file(path)
    _same_plugins(order, here)
    _same_code(order, spec_of(order), here)
    with suppress(OSError):
        os.chdir(order.folder)  # paths of data may be relative to where the suite was started
    report = {"node": here, "process": os.getpid(), "locks": _locks_hold(Path(order.lock)), "skew": skew(path.parent)}
    write_json(report_of(path), report)
    return order


def report_of(order: Path) -> Path:
    """Where a node tells what it found."""
    return order.with_name(order.name.replace(".order.json", ".node.json"))


def spec_of(order: Order) -> RunSpec:
    """The run that an order is about."""
    asked = order.request
    flags = tuple((str(name), str(value)) for name, value in asked.get("flags", ()))
    return resolve(Request(**{**asked, "flags": flags})).spec


def _same_plugins(order: Order, here: str) -> None:
    for plugin, package in order.versions.items():
        kind, _, name = plugin.partition(" ")
        try:
            registry().get("network" if kind == "teacher" else kind, name)
        except (UsageError, DataError) as error:
            name_of = package.rpartition(" ")[0] or package
            raise DataError(
                f"node {here} has no {kind} {name!r}, which {package} brings where the suite was started; install "
                f"{name_of} there, then --retry-failed"
            ) from error


def _same_code(order: Order, spec: RunSpec, here: str) -> None:
    """Refuse a node whose numbers could be others."""
    now = sources(spec)
    if other := sorted(name for name, value in order.sources.items() if now.get(name) != value):
        raise DataError(
            f"node {here} has another version of {', '.join(other)} (ddbench {code()} there, {order.ddbench} where the "
            "suite was started), whose numbers could be others; install the same on both, then --retry-failed"
        )


def _locks_hold(path: Path) -> bool:
    """Whether the lock that the suite holds holds here as well; a suite that has ended since holds none."""
    try:
        with lock(path, wait=False):
            return False
    except BusyError:
        return True


def skew(folder: Path) -> float:
    """Seconds that this machine's clock is ahead of the one that stamps files in a folder: that of its server."""
    probe = folder / f".clock-{socket.gethostname()}-{os.getpid()}"
    try:
        probe.touch()
        return time.time() - probe.stat().st_mtime
    except OSError:  # the command itself will say what is wrong with the disk
        return 0.0
    finally:
        with suppress(OSError):
            probe.unlink()


def warnings_of(report: dict[str, Any], own_skew: float, out: Path) -> list[str]:
    """What people should know of a node."""
    node, said = report.get("node", "?"), []
    if report.get("locks") is False:
        said.append(
            f"locks in {out} do not hold between this machine and {node} (a mount with nolock, local_lock or "
            "localflock?): this suite gives every cell and expert to one job at a time, but no other may work there "
            "meanwhile"
        )
    ahead = float(report.get("skew", 0.0)) - own_skew
    if abs(ahead) > SKEW:
        way = "ahead of" if ahead > 0 else "behind"
        said.append(
            f"the clock of {node} is {abs(ahead) / 3600:.1f} hours {way} this machine's; nothing depends on it but the "
            "times in records"
        )
    return said


def train(order: Order, say: Callable[[str], None]) -> None:
    """Train the experts of an order."""
    spec, asked = spec_of(order), order.experts or {}
    problem = first_problem(spec, loaded(spec.dataset))
    experts = for_experts(problem, needs_of(staged(spec.matcher, problem), problem)).experts
    experts.build(int(asked["stop"]), [int(e) for e in asked["snapshots"]], int(asked["first"]))
    say(f"experts {asked['first']} to {int(asked['stop']) - 1} are in {experts.folder}")
