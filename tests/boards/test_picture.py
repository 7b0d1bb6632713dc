"""Pictures of entries: what they show, what is refused, when they go, and those of the first version."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from boardkit import board, made, pictured, posted
from PIL import Image

from ddbench.base.cache import digest, read_json, write_json
from ddbench.boards import picture as pictures
from ddbench.boards.board import Board
from ddbench.boards.entry import Entry
from ddbench.boards.picture import LARGEST, ROWS, TALLEST, WIDEST, file_name, opened, picture_of, small, webp
from ddbench.boards.ranking import build, stale, standings
from ddbench.boards.submit import convert, submit
from ddbench.errors import DataError


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    return made(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def staged(tmp_path_factory) -> Path:
    """Two stages, of three images per class each."""
    return made(tmp_path_factory.mktemp("runs"), "random", seeds=(0,), scheduler="pdd", ipc=6)[0]


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def saved(image: Image.Image, kind: str = "WEBP", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def files(made_: Board) -> set[str]:
    return {path.name for path in (made_.folder / "entries").iterdir()}


# --------------------------------------------------------------------------------- what is shown


def test_a_picture_shows_two_images_per_class_of_each_stage_to_the_last_bit(staged, tmp_path):
    whole, layout = picture_of(staged)
    assert [(s.shown, s.of) for s in layout.stages] == [(3, 3), (3, 3)]
    data, few = small(whole, layout)
    (tmp_path / file_name(digest(data))).write_bytes(data)
    image = opened(tmp_path / file_name(digest(data)))
    assert [(s.shown, s.of) for s in few.stages] == [(ROWS, 3), (ROWS, 3)]
    assert few.classes == ["0", "1", "2"]
    first, second = few.stages
    assert 0 == first.top < first.bottom < second.top < second.bottom == 1
    for shown, full in zip(few.crops(image), layout.crops(whole), strict=True):
        assert shown.size == (full.width, full.height * ROWS // 3)
        assert shown.tobytes() == full.convert("RGB").crop((0, 0, *shown.size)).tobytes()


def test_the_picture_of_an_entry_is_small_and_named_by_what_it_holds(runs, tmp_path):
    (path,) = submit(runs, board(tmp_path, runs[0]), replace=False)
    entry = Entry.read(path)
    data = entry.picture_file.read_bytes()
    assert entry.picture_file == path.with_name(f"{digest(data)[:16]}.webp")
    assert len(data) <= LARGEST["WEBP"]
    entry.picture_file.write_bytes(b"another")
    with pytest.raises(DataError, match="not the picture"):
        Entry.read(path)
    entry.picture_file.unlink()
    with pytest.raises(DataError, match="not the picture"):
        Entry.read(path)


def test_a_noisy_picture_keeps_its_colours_and_gives_up_levels():
    image = noise(200, 68)
    data = webp(image)
    assert len(data) <= LARGEST["WEBP"] < len(saved(image, lossless=True))
    again = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), float)
    assert np.abs(again - np.asarray(image, float)).max() <= 17 / 2


@pytest.mark.parametrize("most", [40_000, 3_000, 200])
def test_every_picture_fits(most):
    data = webp(noise(400, 300), most)
    assert len(data) <= most
    assert Image.open(io.BytesIO(data)).format == "WEBP"


def test_black_and_white_stay_so_with_few_levels(monkeypatch):
    monkeypatch.setattr(pictures, "_STEPS", (17,))
    image = Image.fromarray(np.arange(256, dtype=np.uint8).repeat(4).reshape(32, 32))
    again = np.asarray(Image.open(io.BytesIO(webp(image))))[..., 0].ravel()
    assert (again[0], again[-1], len(set(again))) == (0, 255, 16)


def test_pages_show_pictures_as_webp_that_holds_the_same_pixels(staged, tmp_path):
    from ddbench.boards.site_data import Seen

    made_ = board(tmp_path, staged, seeds=[0, 1], ipc=[6])
    posted(made_, staged, "one", [0.5, 0.6], ipc=6, picture=pictured(made_, staged))
    (entry,) = made_.entries()
    assert entry.picture
    image = opened(entry.picture_file)
    views = Seen(image, entry.picture).views()
    assert [view["caption"].split(",")[0] for view in views] == [f"Stage {i} of 2: synthetic images" for i in (1, 2)]
    assert "2 of 3 per class" in views[0]["caption"]
    for view, part in zip(views, entry.picture.crops(image), strict=True):
        kind, text = view["uri"].split(",")
        assert kind == "data:image/webp;base64"
        with Image.open(io.BytesIO(base64.b64decode(text)), formats=["WEBP"]) as shown:
            assert (shown.size, shown.convert("RGB").tobytes()) == (part.size, part.tobytes())
            assert shown.size == (view["width"], view["height"])


def test_the_report_of_a_run_shows_all_its_images(staged):
    from ddbench.boards.report import report

    text = report(staged)
    assert "Stage 2 of 2: synthetic images, 3 per class" in text
    sheets = re.findall(r'<figure class="images">.*?</figure>', text, re.DOTALL)
    assert [sheet.count("data:image/webp;base64,") for sheet in sheets] == [1, 1]


# --------------------------------------------------------------------------------- what is refused

FINE = noise(30, 20)
BAD = {
    "png": (saved(FINE, "PNG"), "cannot identify"),
    "jpeg": (saved(FINE, "JPEG"), "cannot identify"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>", "cannot identify"),
    "empty": (b"", "cannot identify"),
    "cut": (saved(FINE, lossless=True)[:-200], ""),
    "animated": (saved(FINE, save_all=True, append_images=[noise(30, 20).rotate(180)]), "it moves"),
    "heavy": (saved(FINE, lossless=True) + bytes(LARGEST["WEBP"]), r"it has \d+ bytes, and 40000 are the most"),
    "wide": (saved(Image.new("RGB", (WIDEST + 1, 1))), "961x1 pixels, and 960x3840 are the most"),
    "tall": (saved(Image.new("RGB", (1, TALLEST + 1))), "1x3841 pixels"),
    "bomb": (saved(Image.new("L", (16000, 16000)), lossless=True, method=0), "(exceeds limit|pixels)"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_picture_is_refused_though_the_entry_records_it(runs, tmp_path, kind):
    data, reason = BAD[kind]
    made_ = board(tmp_path, runs[0])
    seen = pictured(made_, runs[0])
    (made_.folder / "entries" / file_name(digest(data))).write_bytes(data)
    posted(made_, runs[0], "one", [0.5, 0.6], picture=seen | {"sha256": digest(data)})
    with pytest.raises(DataError, match=rf"{file_name(digest(data))} is not a picture of an entry \(.*{reason}"):
        made_.entries()


@pytest.mark.parametrize(
    ("told", "match"),
    [
        ({"stages": []}, r"one.json misdescribes its picture \(it has no stages at"),
        ({"stages": [{"top": 0.5, "bottom": 0.2, "shown": 1, "of": 1}]}, "misdescribes its picture"),
        ({"stages": [{"top": 0.0, "bottom": 1.5, "shown": 1, "of": 1}]}, "misdescribes its picture"),
        ({"stages": [{"top": 0.5, "bottom": 0.5001, "shown": 1, "of": 1}]}, "misdescribes its picture"),
        ({"stages": [{"top": float("nan"), "bottom": 1.0, "shown": 1, "of": 1}]}, "NaN is not a number of JSON"),
        ({"stages": [{"top": 0.0, "bottom": 1.0, "shown": 0, "of": 1}]}, "stages.0.shown: "),
        ({"sha256": "../../../etc/pass"}, r"one.json is damaged \(picture.sha256: "),
        ({"sha256": ""}, "is not the picture that one.json records"),
    ],
)
def test_a_picture_that_is_described_wrongly_is_refused(runs, tmp_path, told, match):
    made_ = board(tmp_path, runs[0])
    seen = pictured(made_, runs[0])
    entry = posted(made_, runs[0], "one", [0.5, 0.6], picture=seen)
    (made_.folder / "entries" / "one.json").write_text(json.dumps(entry | {"picture": seen | told}))
    with pytest.raises(DataError, match=match):
        made_.entries()


def test_a_picture_of_gigabytes_is_refused_by_its_size_before_it_is_read(runs, tmp_path, monkeypatch):
    made_ = board(tmp_path, runs[0])
    seen = pictured(made_, runs[0])
    posted(made_, runs[0], "one", [0.5, 0.6], picture=seen)
    with next((made_.folder / "entries").glob("*.webp")).open("r+b") as stream:
        stream.truncate(2**31)  # a hole: it takes no room
    monkeypatch.setattr("ddbench.boards.entry.file_digest", lambda path: pytest.fail(f"{path} was read"))
    with pytest.raises(DataError, match=r"is not the picture that one.json records"):
        made_.entries()


def test_an_entry_of_a_later_version_is_refused(runs, tmp_path):
    made_ = board(tmp_path, runs[0])
    posted(made_, runs[0], "one", [0.5, 0.6], format=4)
    with pytest.raises(DataError, match="has format 4; this ddbench reads 1 to 3: update it"):
        made_.entries()


# --------------------------------------------------------------------------------- when pictures go


def altered(folders: list[Path], to: Path) -> list[Path]:
    """The same runs with another preview."""
    copies = [Path(shutil.copytree(folder, to / folder.name)) for folder in folders]
    for folder in copies:
        with Image.open(folder / "preview.png") as image:
            image.transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(folder / "preview.png")
        result = read_json(folder / "result.json")
        result["sha256"]["preview.png"] = digest((folder / "preview.png").read_bytes())
        write_json(folder / "result.json", result)
    return copies


def test_a_picture_stays_while_an_entry_uses_it_and_goes_with_the_last(runs, tmp_path):
    made_ = board(tmp_path / "boards", runs[0])
    (path,) = submit(runs, made_, replace=False)
    first = Entry.read(path).picture_file
    other = Path(shutil.copy(path, path.with_name("other.json")))
    assert Entry.read(other).picture_file == first, "two entries, one file"

    submit(altered(runs, tmp_path / "runs"), made_, replace=True)
    second = Entry.read(path).picture_file
    assert files(made_) == {path.name, other.name, first.name, second.name}
    assert len(made_.entries()) == 2

    other.unlink()
    submit(runs, made_, replace=True)
    assert files(made_) == {path.name, first.name}
    submit(runs, made_, replace=True, note="the same picture")
    assert files(made_) == {path.name, first.name}
    assert len(made_.entries()) == 1


def test_a_picture_that_nobody_uses_disturbs_nobody(runs, tmp_path):
    made_ = board(tmp_path, runs[0])
    (path,) = submit(runs, made_, replace=False)
    other = path.with_name("0123456789abcdef.webp")
    other.write_bytes(b"of an entry that somebody is about to write")
    for target, text in build([made_], tmp_path, [made_]).items():
        target.write_text(text)
    assert not stale(build([made_], tmp_path, [made_]))
    submit(runs, made_, replace=True)
    assert other.exists()


# --------------------------------------------------------------------------------- the first version


def of_the_first_version(made_: Board, folder: Path, name: str = "one", matcher: str = "random") -> Path:
    """An entry as it was written then: the whole preview as a PNG with the entry's name, and indented JSON."""
    image, layout = picture_of(folder)
    path = made_.folder / "entries" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    data = saved(image, "PNG", optimize=True)
    path.with_suffix(".png").write_bytes(data)
    ipc = read_json(folder / "spec.json")["ipc"]
    told = layout.json_value() | {"sha256": digest(data)}
    posted(made_, folder, name, [0.51, 1 / 3], ipc=ipc, matcher=matcher, format=1, picture=told)
    return path


