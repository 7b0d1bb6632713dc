"""The shape of the code: who may import whom, who may print, how long things are, where built-ins enter."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import tomllib
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import ddbench
from ddbench import hookspecs
from ddbench.base.moved import MODULES
from ddbench.plugins import KINDS, METHODS

ROOT = Path(__file__).parent.parent
CORE = sorted((ROOT / "ddbench").rglob("*.py"))
PLUGINS = {
    folder.name: sorted(folder.rglob("*.py")) for folder in sorted((ROOT / "plugins").iterdir()) if folder.is_dir()
}
SOURCES = [*CORE, *(path for paths in PLUGINS.values() for path in paths)]

# The rooms, from the ground up: each may import those before it. Those on one line know nothing of each other.
ORDER = """
errors
base
data
train
problem
trajectory hookspecs
plugins
grade
run
files
results
suite boards
apply
testing
cli
api
__init__ __main__
"""
LEVEL = {room: level for level, line in enumerate(ORDER.split("\n")) for room in line.split()}
# The engine is for plugins, for their authors' kit, and for `check-grad`: the harness asks matchers instead.
TRAJECTORY = {"trajectory", "testing", "cli"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def room_of(path: Path) -> str:
    inside = path.relative_to(ROOT / "ddbench").parts
    return inside[0] if len(inside) > 1 else path.stem


@cache
def imports(path: Path, *, typing: bool = True) -> tuple[tuple[str, str | None], ...]:
    """(module, name) of every import, wherever it stands; without those under ``if TYPE_CHECKING`` if asked."""
    nodes, hidden, found = list(ast.walk(ast.parse(path.read_text()))), set(), []
    for node in nodes:
        if not typing and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            hidden |= {id(inner) for part in node.body for inner in ast.walk(part)}
    for node in nodes:
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            found += [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found += [(node.module or "", alias.name) for alias in node.names]
    return tuple(found)


def packages(path: Path) -> set[str]:
    return {module.partition(".")[0] for module, _ in imports(path)}


def modules(path: Path, *, typing: bool = True) -> set[str]:
    """Modules and packages of ddbench that a file imports, by either spelling; not names of ``ddbench`` itself."""
    found = set()
    for module, name in imports(path, typing=typing):
        if module == "ddbench" and name not in ddbench.__all__:
            found.add(f"ddbench.{name}")
        elif module.startswith("ddbench."):
            inner = ROOT / module.replace(".", "/") / f"{name}.py"
            found.add(f"{module}.{name}" if inner.exists() else module)
    return found


def test_there_is_something_to_check():
    assert len(CORE) > 60
    assert len(PLUGINS) >= 5
    assert all(PLUGINS.values())


def test_every_room_has_its_place_and_says_what_it_is_for():
    assert {room_of(path) for path in CORE} <= set(LEVEL), "a new room: decide in ORDER what may import it"
    for room in {path.parent for path in CORE} - {ROOT / "ddbench"}:
        said = ast.get_docstring(ast.parse((room / "__init__.py").read_text())) or ""
        assert re.search(r"May\s+import", said), room
        assert re.search(r"Start\s+with", said), room


def test_rooms_import_only_what_lies_below_them():
    wrong = []
    for path in CORE:
        room = room_of(path)
        for module in modules(path, typing=False):
            other = module.split(".")[1]
            upward = LEVEL[other] > LEVEL[room] or (LEVEL[other] == LEVEL[room] and other != room)
            engine = other == "trajectory" and room not in TRAJECTORY
            if upward or engine:
                wrong.append(f"{name_of(path)} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_modules_do_not_import_each_other_in_a_circle():
    def dotted(path: Path) -> str:
        return name_of(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    graph = {dotted(path): modules(path, typing=False) - {dotted(path)} for path in CORE if path.name != "__init__.py"}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name not in done:
            for other in graph.get(name, ()):
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_the_core_knows_no_plugin():
    for path in CORE:
        assert not {p for p in packages(path) if p.startswith("ddbench_")}, name_of(path)
        assert not re.search("|".join(PLUGINS), path.read_text()), f"{name_of(path)} names a plugin"


def test_libraries_stay_where_they_belong():
    homes = {
        "pluggy": {"ddbench/plugins.py", "ddbench/hookspecs.py"},
        "click": {name_of(path) for path in CORE if room_of(path) == "cli"},
        "rich": {"ddbench/cli/console.py"},
        "pandas": {name_of(path) for path in CORE if room_of(path) in ("results", "api")},
        "jinja2": {"ddbench/boards/render.py"},
        "matplotlib": {"ddbench/boards/charts.py"},
    }
    for path in SOURCES:
        for library in packages(path) & homes.keys():
            assert name_of(path) in homes[library], f"{name_of(path)} imports {library}"


def calls(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node.lineno


def test_only_the_console_prints():
    for path in SOURCES:
        if name_of(path) != "ddbench/cli/console.py":
            for called, line in calls(path):
                printed = called in {"print", "click.echo", "pprint"} or re.fullmatch(r"sys\.std(out|err)\.\w+", called)
                assert not printed, f"{name_of(path)} line {line}"


def test_nothing_is_unpickled():
    for path in SOURCES:
        text = path.read_text()
        assert not packages(path) & {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}, name_of(path)
        for call in re.findall(r"torch\.load\([^)]*\)", text):
            assert "weights_only=True" in call, name_of(path)
        assert "allow_pickle=True" not in text, name_of(path)
        for called, line in calls(path):
            assert called not in {"eval", "exec", "compile", "__import__", "os.system"}, f"{name_of(path)} line {line}"


# --------------------------------------------------------------------------------- plugins


def test_a_plugin_never_imports_another_plugin():
    for plugin, paths in PLUGINS.items():
        for path in paths:
            others = {p for p in packages(path) if p.startswith("ddbench_")} - {plugin}
            assert not others, f"{name_of(path)} imports {others}"


def test_built_in_plugins_use_only_public_names():
    for path in (path for paths in PLUGINS.values() for path in paths):
        for module in modules(path):
            assert module in ddbench.PUBLIC_MODULES, f"{name_of(path)} imports {module}"
        for module, name in imports(path):
            private = module.startswith("ddbench.") and (name or "").startswith("_")
            assert not private, f"{name_of(path)} imports {module}.{name}"


def test_plugins_touch_no_private_attribute_of_what_they_are_given():
    for path in (path for paths in PLUGINS.values() for path in paths):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.endswith("__"):
                owner = ast.unparse(node.value)
                assert owner in {"self", "cls"}, f"{name_of(path)} line {node.lineno}: {owner}.{node.attr}"


def test_built_ins_are_declared_in_the_entry_points_and_nowhere_else():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    declared = project["project"]["entry-points"]["ddbench"]
    assert set(declared.values()) == set(PLUGINS)
    assert len(declared) == len(PLUGINS)
    built = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert set(built) == {"ddbench", *(f"plugins/{name}" for name in PLUGINS)}


def test_the_public_names_are_those_that_a_plugin_needs():
    assert {"Examples", "SyntheticSet", "Problem", "hookimpl"} <= set(ddbench.__all__)
    assert set(ddbench.__all__) == {"PUBLIC_MODULES", "__version__", *ddbench._HOME}
    for name in ddbench.__all__:
        assert getattr(ddbench, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        ddbench.nonsense


def test_public_modules_can_be_imported():
    for name in ddbench.PUBLIC_MODULES:
        assert importlib.import_module(name).__doc__


@pytest.mark.parametrize("old", [*MODULES, "ddbench.trajectory"])
def test_modules_that_plugins_knew_stay_importable_with_a_warning(old):
    asked = {
        "ddbench.augment": "DSA",
        "ddbench.cache": "atomic_write",
        "ddbench.compiled": "Engine",
        "ddbench.decode": "Decoder",
        "ddbench.descent": "catch_up",
        "ddbench.labelling": "mean_labels",
        "ddbench.mixing": "Mixing",
        "ddbench.optimisers": "Adam",
        "ddbench.unroll": "reverse",
        "ddbench.trajectory": "Swept",
    }[old]
    importlib.sys.modules.pop(old, None) if old in MODULES else None
    with pytest.warns(DeprecationWarning, match=f"{old}.* is now ddbench\\.") as warned:
        found = getattr(importlib.import_module(old), asked)
    assert found is getattr(importlib.import_module(MODULES.get(old, "ddbench.trajectory.method")), asked)
    assert len(warned) == 1


def test_names_that_the_module_of_trajectories_had_are_still_there():
    import ddbench.trajectory as package

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in package._MOVED:
            assert getattr(package, name) is not None
        space: dict[str, object] = {}
        exec("from ddbench.augment import *", space)
    assert "DSA" in space


def test_an_old_name_does_not_hide_a_mistake():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(AttributeError, match="no_such_thing"):
            importlib.import_module("ddbench.unroll").no_such_thing
        with pytest.raises(ModuleNotFoundError, match="nothing"):
            importlib.import_module("ddbench.nothing")


# --------------------------------------------------------------------------------- hooks


def test_there_is_one_documented_hook_per_kind():
    marked = {n for n, f in vars(hookspecs).items() if inspect.isfunction(f) and hasattr(f, "ddbench_spec")}
    assert marked == set(hookspecs.HOOKS) == {f"register_{kind}s" for kind in KINDS}
    for name in marked:
        said = inspect.getdoc(getattr(hookspecs, name)) or ""
        assert "register(" in said, f"{name} does not say what to call"
        assert said.endswith(".")


PROTOCOLS = {
    "matcher": "Matcher",
    "scheduler": "Scheduler",
    "dataset": "DatasetSource",
    "network": "NetworkSource",
    "metric": "Metric",
    "executor": "Executor",
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_each_kind_must_bring_is_documented_in_the_same_file(kind):
    protocol = getattr(hookspecs, PROTOCOLS[kind])
    assert len(inspect.getdoc(protocol) or "") > 60
    assert "name" in {*protocol.__annotations__, *vars(protocol)}
    for method in METHODS[kind]:
        assert method in vars(protocol), f"{protocol.__name__} does not declare {method}"


def test_the_example_in_the_extension_api_is_a_plugin_that_registers():
    from ddbench.plugins import _collect

    text = inspect.getdoc(hookspecs)
    assert text is not None
    block = "\n".join(line for line in text.splitlines() if line.startswith("    ") or not line.strip())
    space: dict[str, object] = {"__name__": "example"}
    exec("import torch\n" + inspect.cleandoc("\n" + block), space)
    holder = type("Example", (), {k: staticmethod(v) for k, v in space.items() if k.startswith("register_")})
    found = _collect(holder, "example", "example", "1")
    assert len(found) == 1
    assert found[0].name


# --------------------------------------------------------------------------------- size


def test_files_fit_a_sitting_and_functions_a_glance():
    long = []
    for path in SOURCES:
        text = path.read_text()
        if len(text.splitlines()) > 350:
            long.append(f"{name_of(path)} has {len(text.splitlines())} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = (node.end_lineno or 0) - node.lineno + 1
                if length > 45:
                    long.append(f"{name_of(path)}: {node.name} has {length} lines")
    assert not long, "\n".join(long)


def test_every_file_and_every_public_class_says_what_it_is():
    silent = []
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        if not ast.get_docstring(tree):
            silent.append(name_of(path))
        public = [n for n in tree.body if isinstance(n, ast.ClassDef) and not n.name.startswith("_")]
        silent += [f"{name_of(path)}: class {node.name}" for node in public if not ast.get_docstring(node)]
    assert not silent, "\n".join(silent)


def test_state_lives_in_no_module():
    """No global variable is assigned inside a function, and no mutable default is shared."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            assert not isinstance(node, ast.Global), f"{name_of(path)} line {node.lineno}"
            if isinstance(node, (ast.FunctionDef, ast.Lambda)):
                for default in (*node.args.defaults, *node.args.kw_defaults):
                    assert not isinstance(default, (ast.List, ast.Dict, ast.Set)), f"{name_of(path)} {node.lineno}"
