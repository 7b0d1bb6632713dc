"""Hooks of MkDocs: files outside of docs/ that pages link to become a part of the site, which is then complete."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import File, Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
OUTSIDE = "repository"  # the folder of the site for files that are not in docs/
LINK = re.compile(r"\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)")  # neither elsewhere nor within the page


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add each file of the repository that a page links to: Markdown as a page, anything else as it is."""
    from mkdocs.structure.files import File

    waiting = [DOCS / file.src_uri for file in files.documentation_pages()]
    while waiting:
        page = waiting.pop()
        for target, _ in LINK.findall(page.read_text(encoding="utf-8")):
            path = linked(page, target)
            if path is not None and files.get_file_from_path(uri(path)) is None:
                files.append(File.generated(config, uri(path), abs_src_path=str(path)))
                waiting += [path] if path.suffix == ".md" else []
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Let links lead to where their files are in the site."""
    here = source(page.file)

    def moved(found: re.Match[str]) -> str:
        path = linked(here, found[1])
        if path is None:  # MkDocs says so
            return found[0]
        return f"]({posixpath.relpath(uri(path), posixpath.dirname(page.file.src_uri))}{found[2] or ''})"

    return LINK.sub(moved, markdown)


def linked(page: Path, target: str) -> Path | None:
    """The file of the repository that a link leads to, or None; of a folder its README.md, or that of one above."""
    path = (page.parent / target).resolve()
    if path.is_dir():
        path = next((up / "README.md" for up in (path, *path.parents) if (up / "README.md").is_file()), path)
    return path if path.is_file() and path.is_relative_to(ROOT) else None


def source(file: File) -> Path:
    """Where the file of a page lies."""
    inside = file.src_uri.removeprefix(f"{OUTSIDE}/")
    return (DOCS if inside == file.src_uri else ROOT) / inside


def uri(path: Path) -> str:
    """Where a file lies in the site, as MkDocs names it."""
    if path == ROOT / "README.md":
        return "index.md"
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    return f"{OUTSIDE}/{path.relative_to(ROOT).as_posix()}"
