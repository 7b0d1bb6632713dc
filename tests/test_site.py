"""The documentation as a site: generated pages are up to date, its blocks run, and nothing comes from elsewhere."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from browser import Visit, chromium
from tiny import THREAD

import ddbench

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
NAV = (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")[1]
TINY = {"matcher": "random", "students": 1, "ceiling": False, "device": "cpu", "quiet": True}
SMALL = {"network_options": {"width": 8}, "protocol_options": {"steps": 2, "lrs": 0.03, "judges": 1}}


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), flags=re.M | re.S)


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:  # as where it is run as a script
        patch.syspath_prepend(str(DOCS))
        return runpy.run_path(str(DOCS / "generate.py"))


def test_pages_of_methods_are_those_of_the_methods(made):
    assert [path.name for path in made["stale"]()] == [], "run: python docs/generate.py"
    assert {f"{name}.md" for name in ("tesla", "random", "pdd", "single")} <= {path.name for path in made["pages"]()}


def test_a_page_that_was_edited_by_hand_or_of_a_method_that_is_gone_is_noticed(made, tmp_path, monkeypatch):
    monkeypatch.setitem(made["stale"].__globals__, "PAGES", tmp_path)
    for path, text in made["pages"]().items():
        path.write_text(text)
    assert list(made["stale"]()) == []
    (tmp_path / "gone.md").write_text("# gone\n")
    (tmp_path / "dm.md").write_text("edited")
    assert [path.name for path in made["stale"]()] == ["dm.md", "gone.md"]


def test_every_page_stands_in_the_navigation_once():
    named = re.findall(r"([\w./-]+\.md)$", NAV, flags=re.M)
    assert len(named) == len(set(named))
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    own = {name for name in named if not name.startswith("repository/")}
    assert pages == own, f"add to mkdocs.yml or remove from it: {', '.join(sorted(pages ^ own))}"
    assert all((ROOT / name.removeprefix("repository/")).exists() for name in named if name.startswith("repository/"))


def test_the_reference_names_everything_that_is_public():
    text = "".join(path.read_text() for path in sorted((DOCS / "reference").glob("*.md")))
    named = re.findall(r"^::: ([\w.]+)$", text, flags=re.M)
    assert len(named) == len(set(named))
    names = {f"ddbench.{home}.{name}" for name, home in ddbench._HOME.items() if home != "hookspecs"}
    assert set(named) == {"ddbench.hookspecs", *names, *ddbench.PUBLIC_MODULES}
    for module, kind in ddbench.PUBLIC_MODULES.items():
        assert f"\n*{kind}*\n\n::: {module}\n" in text


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> Path:
    """A current folder and a cache of one's own."""
    for name, value in (THREAD | {"DDBENCH_HOME": str(tmp_path / "home")}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_blocks_of_the_first_ten_minutes_run(elsewhere, monkeypatch, capsys):
    distil = ddbench.distil
    small = {"network_options": {"width": 8, "depth": 1}, "protocol_options": SMALL["protocol_options"]}

    def less(dataset: str, **asked: Any) -> ddbench.Result:
        return distil(dataset, **{**asked, **TINY, **small, "random": True})

    monkeypatch.setattr(ddbench, "distil", less)
    held: dict[str, Any] = {}
    (block,) = blocks("start.md")
    exec(block.replace('network="mlp"', 'network="mlp", students=1, quiet=True'), held)
    assert len(held["train"]) == 10
    assert len(held["table"]) == 2, "the set and one on another network are lines of their own"
    assert "students)" in capsys.readouterr().out


def test_the_block_on_files_reads_a_file(elsewhere):
    made = ddbench.distil("digits", ipc=1, random=False, **TINY, **SMALL)
    (block,) = blocks("file-format.md")
    held: dict[str, Any] = {"path": made.path}
    exec(block, held)
    assert held["classes"] == list(made.classes)
    assert (held["pixels"] - made.images).abs().max() < 1e-6
    text = (DOCS / "file-format.md").read_text()
    assert {*held["document"]} == set(re.findall(r"^\| `(\w+)` \|", text.split("The document")[1], flags=re.M))
    assert made.folder is not None
    for path in made.folder.glob("[!.]*"):
        assert f"`{path.name}{'/' if path.is_dir() else ''}`" in text, path.name


def test_every_page_has_a_place_in_the_site():
    """A page that the navigation lacks ends a strict build."""
    told = (ROOT / "mkdocs.yml").read_text()
    pages = [path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")]
    pages += [f"repository/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "examples").rglob("README.md")]
    assert [page for page in pages if not re.search(rf"[ :-] {re.escape(page)}$", told, flags=re.M)] == []


@pytest.mark.slow
def test_the_site_builds_without_warnings_and_loads_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    pytest.importorskip("mkdocstrings", reason="the extra docs is not installed")
    wall = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    asked = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(asked, cwd=ROOT, env=os.environ | wall, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 60
    for page in pages:
        text = page.read_text()
        loaded = re.findall(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"([^\"]*)", text)
        loaded += re.findall(r"<link\b[^>]*\bhref=\"([^\"]*)", text)
        assert not [link for link in loaded if re.match(r"(?:\w+:)?//", link)], page
    with chromium() as browser:
        for name in ("index.html", "methods/tesla.html", "reference/plugins.html"):
            visit = Visit(browser, tmp_path / "site" / name)
            assert visit.complaints == []
            assert [url for url in visit.requests if not url.startswith(("file:", "data:"))] == []
