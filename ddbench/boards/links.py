"""Where more of a method is to be read, and how it is installed: what its plugins and their packages declare."""

from __future__ import annotations

import re
import shlex
from importlib import metadata

from ddbench.boards.entry import EntryRun, shown
from ddbench.boards.site_data import Fact
from ddbench.errors import DataError, UsageError
from ddbench.plugins import Plugin, paper, registry

OWN = "ddbench"
_PACKAGE = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,99}) ([0-9][A-Za-z0-9.+!_-]{0,99})")
_KEPT = ("homepage", "repository", "source", "source code", "code", "documentation")  # the first that is there counts


def safe(link: str) -> str | None:
    """The link, if it is one to a web page; anything else is shown and leads nowhere."""
    return link if re.fullmatch(r"https?://[^\s\"'<>`\\…]+", link) else None


def about(run: EntryRun) -> list[Fact]:
    """The papers and packages of a run's method and scheduler; nothing of a plugin that is not installed here."""
    found: list[Fact] = []
    for kind in ("matcher", "scheduler"):
        name = getattr(run.spec, kind).name
        try:
            plugin = registry().get(kind, name)
        except (UsageError, DataError):
            continue
        words, address = paper(plugin)
        if words or address:
            found.append((f"paper of {shown(name)}", shown(words or address, 200), safe(address)))
        link = package_link(plugin)
        if link is not None or plugin.package != OWN:
            found.append((f"package of {shown(name)}", shown(f"{plugin.package} {plugin.version}"), link))
    return found


def package_link(plugin: Plugin) -> str | None:
    """The web page that a plugin's distribution names."""
    try:
        held = metadata.metadata(plugin.package)
    except metadata.PackageNotFoundError:
        return None
    urls = [text.partition(",") for text in held.get_all("Project-URL") or []]
    named = {label.strip().lower(): address.strip() for label, _, address in urls}
    named = {"homepage": str(held["Home-page"])} | named if held["Home-page"] else named
    return next((link for name in _KEPT if (link := safe(named.get(name, "")))), None)


def install(runs: list[EntryRun]) -> str:
    """The command that installs the packages of third parties that runs needed; empty where there are none."""
    said = {text for run in runs for text in run.spec.versions.values()}
    parts = [found.groups() for text in sorted(said) if (found := _PACKAGE.fullmatch(text)) and found[1] != OWN]
    return f"pip install {shlex.join(f'{name}=={version}' for name, version in parts)}" if parts else ""
