"""Which modules are the code behind a class: all that decide what it does, and no library."""

from __future__ import annotations

import importlib
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from ddbench_networks.convnet import ConvNet
from modules import Bare

from ddbench.base import code
from ddbench.files.class_order import Reordered

Write = Callable[..., Any]
CACHED = (code.source_digest, code.roots_of, code.root_of, code._imports, code._plugged)


@pytest.fixture
def write(tmp_path, monkeypatch) -> Iterator[Write]:
    """Writes files to a folder on the path and imports the first of them; all is forgotten after."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(**files: str) -> Any:
        for name, text in files.items():
            path = tmp_path / f"{name.replace('__IN__', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))
        forget()
        return importlib.import_module(next(iter(files)).replace("__IN__", ".").removesuffix(".__init__"))

    yield write
    forget()
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def forget() -> None:
    importlib.invalidate_caches()
    for held in CACHED:
        held.cache_clear()


def names(cls: type) -> list[str]:
    return sorted(code.code_of(cls))


def test_roots_are_outermost_packages_and_modules_but_no_namespaces(write, tmp_path):
    inner = write(space__IN__inner__IN____init__="class A: pass")
    other = write(space__IN__inner__IN__other="class B: pass")
    single = write(space__IN__single="class C: pass")
    assert code.root_of(inner.A.__module__) == code.root_of(other.B.__module__)
    assert code.root_of(inner.A.__module__) == ("space.inner", tmp_path / "space" / "inner")
    assert code.root_of(single.C.__module__) == ("space.single", tmp_path / "space" / "single.py")
    assert code.root_of("no_such_module") is None
    assert code.code_of(type("Nowhere", (), {"__module__": "no_such_module"})) == {}


@pytest.mark.parametrize(
    "how",
    [
        "import aid",
        "from aid import X",
        "def late():\n    import aid",
        "import importlib\naid = importlib.import_module('aid')",
        "aid = __import__('aid')",
        "try:\n    from aid import Y\nexcept ImportError: pass",
    ],
)
def test_a_module_beside_that_is_imported_counts_and_one_that_is_not_does_not(write, tmp_path, how):
    main = write(main=f"{how}\nclass M: pass", aid="X = 1", alone="Z = 1")
    assert names(main.M) == ["aid", "main"]
    before = code.code_of(main.M)
    (tmp_path / "aid.py").write_text("X = 2")
    assert code.code_of(main.M) == before  # it is what this process loaded
    forget()
    after = code.code_of(main.M)
    assert after["main"] == before["main"]
    assert after["aid"] != before["aid"]


def test_what_is_imported_by_what_is_imported_counts_too(write):
    main = write(main="import one\nclass M: pass", one="from two import X", two="import main\nX = 1")
    assert names(main.M) == ["main", "one", "two"]


def test_all_of_a_package_counts_whoever_imports_it(write, tmp_path):
    main = write(pack__IN____init__="class M: pass", pack__IN__deep__IN__unused="X = 1")
    before = code.code_of(main.M)
    (tmp_path / "pack" / "deep" / "unused.py").write_text("X = 2")
    (tmp_path / "pack" / "notes.txt").write_text("words")
    forget()
    changed = code.code_of(main.M)
    assert list(changed) == ["pack"]
    assert changed != before
    (tmp_path / "pack" / "notes.txt").write_text("other words")
    forget()
    assert code.code_of(main.M) == changed
    (tmp_path / "pack" / "kernel.cu").write_text("//")
    forget()
    assert code.code_of(main.M) != changed


@pytest.mark.parametrize(
    "how", ["from . import aid", "from .aid import X", "import space.aid", "from space import aid"]
)
def test_parts_of_a_namespace_count_by_themselves(write, how):
    main = write(space__IN__main=f"{how}\nclass M: pass", space__IN__aid="X = 1", space__IN__alone="")
    assert names(main.M) == ["space.aid", "space.main"]


def test_relative_imports_from_a_package_of_a_namespace_reach_its_neighbours(write):
    main = write(space__IN__pack__IN____init__="from ..aid import X\nclass M: pass", space__IN__aid="X = 1")
    assert names(main.M) == ["space.aid", "space.pack"]


def test_base_classes_count_wherever_they_come_from(write, tmp_path):
    main = write(main="from base import B\nclass M(B): pass", base="import aid\nclass B: pass", aid="")
    assert names(main.M) == ["aid", "base", "main"]
    site = tmp_path / "site-packages"
    site.mkdir()
    (tmp_path / "base.py").rename(site / "base.py")
    sys.path.insert(1, str(site))
    try:
        for name in ("main", "base", "aid"):
            sys.modules.pop(name)
        again = write(main="from base import B\nimport pytest, numpy, torch\nclass M(B): pass")
        assert names(again.M) == ["aid", "base", "main"]
        assert code.in_development(again.M) == {"aid", "main"}
    finally:
        sys.path.remove(str(site))


def test_libraries_and_ddbench_itself_do_not_count(write):
    main = write(main="import torch, numpy, json, pytest, ddbench\nfrom ddbench import Problem\nclass M: pass")
    assert names(main.M) == ["main"]
    module = write(net="import torch\nclass N(torch.nn.Module): pass")
    assert names(module.N) == ["net"]
    assert code.code_of(Reordered) == {}


def test_a_file_that_is_no_python_is_part_of_the_source_and_imports_nothing(write):
    main = write(pack__IN____init__="class M: pass", pack__IN__old="print 'two'")
    assert names(main.M) == ["pack"]


def test_an_installed_distribution_counts_whole_and_another_one_only_where_it_brings_plugins(write, tmp_path):
    site = tmp_path / "site-packages"
    for name, files in {"mine": ("main.py", "extra.py"), "theirs": ("theirs.py",)}.items():
        about = site / f"{name}-1.0.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text(f"[ddbench]\n{name} = {files[0][:-3]}\n")
        (about / "RECORD").write_text("".join(f"{file},,\n" for file in (*files, f"{name}-1.0.dist-info/METADATA")))
    (site / "extra.py").write_text("")
    (site / "theirs.py").write_text("")
    (site / "library.py").write_text("")
    (site / "main.py").write_text("import library, theirs\nclass M: pass")
    sys.path.insert(0, str(site))
    try:
        forget()
        main = importlib.import_module("main")
        assert names(main.M) == ["extra", "main", "theirs"]
        assert code.in_development(main.M) == set()
    finally:
        sys.path.remove(str(site))
        forget()


def test_built_in_classes_have_their_package_and_no_foreign_code():
    assert names(ConvNet) == ["ddbench_networks"]
    assert code.foreign_code(ConvNet) == {}
    assert code.in_development(ConvNet) == set()
    assert "modules" in code.foreign_code(Bare)


def test_what_inherits_from_a_built_in_has_its_code_but_is_kept_by_its_own(write):
    main = write(main="from ddbench_networks.convnet import ConvNet\nclass M(ConvNet): pass")
    assert names(main.M) == ["ddbench_networks", "main"]
    assert list(code.foreign_code(main.M)) == ["main"]