def test_an_entry_of_the_first_version_is_read_and_shown(staged, tmp_path):
    from ddbench.boards import site

    made_ = board(tmp_path, staged, ipc=[6])
    of_the_first_version(made_, staged)
    pages = site.site([standings(made_)])
    (page,) = [text for name, text in pages.items() if name.startswith("toys/") and name.endswith(".html")]
    assert "Stage 2 of 2: synthetic images, 3 per class" in page
    assert len(re.findall(r"<img [^>]*\.webp", page)) == 2


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (saved(FINE), r"one.png is not a picture of an entry \(cannot identify"),
        (saved(FINE, "PNG", save_all=True, append_images=[FINE.rotate(180)]), r"one.png .* \(it moves\)"),
        (saved(Image.new("RGB", (WIDEST + 1, 1)), "PNG"), r"one.png .* \(961x1 pixels"),
    ],
    ids=["webp", "moving", "wide"],
)
def test_a_bad_picture_of_the_first_version_is_refused(runs, tmp_path, data, match):
    made_ = board(tmp_path, runs[0])
    path = of_the_first_version(made_, runs[0])
    path.with_suffix(".png").write_bytes(data)
    with pytest.raises(DataError, match=r"is not the picture that one.json records"):
        made_.entries()
    held = read_json(path)
    write_json(path, held | {"picture": held["picture"] | {"sha256": digest(data)}})
    with pytest.raises(DataError, match=match):
        made_.entries()


