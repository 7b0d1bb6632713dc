"""Grids of images as pages show them: clear between the images, so that a dark page has no white gaps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ddbench.grade.preview import GAP

if TYPE_CHECKING:
    from PIL.Image import Image

LEAST = 3  # pixels of an image with its gap: below, there is nothing to tell apart


def clear(sheet: Image, columns: int, rows: int, sides: Sequence[int] | None) -> Image:
    """A sheet of ``rows`` times ``columns`` images, each followed by a white gap, with the gaps transparent.

    ``sides`` (h, w) are those of a stored image, whose gaps have :data:`GAP` such pixels, whatever the sheet's scale.
    Where they are not known the sheet is given back as it is.
    """
    from PIL import Image, ImageDraw

    wide, tall = sheet.width / max(columns, 1), sheet.height / max(rows, 1)
    if sides is None or min(wide, tall) < LEAST:
        return sheet
    mask = Image.new("L", sheet.size, 0)
    draw = ImageDraw.Draw(mask)
    high, across = tall * sides[0] / (sides[0] + GAP), wide * sides[1] / (sides[1] + GAP)
    for i in range(rows):
        for j in range(columns):
            left, top = round(j * wide), round(i * tall)
            right, bottom = int(j * wide + across + 1e-6), int(i * tall + high + 1e-6)  # no half pixel of a gap
            draw.rectangle((left, top, right - 1, bottom - 1), fill=255)
    found = sheet.convert("RGBA")
    found.putalpha(mask)
    return found
