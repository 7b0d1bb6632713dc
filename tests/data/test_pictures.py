"""The decoder of image files: what it gives is what a viewer shows, and what would be lost is refused."""

from __future__ import annotations

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, features

from ddbench.data import pictures
from ddbench.data.pictures import Broken, Coloured, Picture, decode, is_of_tools, is_picture, read, strictly

random = np.random.default_rng(0)
GREY = random.integers(0, 256, (5, 7), dtype=np.uint8)
COLOUR = random.integers(0, 256, (5, 7, 3), dtype=np.uint8)


def saved(image: Image.Image | np.ndarray, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, kind, **options)
    return stream.getvalue()


def png(values: np.ndarray, colour: int, size: tuple[int, int] | None = None) -> bytes:
    """A PNG of 16 bits per channel, which Pillow cannot write; ``values`` (h, w, c) uint16; it claims ``size``."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", *(size or values.shape[1::-1]), 16, colour, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def tiff(values: np.ndarray) -> bytes:
    """A colour TIFF of 16 bits per channel; ``values`` (h, w, 3) uint16."""
    height, width, _ = values.shape
    tags = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, 200), (259, 3, 1, 1), (262, 3, 1, 2)]
    tags += [(273, 4, 1, 300), (277, 3, 1, 3), (278, 3, 1, height), (279, 4, 1, values.nbytes)]
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = head.ljust(200, b"\0") + struct.pack("<HHH", 16, 16, 16)
    return head.ljust(300, b"\0") + values.astype("<u2").tobytes()


def decoded(data: bytes, *args, **options) -> Picture:
    with strictly():
        return decode(data, *args, **options)


def refused(data: bytes, **options) -> str:
    with pytest.raises(Broken) as caught:
        decoded(data, **options)
    return str(caught.value)


# names


@pytest.mark.parametrize(
    "name", ["a.png", "a.JPG", "a.JPEG", "b.jpe", "b.jfif", "c.TiFf", "c.tif", "d.avif", "e.webp", "x/y.pbm", "f.dib"]
)
def test_all_spellings_of_a_format_are_images(name):
    assert is_picture(name)


@pytest.mark.parametrize("name", ["._0.png", "a/.hidden.jpg", "Thumbs.db", ".DS_Store", "a.txt", "png", "a.png.txt"])
def test_what_systems_leave_is_no_image(name):
    assert not is_picture(name)


def test_folders_of_tools_are_known_and_other_hidden_ones_may_be_classes():
    assert all(map(is_of_tools, [".git", ".ipynb_checkpoints", "__MACOSX", ".Trash-1000", ".AppleDouble", "@eaDir"]))
    assert not any(map(is_of_tools, [".net", ".", "git", "cache", ".vb", "c++"]))


# what is decoded


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "DIB"])
def test_formats_without_loss_give_back_every_value(kind):
    assert np.array_equal(decoded(saved(COLOUR, kind)).pixels, COLOUR.transpose(2, 0, 1))
    assert np.array_equal(decoded(saved(GREY, kind)).pixels, GREY[None])


def test_webp_and_avif_without_loss_give_back_every_value():
    assert np.array_equal(decoded(saved(COLOUR, "WEBP", lossless=True)).pixels, COLOUR.transpose(2, 0, 1))
    if features.check("avif"):
        smooth = np.full((8, 8, 3), (200, 40, 90), np.uint8)
        close = decoded(saved(smooth, "AVIF", quality=100)).pixels.astype(int) - smooth.transpose(2, 0, 1)
        assert np.abs(close).max() <= 6


TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_every_orientation_of_exif_is_turned_upright(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    blocks = np.repeat(np.repeat(COLOUR, 16, 0), 16, 1)  # a block is one colour, which JPEG keeps nearly
    stored = Image.fromarray(blocks)
    if orientation > 1:
        stored = stored.transpose(TURNED[orientation])
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    found = decoded(saved(stored, kind, exif=exif, **options)).pixels
    assert found.shape == (3, 80, 112)
    assert np.abs(found.astype(int) - blocks.transpose(2, 0, 1)).max() <= (8 if kind == "JPEG" else 0)


def test_cmyk_one_bit_palette_and_moving_images_are_what_a_viewer_shows():
    red = Image.new("RGB", (6, 6), (250, 10, 20))
    frames = [Image.new("P", (6, 6), k) for k in range(2)]
    for frame in frames:
        frame.putpalette([200, 0, 0, 0, 200, 0])
    for data in (
        saved(red.convert("CMYK"), "JPEG", quality=100),
        saved(red.quantize(4)),
        saved(frames[0], "GIF", save_all=True, append_images=frames[1:]),
    ):
        assert np.abs(decoded(data).pixels[:, 3, 3].astype(int) - (250, 10, 20)).max() <= 50
    bits = Image.fromarray(GREY > 127)
    assert np.array_equal(decoded(saved(bits)).pixels, np.where(GREY > 127, 255, 0)[None])


def test_channels_and_size_are_as_asked():
    assert decoded(saved(GREY), 3).pixels.shape == (3, 5, 7)
    assert decoded(saved(COLOUR), 1, 4).pixels.shape == (1, 4, 4)
    with pytest.raises(Coloured):
        decoded(saved(COLOUR), grey=True)


# depth


@pytest.mark.parametrize(
    "data",
    [
        png(np.full((4, 4, 3), 4000, np.uint16), 2),
        png(np.full((4, 4, 4), 4000, np.uint16), 6),
        png(np.full((4, 4, 2), 4000, np.uint16), 4),
        png(np.full((4, 4, 1), 4000, np.uint16), 0),
        tiff(np.full((4, 4, 3), 4000, np.uint16)),
        saved(np.full((4, 4), 4000, np.uint16), "TIFF"),
        saved(np.full((4, 4), 4000, np.int32), "TIFF"),
        saved(np.full((4, 4), 0.5, np.float32), "TIFF"),
        b"P6 4 4 4095\n" + bytes(96),
        b"P5 4 4 65535\n" + b"\x0f\xa0" * 16,
        b"\xff\xd8\xff\xc1\x00\x11\x0c" + bytes(40),
    ],
    ids=["rgb", "rgba", "grey-alpha", "grey", "tiff", "tiff-grey", "tiff-32", "float", "ppm", "pgm", "jpeg"],
)
def test_more_than_eight_bits_are_refused_by_the_files_own_depth(data):
    assert refused(data).startswith("has more than 8 bits per channel (")


def test_avif_tells_its_depth_in_its_header():
    image = Image.fromarray(COLOUR)
    image.format = "AVIF"
    for flags, bits in ((0x0C, 8), (0x4C, 10)):
        assert pictures._depth(image, b"\0\0\0\x1cftypavif....av1C\x81\x00" + bytes([flags, 0])) == bits


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_eight_bits_written_as_sixteen_lose_nothing(kind):
    data = saved(GREY.astype(np.uint16) * 257, kind)
    assert np.array_equal(decoded(data).pixels, GREY[None])


def test_grey_of_other_depths_is_refused_even_where_sixteen_bits_are_asked_for():
    for values in (np.full((4, 4), 257, np.int32), np.full((4, 4), 0.5, np.float32)):
        assert refused(saved(values, "TIFF"), deep=True).startswith("has more than 8 bits per channel (32)")
    assert refused(png(np.full((4, 4, 3), 257, np.uint16), 2), deep=True).startswith("has more than 8 bits")


def test_pgm_of_twelve_bits_is_scaled_to_sixteen():
    found = decoded(b"P5 2 1 4095\n\x0f\xff\x00\x00", deep=True).pixels
    assert found.tolist() == [[[65_535, 0]]]


def test_sixteen_bits_of_grey_are_kept_where_asked_for():
    values = random.integers(0, 65536, (5, 7), dtype=np.uint16)
    found = decoded(saved(values), deep=True).pixels
    assert found.dtype == np.uint16
    assert np.array_equal(found, values[None])


# transparency


def icon(colour: tuple[int, ...], mode: str = "RGBA") -> bytes:
    """A bar that is drawn in the alpha channel alone."""
    alpha = np.zeros((6, 6), np.uint8)
    alpha[:, 2:4] = 255
    image = Image.new("RGBA", (6, 6), (*colour, 0))
    image.putalpha(Image.fromarray(alpha))
    return saved(image.convert(mode))


@pytest.mark.parametrize(("ground", "seen"), [("white", 255), ("grey", 128), ("black", 0)])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_the_ground_shows_through_where_an_image_is_transparent(mode, ground, seen):
    found = decoded(icon((60, 60, 60), mode), ground=ground)
    assert found.transparent
    assert len(found.pixels) == (3 if mode == "RGBA" else 1)
    assert (found.pixels[:, :, 2:4] == 60).all()
    assert (found.pixels[:, :, :2] == seen).all()


def test_a_palette_or_one_colour_may_be_transparent():
    palette = Image.fromarray((GREY > 127).astype(np.uint8)).convert("P")
    palette.putpalette([10, 20, 30, 200, 100, 50])
    for data in (saved(palette, transparency=1), saved(palette, "GIF", transparency=1)):
        found = decoded(data)
        assert found.transparent
        assert (found.pixels.transpose(1, 2, 0)[GREY > 127] == 255).all()
        assert (found.pixels.transpose(1, 2, 0)[GREY <= 127] == (10, 20, 30)).all()
    keyed = decoded(saved(COLOUR, transparency=tuple(int(v) for v in COLOUR[0, 0])))
    assert keyed.transparent
    assert (keyed.pixels[:, 0, 0] == 255).all()
    assert np.array_equal(keyed.pixels[:, 1:], COLOUR.transpose(2, 0, 1)[:, 1:])


def test_an_opaque_alpha_channel_changes_nothing():
    opaque = np.dstack([COLOUR, np.full((5, 7), 255, np.uint8)])
    found = decoded(saved(opaque))
    assert not found.transparent
    assert np.array_equal(found.pixels, COLOUR.transpose(2, 0, 1))
    through = np.dstack([COLOUR, GREY])
    assert np.array_equal(decoded(saved(through), ground="drop").pixels, COLOUR.transpose(2, 0, 1))


def test_an_image_of_which_the_ground_leaves_nothing_is_refused():
    assert refused(icon((255, 255, 255))) == "is blank on white: its shape lies in its transparency alone"
    assert refused(icon((0, 0, 0)), ground="black").startswith("is blank on black")
    assert refused(saved(np.zeros((4, 4, 4), np.uint8))) == "is wholly transparent"


# files


def test_only_plain_files_of_a_bounded_size_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "large").write_bytes(bytes(2_000_000))
    for path, why in (
        ("pipe.png", "is not a plain file"),
        ("large", "has 2 MB, but may have 1"),
        ("no", "cannot be read"),
    ):
        with pytest.raises(Broken, match=why):
            read(tmp_path / path, 1_000_000)
    with pytest.raises(Broken, match="is not a plain file"):
        read("/dev/zero")
    with pytest.raises(Broken, match=r"cannot be read|is not a plain file"):
        read(tmp_path)


@pytest.mark.parametrize(
    "data",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\nshowpage\n",
        b"%PDF-1.4\n",
        b"/* XPM */\nstatic char *x[] = {};",
        b"#define x_width 4\n",
        b"<svg/>",
    ],
)
def test_formats_that_run_programs_are_never_tried(data, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a program was started"))
    assert refused(data).startswith("is in none of the formats PNG, JPEG")


def test_cut_files_and_bombs_are_refused():
    whole = saved(np.repeat(np.repeat(COLOUR, 9, 0), 9, 1), "JPEG")
    for data in (whole[: len(whole) // 2], saved(COLOUR)[:60]):
        assert refused(data).startswith("cannot be read as an image")
    assert "3600000000 pixels" in refused(png(np.zeros((1, 1, 3), np.uint16), 2, (60_000, 60_000)))
    assert refused(b"") == "is empty"


def test_an_avif_that_this_pillow_cannot_read_says_so(monkeypatch):
    monkeypatch.setattr(pictures, "_formats", lambda: ("PNG", "JPEG"))
    assert "update Pillow to 11.3" in refused(b"\0\0\0\x1cftypavif" + bytes(50))
