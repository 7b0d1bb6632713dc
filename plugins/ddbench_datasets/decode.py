"""Image files to one uint8 array."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import numpy as np
from PIL import Image, UnidentifiedImageError

from ddbench import DataError

# Pillow would also try formats that run programs (EPS calls Ghostscript).
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
GREY = {"1", "L", "LA", "La"}
CHUNK = 64  # images per task: a small image takes less time than handing out a task


def decode(
    read: Callable[[str], bytes], names: Sequence[str], *, channels: str = "auto", size: int | None = None
) -> np.ndarray:
    """Decode ``names`` into (n, c, h, w) uint8.

    ``channels`` is "1", "3", or "auto": 1 when all images are grey, else 3. ``size`` resizes to size x
    size (bicubic, antialiased). Transparency is dropped. Raises DataError, naming the file, for one that
    cannot be decoded whole, has more than 8 bits, or differs in size.
    """

    def some(chunk: Sequence[str]) -> list[np.ndarray]:
        return [_decode(read, name, channels, size) for name in chunk]

    chunks = [names[i : i + CHUNK] for i in range(0, len(names), CHUNK)]
    # filters are the process's, so they are set around the threads, not in them
    with warnings.catch_warnings(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        images = list(chain.from_iterable(pool.map(some, chunks)))
    return _stack(images, names, 3 if channels == "3" else 1)


def _decode(read: Callable[[str], bytes], name: str, channels: str, size: int | None) -> np.ndarray:
    """(h, w) or (h, w, 3) uint8."""
    try:
        with Image.open(io.BytesIO(read(name)), formats=FORMATS) as image:
            if image.mode[0] in "IF":
                raise DataError(f"{name} has more than 8 bits per pixel (Pillow's mode {image.mode}); convert it")
            grey = channels == "1" or (channels == "auto" and image.mode in GREY)
            plain = _plain(image, "L" if grey else "RGB")
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(f"{name} is in none of the formats {', '.join(FORMATS)}; replace or remove it") from error
    except Exception as error:  # decoders and zipfile raise a dozen types on broken bytes
        raise DataError(f"{name} cannot be read as an image ({error}); replace or remove it") from error
    if size is not None and plain.size != (size, size):
        plain = plain.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(plain)


def _plain(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns about the direct way
    return image.convert(mode)


def _stack(images: list[np.ndarray], names: Sequence[str], channels: int) -> np.ndarray:
    """(n, c, h, w), with three channels if any image has them."""
    height, width = images[0].shape[:2]
    for name, image in zip(names, images, strict=True):
        if image.shape[:2] != (height, width):
            raise DataError(
                f"the images have several sizes: {names[0]} is {width}x{height}, but {name} is "
                f"{image.shape[1]}x{image.shape[0]}; pass -o dataset.size={min(height, width)} to resize all"
            )
        channels = max(channels, 3 if image.ndim == 3 else 1)
    pixels = np.empty((len(images), channels, height, width), np.uint8)
    for out, image in zip(pixels, images, strict=True):
        out[:] = image.transpose(2, 0, 1) if image.ndim == 3 else image
    return pixels
