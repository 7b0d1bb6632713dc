"""The picture of the rooms is drawn from the imports as they are, and docs/design.md names every room."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from xml.etree import ElementTree

import pytest

DOCS = Path(__file__).parents[1] / "docs"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def house():
    return runpy.run_path(str(DOCS / "house.py"))


def test_the_picture_shows_the_imports_as_they_are(house):
    stale = "docs/house.svg shows rooms, modules or arrows of another day; run: python docs/house.py"
    assert (DOCS / "house.svg").read_text() == house["draw"](), stale


def test_the_picture_names_every_room_once_and_is_small(house):
    text = (DOCS / "house.svg").read_text()
    titles = [e.text for e in ElementTree.fromstring(text).iter(f"{SVG}tspan") if "title" in e.get("class", "").split()]
    assert sorted(titles) == sorted(house["words"](room)[0] for room in house["files"]())
    assert {"base/", "hookspecs.py", "plugins.py", "plugins/", "cli/"} <= set(titles)
    assert len(text.encode()) < 40_000


def test_the_arrows_say_all_that_is_imported_and_nothing_twice(house):
    drawn = house["imports"]()

    def beyond(room: str) -> set[str]:
        return drawn[room].union(*map(beyond, drawn[room]))

    for room, paths in house["files"]().items():
        direct = set().union(*map(house["imported"], paths)) - {room}
        assert drawn[room] <= direct <= beyond(room), room
        for other in drawn[room]:
            assert not any(other in beyond(third) for third in drawn[room]), (room, other)


def test_imports_count_wherever_they_stand_but_not_those_for_type_checkers(house, tmp_path):
    path = tmp_path / "some.py"
    path.write_text(
        "from ddbench import PUBLIC_MODULES, Recipe\n"
        "if TYPE_CHECKING:\n    from ddbench.boards.board import Board\n"
        "def late():\n    import ddbench.base.seeds\n    from ddbench import errors\n    import torch\n"
    )
    assert house["imported"](path) == {"train", "base", "errors"}


def test_the_design_page_names_every_room_and_nothing_that_is_gone(house):
    text = (DOCS / "design.md").read_text()
    section = text.split("\n## Rooms\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([\w./]+)` \|", section, flags=re.MULTILINE)
    assert sorted(rows) == sorted(house["words"](room)[0] for room in house["files"]())
    assert "](house.svg)" in section
    for path in re.findall(r"`(\w+/[\w/]+\.py)`", text):
        assert (DOCS.parent / path).exists() or (DOCS.parent / "ddbench" / path).exists(), path
