"""The code behind a class: the modules that decide what a plugin does, and the digests of their source.

They are the outermost packages and modules of the class and of those that it inherits from, what else their
distribution holds, and what any of them imports, at whatever line, as far as it lies outside of ``site-packages`` or
belongs to a distribution that brings plugins. Libraries such as torch are none of them, and of ddbench itself runs keep
a digest of their own. A process reads a source once, which is the code that it works with.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from importlib.machinery import PathFinder
from importlib.metadata import Distribution, entry_points
from pathlib import Path
from typing import NamedTuple

from ddbench.base.cache import file_digest

BUILT_IN = "ddbench"  # the distribution, and its package
_CODE = (".py", ".so", ".pyd", ".pyx", ".c", ".cc", ".cpp", ".cu", ".cuh", ".h", ".hpp")
_LIBRARIES = frozenset(
    (
        "annotated_types",
        "click",
        "numpy",
        "pandas",
        "PIL",
        "platformdirs",
        "pluggy",
        "pydantic",
        "pydantic_core",
        "rich",
        "safetensors",
        "scipy",
        "sklearn",
        "torch",
        "torchvision",
        "typing_extensions",
    )
)
_NOT_PLUGINS = sys.stdlib_module_names | _LIBRARIES | {BUILT_IN}


class Root(NamedTuple):
    """An outermost package (not a namespace) or module, and where its source is: a folder or a file."""

    name: str
    path: Path

    @property
    def top(self) -> str:
        return self.name.partition(".")[0]

    @property
    def installed(self) -> bool:
        """Whether it was installed, and so is not edited where it lies."""
        return bool({"site-packages", "dist-packages"} & set(self.path.parts)) or any(
            self.path.is_relative_to(place) for place in _places()
        )

    @property
    def files(self) -> list[Path]:
        """The files of its source, in the order of their names."""
        if self.path.is_dir():
            return sorted(file for file in self.path.rglob("*") if file.suffix in _CODE and file.is_file())
        return [self.path] if self.path.is_file() else []


def code_of(cls: type) -> dict[str, str]:
    """The sha256 (hex) of the source of all roots behind a class, by their names."""
    return {root.name: source_digest(root) for root in roots_of(cls)}


def foreign_code(cls: type) -> dict[str, str]:
    """The same without what ddbench brings; empty for a built-in class, whose versions stand in keys."""
    return {root.name: source_digest(root) for root in roots_of(cls) if not _built_in(root)}


def in_development(cls: type) -> set[str]:
    """The roots of third parties behind a class that are edited where they lie: editable, or on PYTHONPATH."""
    return {root.name for root in roots_of(cls) if not (_built_in(root) or root.installed)}


def built_in_packages() -> frozenset[str]:
    """The packages of built-in plugins."""
    return _plugged().get(BUILT_IN, frozenset())


@cache
def source_digest(root: Root) -> str:
    """sha256 (hex) of the source of a root, as this process first read it."""
    return digest_of(root.path, root.files)


def digest_of(home: Path, files: Iterable[Path]) -> str:
    """sha256 (hex) of files by their names from ``home`` on, and their content."""
    found = hashlib.sha256()
    for file in files:
        found.update(f"{file.relative_to(home.parent).as_posix()} {file_digest(file)}\n".encode())
    return found.hexdigest()


@cache
def roots_of(cls: type) -> tuple[Root, ...]:
    """The roots behind a class, its own first."""
    bases = [root_of(base.__module__) for base in cls.__mro__]
    due = [root for root in bases if root and root.top not in _NOT_PLUGINS]
    if due:
        due += [root for root in map(root_of, _beside(due[0])) if root]
    found: dict[str, Root] = {}
    while due:
        root = due.pop(0)
        if root.name not in found:
            found[root.name] = root
            if not _built_in(root):
                due += [other for other in map(root_of, sorted(_imports(root))) if other and _counts(other)]
    return tuple(found.values())


def _counts(root: Root) -> bool:
    """Whether a root that is only imported is part of a plugin's code."""
    return root.top not in _NOT_PLUGINS and (
        not root.installed or any(root.name in held for held in _plugged().values())
    )


def _built_in(root: Root) -> bool:
    return root.top in built_in_packages()


@cache
def root_of(module: str) -> Root | None:
    """The outermost package or module, other than a namespace, that a module is of; None without a file."""
    parts, places = module.split("."), None
    for name in (".".join(parts[: i + 1]) for i in range(len(parts))):
        file, places = _found(name, places)
        if file is not None:
            return Root(name, file.parent if file.stem == "__init__" else file)
        if places is None:
            return None
    return None


def _found(name: str, places: list[str] | None) -> tuple[Path | None, list[str] | None]:
    """The file of a module, or where the parts of a namespace are; nothing is imported for it."""
    loaded = sys.modules.get(name)
    if file := getattr(loaded, "__file__", None):
        return Path(file), None
    with suppress(ImportError, ValueError, AttributeError):
        spec = importlib.util.find_spec(name) if places is None else PathFinder.find_spec(name, places)
        if spec is not None:
            file = Path(spec.origin) if spec.has_location and spec.origin else None
            return file, list(spec.submodule_search_locations or ()) or None
    return None, None


@cache
def _imports(root: Root) -> frozenset[str]:
    """The modules that the files of a root import, and, as some of them may be modules, the names from them."""
    found: set[str] = set()
    for file in root.files:
        if file.suffix == ".py":
            with suppress(SyntaxError, ValueError):  # a template, say, that nobody imports
                found.update(_imported(ast.parse(file.read_bytes()), _package(root, file)))
    return frozenset(found)


def _imported(tree: ast.AST, package: list[str]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names if base)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in (
            "import_module",
            "__import__",
        ):
            yield from (a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str))


def _package(root: Root, file: Path) -> list[str]:
    """The package that a file's relative imports start from."""
    if file == root.path:
        return root.name.split(".")[:-1]
    return [*root.name.split("."), *file.relative_to(root.path).parent.parts]


def _beside(root: Root) -> list[str]:
    """The other modules of the distributions that a root belongs to."""
    return sorted(name for dist, held in _plugged().items() if dist != BUILT_IN and root.name in held for name in held)


@cache
def _plugged() -> dict[str, frozenset[str]]:
    """The roots of each distribution that brings plugins, by its name, as far as its files or its metadata tell."""
    named: dict[str, set[str]] = {}
    dists: dict[str, Distribution] = {}
    for entry in entry_points(group=BUILT_IN):
        if entry.dist is not None:
            named.setdefault(entry.dist.name, set()).add(entry.module)
            dists[entry.dist.name] = entry.dist
    for name, dist in dists.items():
        if name != BUILT_IN:
            named[name] |= _modules(dist)
    roots = {name: filter(None, map(root_of, sorted(modules))) for name, modules in named.items()}
    return {name: frozenset(root.name for root in held) for name, held in roots.items()}


def _modules(dist: Distribution) -> set[str]:
    """The modules that a distribution says it holds; one that is installed editable may not say."""
    found = set((dist.read_text("top_level.txt") or "").split())
    for file in dist.files or ():
        if (
            file.suffix in (".py", ".so", ".pyd")
            and not file.name.startswith("__editable__")
            and ".." not in file.parts
        ):
            found.add(".".join(file.parts[:-1]) or file.name.partition(".")[0])
    return found


@cache
def _places() -> tuple[str, ...]:
    """Where this Python keeps what is installed."""
    kept = [path for name in ("purelib", "platlib") if (path := sysconfig.get_paths().get(name))]
    return *kept, *site.getsitepackages(), site.getusersitepackages()
