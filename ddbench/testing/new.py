"""A package to start from: a plugin of one kind that works and is tested, under the names that its author gives it."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from ddbench.base.cache import atomic_write
from ddbench.errors import UsageError
from ddbench.plugins import registry

NAME = re.compile(r"[a-z][a-z0-9]*([._-][a-z0-9]+)*")
PREFIX = "ddbench-"  # of the distribution: names without it are others' on the package index, and modules of Python
COMMANDS = {
    "dataset": "ddbench run --dataset my-name --matcher dm --ipc 1",
    "matcher": "ddbench run --matcher my-name --ipc 1",
    "scheduler": "ddbench run --matcher dm --scheduler my-name --ipc 10",
    "network": "ddbench run --network my-name --matcher random --ipc 10",
    "metric": "ddbench run --matcher random --ipc 10",
}


def written(name: str, kind: str, to: Path) -> list[Path]:
    """Write the package of a plugin of a kind into a new folder in ``to``; the files, the folder first.

    Raises UsageError for a name that no plugin can have, or that one has, and for a folder that is there.
    """
    name = name.removeprefix(PREFIX)
    if kind not in COMMANDS:
        *first, last = COMMANDS
        raise UsageError(f"a plugin is a {', '.join(first)} or {last}, not a {kind!r:.40}")
    if not NAME.fullmatch(name) or len(name) > 50:
        raise UsageError(f"a plugin is named with a-z, 0-9 and single - _ . between them, not {name!r:.80}")
    if name in registry().names(kind):
        owner = registry().get(kind, name).package
        raise UsageError(f"{owner} brings a {kind} called {name!r} already; give yours another name")
    folder = to / f"{PREFIX}{name}"
    if folder.exists():
        raise UsageError(f"{folder} is there already; name another folder with --to, or another plugin")
    words = {
        "my-command": COMMANDS[kind],
        "my-dist": folder.name,
        "my_module": re.sub(r"[._-]", "_", folder.name),
        "my-name": name,
        "my-kind": kind,
        "MyName": "".join(part.capitalize() for part in re.split(r"[._-]", name)),
    }
    parts = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        f"{words['my_module']}/__init__.py": f"{kind}.py",
        f"tests/test_{words['my_module']}.py": f"test_{kind}.py",
    }
    for path, skeleton in parts.items():
        text = files("ddbench.testing").joinpath("skeletons", f"{skeleton}.txt").read_text(encoding="utf-8")
        for word, value in words.items():
            text = text.replace(word, value)
        atomic_write(folder / path, text.encode())
    return [folder, *(folder / path for path in parts)]
