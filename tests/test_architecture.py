"""The shape of the code: who may import whom, who may print, how long things are, where built-ins enter."""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import ddbench
from ddbench import hookspecs
from ddbench.plugins import _METHODS, KINDS

ROOT = Path(__file__).parent.parent
CORE = {path.stem: path for path in sorted((ROOT / "ddbench").glob("*.py"))}
PLUGINS = {
    folder.name: sorted(folder.rglob("*.py")) for folder in sorted((ROOT / "plugins").iterdir()) if folder.is_dir()
}
SOURCES = [*CORE.values(), *(path for paths in PLUGINS.values() for path in paths)]

# A module may import from lower lines only, or from its own. Anything new has to be placed here.
LAYERS = [
    "errors progress meter",
    "cache seeds records interrupt workers precision shelf",
    "pixels tensors",
    "preprocessing significance published scores",
    "data augment mixing optimisers decode",
    "sets networks checkpoint",
    "training preview pixelspace",
    "cohort",
    "starts derivatives compiled steps unroll",
    "experts",
    "problem protocols view descent stacking labelling",
    "trajectory hookspecs evaluate reduce",
    "plugins",
    "spec files",
    "stage grading results gradcheck torchfiles order fitting",
    "run foreign",
    "memory importing exporting",
    "conditions tables lines contrasts evaluating bench compare boards entries trial submitting pairs",
    "controls continual ranking cells trackers leaderboard charts",
    "views",
    "pages",
    "standings",
    "suite",
    "testing preparing",
    "console",
    "commands describing",
    "cli_options",
    "cli_files cli_apply cli_suite cli_boards",
    "cli",
    "__main__ __init__",
]
LEVEL = {name: level for level, line in enumerate(LAYERS) for name in line.split()}

CLI = {"cli.py", "cli_options.py", "cli_files.py", "cli_apply.py", "cli_suite.py", "cli_boards.py"}
COMMAND_LINE = {name.removesuffix(".py") for name in CLI} | {"commands", "describing", "console"}

# What plugins may use besides the names of ``ddbench`` itself: the gradient engine, what trajectory methods
# share, and safe bytes on disk. Not the loop, the spec, the registry, or anything that prints.
PUBLIC_MODULES = {
    "unroll",
    "compiled",
    "trajectory",
    "descent",
    "labelling",
    "augment",
    "cache",
    "decode",
    "optimisers",
    "mixing",
}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path, *, typing: bool = True) -> Iterator[tuple[str, str | None]]:
    """(module, name) of every import, wherever it stands; without those under ``if TYPE_CHECKING`` if asked."""
    tree = ast.parse(path.read_text())
    hidden = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            hidden |= {id(inner) for part in node.body for inner in ast.walk(part)}
    for node in ast.walk(tree):
        if not typing and id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from ((node.module or "", alias.name) for alias in node.names)


def packages(path: Path) -> set[str]:
    return {module.partition(".")[0] for module, _ in imports(path)}


def core_modules(path: Path, *, typing: bool = True) -> set[str]:
    """Modules of ddbench that a file imports, by either spelling."""
    found = set()
    for module, name in imports(path, typing=typing):
        if module == "ddbench" and name in CORE:
            found.add(name)
        elif module.startswith("ddbench."):
            found.add(module.split(".")[1])
    return found


def test_there_is_something_to_check():
    assert len(CORE) > 20
    assert len(PLUGINS) >= 5
    assert all(PLUGINS.values())


def test_every_module_has_its_place_in_the_layers():
    assert set(CORE) <= set(LEVEL), "a new module: decide in LAYERS what may import it"


@pytest.mark.parametrize("name", [n for n in CORE if n != "__init__"])
def test_modules_import_only_what_lies_below_them(name):
    for other in core_modules(CORE[name], typing=False):
        assert LEVEL[other] <= LEVEL[name], f"{name} imports {other}, which lies above it"


def test_modules_do_not_import_each_other_in_a_circle():
    graph = {name: core_modules(path, typing=False) - {name} for name, path in CORE.items() if name != "__init__"}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name not in done:
            for other in graph.get(name, ()):
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("name", CORE)
def test_the_core_knows_no_method(name):
    text = CORE[name].read_text()
    assert not {p for p in packages(CORE[name]) if p.startswith("ddbench_")}
    assert not re.search("|".join(PLUGINS), text), "the core names a plugin"


