"""Pictures of boards: two images per class of each stage, as a WebP of at most 40 kB that is named by what it holds.

Equal pictures are one file. The whole set is in the run; a report shows more of it. The first version of entries kept
the run's whole preview as a PNG with the entry's name: that is read as well.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from ddbench.base.opening import read_bytes, require_regular
from ddbench.base.schema import Count, Held, Number, Text
from ddbench.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

ROWS = 2  # images per class and stage
WIDEST, TALLEST = 960, 3840  # pixels: it travels with the repository
LARGEST = {"WEBP": 40_000, "PNG": 12_000_000}  # bytes; of PNG, all that the first version could write
_STEPS = (1, 2, 4, 8, 17)  # between the levels of a channel; 17 gives 16 of them, white and black included
_QUALITIES = (80, 60, 40, 20)
_NAME = re.compile(r"[0-9a-f]{16}\.webp")


class Part(Held):
    """Where a stage is in a picture, as parts of its height, and how many images per class it shows, of how many."""

    top: Number
    bottom: Number
    shown: Count
    of: Count


class Picture(Held):
    """A picture of a set: the classes of its columns, of how many there are, and its stages."""

    sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    classes: list[Text]
    of: Count
    stages: list[Part]

    def crops(self, image: Image) -> list[Image]:
        """The part of each stage. Raises ValueError where the record names none, or parts that are not in it."""
        rows = [(part.top, part.bottom) for part in self.stages]
        edges = [(round(t * image.height), round(b * image.height)) for t, b in rows if 0 <= t < b <= 1]
        if not rows or len(edges) < len(rows) or any(top == bottom for top, bottom in edges):
            raise ValueError(f"it has no stages at {rows} of its height")
        return [image.crop((0, top, image.width, bottom)) for top, bottom in edges]


def file_name(sha256: str) -> str:
    """What a WebP with this sha256 is called."""
    return f"{sha256[:16]}.webp"


def picture_of(folder: Path) -> tuple[Image, Picture]:
    """A run's preview, with the classes of its columns and the part of its height that each stage takes."""
    from PIL import Image

    from ddbench.grade.distilled import Distilled
    from ddbench.grade.preview import GAP, MAX_CLASSES, MAX_ROWS

    distilled = Distilled.load(folder / "distilled.safetensors")
    each = [len(s) // len(distilled.classes) for s in distilled.curriculum.sets]
    heights = [min(n, MAX_ROWS) * (distilled.curriculum.sets[0].images.shape[2] + GAP) for n in each]
    with Image.open(folder / "preview.png") as image:
        image.load()
    names = list(distilled.classes[:MAX_CLASSES])
    stages = _parts(heights, 2 * GAP, [min(n, MAX_ROWS) for n in each], each)
    return image, Picture(classes=names, of=len(distilled.classes), stages=stages)


def _parts(heights: list[int], gap: int, shown: list[int], of: list[int]) -> list[Part]:
    """Stages of these heights below each other."""
    whole, tops = sum(heights) + gap * (len(heights) - 1), [0]
    for height in heights:
        tops.append(tops[-1] + height + gap)
    return [
        Part(top=top / whole, bottom=(top + height) / whole, shown=few, of=n)
        for top, height, few, n in zip(tops, heights, shown, of, strict=False)
    ]


def small(image: Image, layout: Picture) -> tuple[bytes, Picture]:
    """The first images of each class in each stage of a picture, as a file of at most 40 kB, and where they are."""
    from PIL import Image

    shown = [min(stage.shown, ROWS) for stage in layout.stages]
    pieces = [
        piece.crop((0, 0, piece.width, round(piece.height * few / stage.shown)))
        for piece, few, stage in zip(layout.crops(image), shown, layout.stages, strict=True)
    ]
    heights, gap = [piece.height for piece in pieces], max(4, image.width // 50)
    sheet = Image.new("RGB", (image.width, sum(heights) + gap * (len(heights) - 1)), "white")
    top = 0
    for piece in pieces:
        sheet.paste(piece, (0, top))
        top += piece.height + gap
    sheet.thumbnail((WIDEST, TALLEST))
    stages = _parts(heights, gap, shown, [stage.of for stage in layout.stages])
    return webp(sheet), Picture(classes=layout.classes, of=layout.of, stages=stages)


def webp(image: Image, most: int = LARGEST["WEBP"]) -> bytes:
    """The best WebP of an image that has at most so many bytes.

    Without loss if that fits. Else with fewer levels per channel, which costs noise of distilled pixels less than the
    halved resolution of colours in lossy WebP does; then lossy, and at last smaller.
    """
    for data in _tries(image):
        if len(data) <= most:
            return data
    return webp(image.resize((max(1, image.width // 2), max(1, image.height // 2))), most)


def _tries(image: Image) -> Iterator[bytes]:
    for step in _STEPS:
        levels = [min(255, round(value / step) * step) for value in range(256)]
        yield encoded(image.point(levels * len(image.getbands())))
    for quality in _QUALITIES:
        yield encoded(image, quality)


def encoded(image: Image, quality: int | None = None) -> bytes:
    """A WebP of an image, without loss unless a quality is given."""
    out = io.BytesIO()
    # without loss, quality is effort, and 100 takes fifty times as long for nothing
    image.save(out, "WEBP", lossless=quality is None, quality=quality or 90, method=6)
    return out.getvalue()


def opened(path: Path) -> Image:
    """A picture of an entry in RGB. Raises DataError for a file that is too large, or no still WebP (or old PNG)."""
    kind = "PNG" if path.suffix == ".png" else "WEBP"
    try:
        size = require_regular(path).st_size
        if size > LARGEST[kind]:
            raise ValueError(f"it has {size} bytes, and {LARGEST[kind]} are the most")
        return _decoded(path, kind)
    except (OSError, ValueError, SyntaxError, Warning) as error:
        raise DataError(
            f"{path} is not a picture of an entry ({str(error)[:200]}); submit the runs again with --replace"
        ) from error


def _decoded(path: Path, kind: str) -> Image:
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(path, formats=[kind]) as image:
                if image.width > WIDEST or image.height > TALLEST:
                    raise ValueError(f"{image.width}x{image.height} pixels, and {WIDEST}x{TALLEST} are the most")
                if getattr(image, "n_frames", 1) > 1:
                    raise ValueError("it moves")
                return image.convert("RGB")
        except Image.DecompressionBombError as error:
            raise ValueError(str(error)) from error


def remove_unused(folder: Path, before: str) -> None:
    """Remove the pictures that a text of entries named, if no entry of the folder names them any longer."""
    try:
        after = b"".join(map(read_bytes, folder.glob("*.json"))).decode(errors="replace")
    except DataError:
        return  # an entry that cannot be read may need any of them
    for path in folder.glob("*.webp"):
        if _NAME.fullmatch(path.name) and path.stem in before and path.stem not in after:
            path.unlink(missing_ok=True)
