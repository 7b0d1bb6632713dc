"""Old names of modules: what they hand out, what they do not, and whom the warning points at."""

from __future__ import annotations

import importlib
import sys
import warnings

import pytest

from ddbench.base import moved


@pytest.fixture
def old():
    """An import of an old name as if for the first time, without its warning."""

    def find(name: str):
        sys.modules.pop(name, None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)

    return find


def test_the_warning_points_at_the_line_that_imports():
    sys.modules.pop("ddbench.augment", None)
    with pytest.warns(DeprecationWarning, match="ddbench.augment is now ddbench.data.augment") as caught:
        exec(compile("1\n2\nimport ddbench.augment\n", "somebodys_plugin.py", "exec"), {})
    assert [(w.filename, w.lineno) for w in caught] == [("somebodys_plugin.py", 3)]


def test_what_was_compiled_is_found_in_both_modules_that_it_became(old):
    from ddbench.train import compile as compiling
    from ddbench.trajectory import engine

    both = old("ddbench.compiled")
    (name, *_) = [n for n in vars(compiling) if not n.startswith("_") and not hasattr(engine, n)]
    assert getattr(both, name) is getattr(compiling, name)
    assert both.Engine is engine.Engine


@pytest.mark.parametrize("module", moved.MODULES)
def test_an_old_name_has_what_the_module_has_and_nothing_else(old, module):
    found, now = old(module), importlib.import_module(moved.MODULES[module])
    assert sorted(found.__all__) == sorted(name for name in vars(now) if not name.startswith("_"))
    for name in ("no_such_name", "__path__", "__file__", "__zzz__"):
        assert not hasattr(found, name)
    if module != "ddbench.compiled":
        assert not hasattr(found, "is_wanted")


def test_the_finder_is_installed_once_and_finds_old_names_alone():
    moved.install()
    moved.install()
    (finder,) = [f for f in sys.meta_path if isinstance(f, moved.Finder)]
    assert {name for name in [*moved.MODULES, "ddbench.base", "json"] if finder.find_spec(name, None)} == set(
        moved.MODULES
    )