@pytest.mark.parametrize("name", sorted(set(CORE) - COMMAND_LINE - {"__main__"}))
def test_only_the_command_line_imports_the_command_line(name):
    assert not core_modules(CORE[name]) & COMMAND_LINE


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_libraries_stay_where_they_belong(path):
    used = packages(path)
    home = {"pluggy": {"plugins.py", "hookspecs.py"}, "click": CLI, "rich": {"console.py"},
            "pandas": {"compare.py"}, "jinja2": {"pages.py"}, "matplotlib": {"charts.py"}}  # fmt: skip
    for library, files in home.items():
        assert library not in used or (path.parent.name == "ddbench" and path.name in files), library


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_only_the_console_prints(path):
    if path == CORE["console"]:
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"print", "click.echo", "pprint"}, f"line {node.lineno}"
            assert not re.fullmatch(r"sys\.(stdout|stderr)\.\w+", called), f"line {node.lineno}"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_nothing_is_unpickled(path):
    text = path.read_text()
    assert not packages(path) & {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    for call in re.findall(r"torch\.load\([^)]*\)", text):
        assert "weights_only=True" in call
    assert "allow_pickle=True" not in text
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in {"eval", "exec", "compile", "__import__", "os.system"}


# --------------------------------------------------------------------------------- plugins


@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_plugin_never_imports_another_plugin(plugin):
    for path in PLUGINS[plugin]:
        others = {p for p in packages(path) if p.startswith("ddbench_")} - {plugin}
        assert not others, f"{name_of(path)} imports {others}"


@pytest.mark.parametrize("plugin", PLUGINS)
def test_built_in_plugins_use_only_public_names(plugin):
    for path in PLUGINS[plugin]:
        for module, name in imports(path):
            if module == "ddbench":
                assert name in ddbench.__all__ or name in PUBLIC_MODULES, f"{name_of(path)} uses ddbench.{name}"
            elif module.startswith("ddbench."):
                assert module.split(".")[1] in PUBLIC_MODULES, f"{name_of(path)} imports {module}"
                assert not (name or "").startswith("_"), f"{name_of(path)} imports {module}.{name}"


@pytest.mark.parametrize("plugin", PLUGINS)
def test_plugins_touch_no_private_attribute_of_what_they_are_given(plugin):
    for path in PLUGINS[plugin]:
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
    for name in ddbench.__all__:
        assert getattr(ddbench, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        ddbench.nonsense


# --------------------------------------------------------------------------------- hooks


def test_there_is_one_documented_hook_per_kind():
    marked = {n for n, f in vars(hookspecs).items() if inspect.isfunction(f) and hasattr(f, "ddbench_spec")}
    assert marked == set(hookspecs.HOOKS) == {f"register_{kind}s" for kind in KINDS}
    for name in marked:
        said = inspect.getdoc(getattr(hookspecs, name)) or ""
        assert "register(" in said, f"{name} does not say what to call"
        assert said.endswith(".")


PROTOCOLS = {"matcher": "Matcher", "scheduler": "Scheduler", "dataset": "DatasetSource", "network": "NetworkSource",
             "metric": "Metric"}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_what_each_kind_must_bring_is_documented_in_the_same_file(kind):
    protocol = getattr(hookspecs, PROTOCOLS[kind])
    assert len(inspect.getdoc(protocol) or "") > 60
    assert "name" in protocol.__annotations__
    for method in _METHODS[kind]:
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


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_fit_a_sitting_and_functions_a_glance(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 320
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= 45, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_every_file_and_every_public_class_says_what_it_is(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "the module has no docstring"
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"class {node.name} has no docstring"


def test_state_lives_in_no_module():
    """No global variable is assigned inside a function, and no mutable default is shared."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            assert not isinstance(node, ast.Global), f"{name_of(path)} line {node.lineno}"
            if isinstance(node, (ast.FunctionDef, ast.Lambda)):
                for default in (*node.args.defaults, *node.args.kw_defaults):
                    assert not isinstance(default, (ast.List, ast.Dict, ast.Set)), f"{name_of(path)} {node.lineno}"