def test_an_entry_of_the_first_version_is_replaced_with_its_picture(runs, tmp_path):
    made_ = board(tmp_path, runs[0])
    (path,) = submit(runs, made_, replace=False)
    new = files(made_)
    of_the_first_version(made_, runs[0], path.stem)
    Entry.read(path)
    submit(runs, made_, replace=True)
    assert files(made_) == new


def without_pictures(texts: dict[Path, str]) -> dict[Path, str]:
    """Tables alone: the picture of an entry is named by what it holds."""
    return {path: re.sub(r"!\[[^]]*\]\([^)]*\)", "", text) for path, text in texts.items()}


def test_a_conversion_changes_pictures_and_layout_and_no_number(staged, tmp_path):
    made_ = board(tmp_path, staged, ipc=[6])
    path, twin = (of_the_first_version(made_, staged, name, name) for name in ("dm", "mtt"))
    posted(made_, staged, "gone", [None, None], ipc=6, matcher="tesla", format=1)
    before = {p.name: Entry.read(p).json_value() for p in path.parent.glob("*.json")}
    tables = without_pictures(build([made_], tmp_path, [made_]))
    assert len(convert(made_.folder)) == 3
    after = {p.name: Entry.read(p).json_value() for p in path.parent.glob("*.json")}
    changed = ("picture", "format")
    for name, held in before.items():
        assert [after[name][n] for n in held if n not in changed] == [held[n] for n in held if n not in changed]
    assert without_pictures(build([made_], tmp_path, [made_])) == tables
    entry = Entry.read(path)
    assert files(made_) == {path.name, twin.name, "gone.json", entry.picture_file.name}
    data, layout = small(*picture_of(staged))
    assert entry.picture == layout.model_copy(update={"sha256": digest(data)})
    texts = {p: p.read_bytes() for p in path.parent.iterdir()}
    convert(made_.folder)
    assert {p: p.read_bytes() for p in path.parent.iterdir()} == texts, "twice is as once"
