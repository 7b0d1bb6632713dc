"""The bytes of an image file to a uint8 array; used by decoding processes, which do without torch."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ddbench_datasets.places import Broken, Coloured

# Pillow would also try formats that run programs (EPS calls Ghostscript).
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
GREY = {"1", "L", "LA", "La"}
ORIENTATION = 0x0112  # of EXIF: 1 is upright, up to 8 is turned or mirrored


@contextmanager
def strictly() -> Iterator[None]:
    """Pillow's warnings are the process's: a possible decompression bomb is an error inside, the rest is silent."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as of the EXIF data of a dozen photos of ImageNet
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def image(
    data: bytes, channels: int | None, size: int | None = None, *, grey: bool = False, stretch: bool = False
) -> np.ndarray:
    """An image as (c, h, w) uint8, upright as its EXIF data say, transparency dropped; the first of several frames.

    ``channels`` is 1, 3, or None for as many as the file has. With ``size``, the middle square, or with ``stretch`` all
    of it, is resized to size x size (bicubic, antialiased). Raises Broken for what cannot be decoded whole or has more
    than 8 bits, and Coloured for a colour image where only ``grey`` ones are expected.
    """
    if not data:
        raise Broken("is empty")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            if opened.mode[0] in "IF":
                raise Broken(f"has more than 8 bits per pixel (Pillow's mode {opened.mode}); convert it")
            if grey and opened.mode not in GREY:
                raise Coloured
            one = channels == 1 or (channels is None and opened.mode in GREY)
            plain = _sized(_plain(_upright(opened), "L" if one else "RGB"), size, stretch)
    except (Broken, Coloured, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise Broken(f"is in none of the formats {', '.join(FORMATS)}") from error
    except Exception as error:  # decoders raise a dozen types on broken bytes
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise Broken(f"cannot be read as an image ({reason})") from error
    array = np.asarray(plain)
    return array[None] if one else np.ascontiguousarray(array.transpose(2, 0, 1))


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:  # noqa: BLE001 - damaged EXIF data make no image unreadable
        return image
    return ImageOps.exif_transpose(image) if orientation in range(2, 9) else image


def _plain(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns about the direct way
    return image.convert(mode)


def _sized(image: Image.Image, size: int | None, stretch: bool) -> Image.Image:
    if size is None or image.size == (size, size):
        return image
    if stretch:
        return image.resize((size, size), Image.Resampling.BICUBIC)
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return image.resize((size, size), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
