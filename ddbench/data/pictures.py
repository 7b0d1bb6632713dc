"""Image files to arrays: the one decoder, and the one list of formats, of datasets and of sets given as pictures.

Torch is not needed, so that processes that only decode do without it; Pillow comes with the first image. Shapes:
c channels, h x w pixels. What would lose information is refused: more than 8 bits per channel, a shape that lies in
transparency alone.
"""

from __future__ import annotations

import functools
import glob
import io
import os
import re
import stat
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

LARGEST = 100_000_000  # bytes of one image file; a larger one is a mistake or a bomb
SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".gif", ".webp", ".avif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
# Pillow would also try formats that run programs (EPS calls Ghostscript).
FORMATS = ("PNG", "JPEG", "BMP", "DIB", "GIF", "WEBP", "AVIF", "TIFF", "PPM")
GROUNDS = {"white": 255, "grey": 128, "black": 0}  # what shows through transparent parts; "drop" ignores transparency
GREY = {"1", "L", "LA", "La"}
ORIENTATION = 0x0112  # of EXIF: 1 is upright, up to 8 is turned or mirrored
BITS_PER_SAMPLE = 258  # of TIFF
# Folders that systems and tools leave among one's own; any other hidden folder may be a class (".net").
_TOOLS = re.compile(
    r"__MACOSX|__pycache__|@eaDir|#recycle|lost\+found|\$RECYCLE\.BIN|System Volume Information|\.@__thumb|"
    r"\.(git|svn|hg|bzr|dvc|idea|vscode|venv|cache|huggingface|ipynb_checkpoints|thumbnails|comments|xvpics|"
    r"(mypy|pytest|ruff)_cache|trash.*|Spotlight-V100|fseventsd|TemporaryItems|Apple\w+|DocumentRevisions-V100)",
    re.IGNORECASE,
)

# Words of names that say that a picture belongs to another one, and those that its picture may have in their place.
_BESIDE = re.compile(
    r"masks?|segm?|segs|segmentations?|segmented|labels?|lbls?|label(?:train)?ids?|instance(?:id)?s?|gts?|gtfine|"
    r"gtcoarse|groundtruth|truth|annot?|anns?|annos?|annotations?|trimaps?|mattes?|alpha|overlays?|contours?|edges?|"
    r"boundary|boundaries|bbox(?:es)?|box(?:es)?|heatmaps?|saliency|normals?|panoptic|semantic|depth|disparity|roi|"
    r"preds?|predictions?|superpixels?|thumbs?|thumbnails?|previews?",
    re.IGNORECASE,
)
_OWN = re.compile(r"images?|imgs?|pictures?|pics?|photos?|rgb|colou?r|orig|originals?|inputs?|raw|sat")
_TWINS = 3  # pictures of a folder that all have another of the same name but its suffix: fewer may be chance


class Broken(Exception):
    """A file that gives no image; the text says why, and follows the file's name."""


class Coloured(Exception):
    """A colour image among images that seemed to be all grey."""


class Picture(NamedTuple):
    """``pixels`` (c, h, w) uint8, or uint16 where that was asked for; whether parts of it were ``transparent``."""

    pixels: np.ndarray
    transparent: bool


def is_picture(name: str) -> bool:
    """Whether a file is an image by its name: one of ``SUFFIXES`` in any case, and not hidden (``._0.png``)."""
    return name.lower().endswith(SUFFIXES) and not name.rpartition("/")[2].startswith(".")


def beside_others(names: Iterable[str]) -> dict[str, str]:
    """The pictures of one folder that are named as masks or copies of others in it, with a pattern for such names.

    ``1_mask.png`` is one beside ``1.png`` or ``1_image.png``; and so are the ``*.png`` where each has a ``*.jpg``.
    """
    names = list(names)
    found: dict[str, str] = {}
    if any(map(_BESIDE.search, names)):
        told = [(name, *_parted(name)) for name in names]
        own = {rest: name for name, rest, _, word in told if rest and not word}
        for name, rest, before, word in told:
            likely = (rest, *(before[:n] for n in range(len(before), 0, -1)))
            if word and (other := next((own[key] for key in likely if key in own), None)):
                found[name] = _pattern(name, other, word)
    return found or _twins(names)


