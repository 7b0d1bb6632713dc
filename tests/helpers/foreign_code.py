"""Third parties' plugins as folders on PYTHONPATH, where they are edited as an editable install is."""

from __future__ import annotations

import textwrap
from pathlib import Path


def distribution(folder: Path, name: str, modules: dict[str, str], plugins: dict[str, str]) -> Path:
    """Write the modules (file name to text) of a distribution with its entry points into ``folder``, and return it."""
    about = folder / f"{name}-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    entries = "\n".join(f"{plugin} = {module}" for plugin, module in plugins.items())
    (about / "entry_points.txt").write_text(f"[ddbench]\n{entries}\n")
    for file, text in modules.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(textwrap.dedent(text))
    return folder


def edit(path: Path, old: str, new: str) -> None:
    """Change a file as its author would."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