def _parted(name: str) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """A name without words for kinds of pictures, what of it stands before that of another's, and this word, if any."""
    stem = name.rpartition(".")[0].lower().replace("leftimg8bit", "image")
    rest, before, beside = [], 0, ""
    for word in re.findall(r"[0-9]+|[^\W\d_]+", stem):
        if _BESIDE.fullmatch(word):
            beside, before = beside or word, before if beside else len(rest)
        elif not _OWN.fullmatch(word):
            rest.append(word)
    return tuple(rest), tuple(rest[:before]), beside


def _pattern(name: str, other: str, word: str) -> str:
    """``*_mask.png`` or ``*_mask_*.png``, where the name begins as the other; else the word in any place.

    What lists of options and shells would read otherwise is left to match any letter.
    """
    stem, dot, suffix = name.rpartition(".")
    start = other.rpartition(".")[0]
    if not stem.startswith(start):
        return f"*{word}*"
    end = glob.escape(stem.removeprefix(start))
    return re.sub(r"""[,'"]""", "?", f"*{re.sub('[0-9]+', '*', end)}{dot}{suffix}")


def _twins(names: Sequence[str]) -> dict[str, str]:
    """The pictures with the suffix of which each has a twin that differs in its suffix alone."""
    held: dict[str, set[str]] = {}
    for name in names:
        stem, _, suffix = name.rpartition(".")
        held.setdefault(suffix, set()).add(stem)
    for suffix, stems in sorted(held.items(), key=lambda item: len(item[1])):
        if len(stems) >= _TWINS and any(stems <= others for kind, others in held.items() if kind != suffix):
            # a mask keeps its numbers in a format without loss, and a photo is what the other one is
            lossless = [kind for kind, others in held.items() if others == stems and not kind.lower().startswith("j")]
            chosen = lossless[0] if lossless else suffix
            return {f"{stem}.{chosen}": f"*.{chosen}" for stem in sorted(stems)}
    return {}


def is_of_tools(folder: str) -> bool:
    """Whether a folder of this name belongs to a system or a tool, so that images in it are nobody's data."""
    return _TOOLS.fullmatch(folder) is not None


def plain(path: str | Path) -> io.FileIO:
    """A file, opened to be read. Raises Broken for a pipe, a device or a folder, without waiting, and OSError."""
    # without blocking, since a pipe would wait for a writer
    stream = io.FileIO(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    if stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        return stream
    stream.close()
    raise Broken("is not a plain file")


def read(path: str | Path, most: int = LARGEST) -> bytes:
    """The bytes of a plain file of at most ``most`` bytes. Raises Broken for anything else."""
    try:
        with plain(path) as stream:
            if fault := oversize(os.fstat(stream.fileno()).st_size, most):
                raise Broken(fault)
            return stream.readall()
    except OSError as error:
        raise Broken(f"cannot be read ({error.strerror or error})") from error


def oversize(size: int, most: int = LARGEST) -> str | None:
    """What is wrong with a file of ``size`` bytes, if anything."""
    return f"has {size / 1e6:.0f} MB, but may have {most / 1e6:.0f}" if size > most else None


@contextmanager
def strictly() -> Iterator[None]:
    """Pillow's warnings are the process's: a possible decompression bomb is an error inside, the rest is silent."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as of the EXIF data of a dozen photos of ImageNet
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def decode(
    data: bytes,
    channels: int | None = None,
    size: int | None = None,
    *,
    grey: bool = False,
    stretch: bool = False,
    ground: str = "white",
    deep: bool = False,
) -> Picture:
    """An image, upright as its EXIF data say, on ``ground`` where it is transparent; the first of several frames.

    ``channels`` is 1, 3, or None for as many as the file has. With ``size``, the middle square, or with ``stretch`` all
    of it, is resized to size x size (bicubic, antialiased). ``deep`` gives grey images of 16 bits as uint16; without it
    those of which 8 bits are enough, each value being a multiple of 257, become uint8.

    Call it inside ``strictly()``. Raises Broken for what cannot be decoded whole, has more than 8 bits, or is blank on
    the ground, and Coloured for a colour image where only ``grey`` ones are expected.
    """
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise Broken("is empty")
    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as opened:
            bits, plain = _depth(opened, data), opened.mode in GREY or opened.mode[0] == "I"
            if grey and not plain:
                raise Coloured
            one = channels == 1 or (channels is None and plain)
            upright = _upright(opened)
            if bits > 8 or upright.mode[0] in "IF":
                values = _sixteen(upright, bits, opened.format)
                if deep:
                    return Picture(values[None], transparent=False)
                upright = Image.fromarray(_eight(values, bits))
            image, transparent = _shown(upright, "L" if one else "RGB", ground)
            array = np.asarray(_sized(image, size, stretch))
    except (Broken, Coloured, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise Broken(_unidentified(data)) from error
    except Exception as error:  # decoders raise a dozen types on broken bytes
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise Broken(f"cannot be read as an image ({reason})") from error
    return Picture(array[None] if one else np.ascontiguousarray(array.transpose(2, 0, 1)), transparent)


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of ``FORMATS`` that this Pillow has: AVIF came with version 11.3."""
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _unidentified(data: bytes) -> str:
    """Why no decoder takes the bytes."""
    if data[4:12] == b"ftypavif" and "AVIF" not in _formats():
        return "is AVIF, which this version of Pillow cannot read; update Pillow to 11.3 or later"
    precision = re.search(rb"\xff[\xc0-\xc3]..([\x09-\x10])", data[:LARGEST], re.DOTALL)
    if data.startswith(b"\xff\xd8\xff") and precision:
        return _too_deep(precision[1][0])
    return f"is in none of the formats {', '.join(name for name in _formats() if name != 'DIB')}"


def _depth(image: Image.Image, data: bytes) -> int:
    """Bits per channel by the file's own header; Pillow's mode has lost them for colour, which it cuts to 8."""
    if image.format == "PNG":
        return data[data.index(b"IHDR") + 12]  # after its name, the width and the height
    if image.format == "TIFF":
        tags: Any = getattr(image, "tag_v2", {})
        return max(np.atleast_1d(tags.get(BITS_PER_SAMPLE, 1)).tolist())
    if image.format == "PPM":
        arguments: Any = image.tile[0][3]  # type: ignore[index]
        most = arguments[-1] if isinstance(arguments, tuple) else 255
        return 16 if image.mode == "I" else int(most).bit_length()  # to which Pillow scales grey of more than 8
    if image.format == "AVIF":
        flags = data.find(b"av1C") + 6  # after its name, the version, and the profile
        return 10 if flags > 6 and data[flags] & 0x40 else 8
    return 8


def _too_deep(bits: int) -> str:
    return f"has more than 8 bits per channel ({bits}), which would be cut; convert it to 8, scaled as you mean it"


def _sixteen(image: Image.Image, bits: int, kind: str | None) -> np.ndarray:
    """The values (h, w) uint16 of a grey image of 16 bits, the only deep ones that Pillow reads whole."""
    signed = kind == "TIFF" and not image.mode.startswith("I;16")
    if image.mode[0] != "I" or bits != 16 or signed:
        raise Broken(_too_deep(bits if bits > 8 else 32))
    return np.asarray(image).astype(np.uint16)


def _eight(values: np.ndarray, bits: int) -> np.ndarray:
    """The same in 8 bits, if that loses nothing: 8-bit values are written as 16-bit ones by a factor of 257."""
    if (values % 257).any():
        raise Broken(_too_deep(bits))
    return (values // 257).astype(np.uint8)


def _upright(image: Image.Image) -> Image.Image:
    from PIL import ImageOps

    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:  # noqa: BLE001 - damaged EXIF data make no image unreadable
        return image
    return ImageOps.exif_transpose(image) if orientation in range(2, 9) else image


def _shown(image: Image.Image, mode: str, ground: str) -> tuple[Image.Image, bool]:
    """The image in ``mode``, L or RGB, on the ground, and whether the ground shows through.

    Refuses one of which nothing is left to see.
    """
    from PIL import Image

    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns about the direct way
    if ground == "drop" or not image.has_transparency_data:
        return image.convert(mode), False
    layered = image.convert("RGBA")
    least, most = layered.getchannel("A").getextrema()
    if least == 255:
        return image.convert(mode), False
    if most == 0:
        raise Broken("is wholly transparent")
    below = Image.new("RGBA", image.size, (*[GROUNDS[ground]] * 3, 255))
    shown = Image.alpha_composite(below, layered).convert(mode)
    if least != most and all(low == high for low, high in np.reshape(shown.getextrema(), (-1, 2))):
        raise Broken(f"is blank on {ground}: its shape lies in its transparency alone")
    return shown, True


def _sized(image: Image.Image, size: int | None, stretch: bool) -> Image.Image:
    from PIL import Image

    if size is None or image.size == (size, size):
        return image
    if stretch:
        return image.resize((size, size), Image.Resampling.BICUBIC)
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return image.resize((size, size), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
