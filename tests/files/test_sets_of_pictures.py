"""Distilled sets in folders of pictures are read by the decoder of datasets: a viewer's picture is what counts."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refused
from tiny import ddbench

from ddbench.files.formats import read


def stripe(label: int, seed: int) -> Image.Image:
    """A bright row for class 0, a bright column for class 1, in noise."""
    pixels = np.random.default_rng(100 * label + seed).integers(0, 90, (16, 16, 3), dtype=np.uint8)
    pixels[(slice(3, 5),) if label == 0 else (slice(None), slice(3, 5))] = 230
    return Image.fromarray(pixels)


def laid_out(root: Path, save) -> Path:
    for label, name in enumerate(("a", "b")):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(3):
            save(stripe(label, i), root / name / f"{i}.png", i)
    return root


@pytest.fixture
def plain(tmp_path) -> Path:
    return laid_out(tmp_path / "plain", lambda image, path, _: image.save(path))


def images(root: Path) -> torch.Tensor:
    return read(root).sets[0].images


def test_photos_are_turned_upright(tmp_path, plain):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.Transpose.ROTATE_90
    found = images(laid_out(tmp_path / "exif", lambda image, path, _: image.transpose(turned).save(path, exif=exif)))
    assert torch.equal(found, images(plain))


def test_grey_of_sixteen_bits_is_read_to_the_last_one(tmp_path):
    def save(factor):
        def one(image, path, _):
            values = np.asarray(image)[..., 0].astype(np.uint16) * factor
            Image.fromarray(values if factor > 1 else values.astype(np.uint8)).save(path)

        return one

    deep, shallow = (images(laid_out(tmp_path / str(f), save(f))) for f in (257, 1))
    assert torch.allclose(deep, shallow, atol=1e-7)
    finer = images(laid_out(tmp_path / "finer", save(200)))
    assert torch.allclose(finer, shallow * (200 * 255 / 65_535), atol=1e-7)


def test_all_suffixes_of_datasets_are_pictures_of_sets(tmp_path, plain):
    def save(image, path, i):
        image.save(path.with_suffix((".png", ".TIF", ".tiff")[i]))

    assert torch.equal(images(laid_out(tmp_path / "mixed", save)), images(plain))


def test_what_systems_leave_beside_pictures_is_left_out_and_named(plain):
    before = images(plain)
    (plain / "a" / "._0.png").write_bytes(b"\0\5\x16\7" + bytes(78))
    (plain / "b" / "Thumbs.db").write_bytes(b"\xd0\xcf")
    found = read(plain)
    assert torch.equal(found.sets[0].images, before)
    assert "Left out 2 entries that are not pictures: a/._0.png, b/Thumbs.db." in found.notes


def test_transparent_parts_are_shown_on_white_and_told(tmp_path):
    def save(image, path, i):
        image.putalpha(Image.new("L", image.size, 128 if i == 0 else 255))
        image.save(path)

    found = read(laid_out(tmp_path / "alpha", save))
    assert "2 of 6 pictures have transparent parts, which are shown on white." in found.notes
    assert (found.sets[0].images[0] > 0.49).all()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\nshowpage\n", "is in none of the formats"),
        (b"", "is empty"),
        (b"P6 16 16 4095\n" + bytes(2 * 3 * 256), "has more than 8 bits per channel (12)"),
    ],
)
def test_what_is_no_picture_is_named_with_the_way_out(plain, data, why):
    (plain / "a" / "1.png").write_bytes(data)
    message = refused(lambda: read(plain))
    assert message.startswith(f"{plain}/a/1.png {why}")
    assert message.endswith("; get it again, or remove it")


@pytest.mark.parametrize("name", ["{}_mask.png", "mask_{}.png", "{}-label.tif", "{}.tif"])
def test_masks_beside_pictures_are_refused(plain, name):
    for i in range(3):
        Image.new("L", (16, 16)).save(plain / "b" / name.format(i))
    message = refused(lambda: read(plain))
    assert f"{plain} has pictures in b that are named as masks or copies of others beside them, 3 (" in message
    assert message.endswith("; move them elsewhere, or rename them if they are pictures of the set")


def test_folders_of_tools_beside_the_classes_of_a_set_are_no_classes(plain):
    before = images(plain)
    (plain / "__MACOSX").mkdir()
    assert torch.equal(images(plain), before)


def test_a_pipe_among_the_pictures_is_refused_without_waiting(plain):
    os.mkfifo(plain / "b" / "9.png")
    assert "b/9.png is not a plain file" in refused(lambda: read(plain))


# -- from end to end -------------------------------------------------------------------------------------------


GIVEN = ["-o", "network.width=8", "-o", "protocol.steps=30", "-o", "protocol.lrs=0.03", "-o", "protocol.judges=1"]


@pytest.fixture(scope="module")
def known(tmp_path_factory) -> tuple[Path, Path, float]:
    """A folder of grey-valued RGB pictures as a dataset, the pictures of a run on it, and what that reached."""
    root = tmp_path_factory.mktemp("known")
    for part, seeds in {"train": range(12), "test": range(20, 50)}.items():
        for label, name in enumerate(("a", "b")):
            (root / "data" / part / name).mkdir(parents=True)
            for seed in seeds:
                stripe(label, seed).convert("L").convert("RGB").save(root / "data" / part / name / f"{seed}.png")
    words = ["--matcher", "random", "--ipc", "4", "--students", "2", "--no-random", "--no-ceiling", "--json", *GIVEN]
    made = ddbench("run", "--dataset", f"images:{root / 'data'}", *words, "--out", root / "runs", home=root / "home")
    assert made.code == 0, made.err
    (run,) = (root / "runs").iterdir()
    exported = ddbench("export", run, "--format", "folder", "--to", root / "set", home=root / "home")
    assert exported.code == 0, exported.err
    return root, root / "set", made.json[0]["accuracy_mean"]


def turned(image: Image.Image, path: Path, _: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)


def deep(image: Image.Image, path: Path, _: int) -> None:
    Image.fromarray(np.asarray(image)[..., 0].astype(np.uint16) * 257).save(path)


VARIANTS = {
    "as it is": lambda image, path, i: image.save(path),
    "turned": turned,
    "grey of 16 bits": deep,
    "grey of 8 bits": lambda image, path, i: image.convert("L").save(path),
    "some as tif": lambda image, path, i: image.save(path.with_suffix(".tif" if i % 2 else ".png")),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_pictures_of_a_set_reach_what_the_set_does_however_they_are_stored(tmp_path, known, variant):
    root, exported, accuracy = known
    for path in sorted(exported.rglob("*.png")):
        to = tmp_path / path.relative_to(exported)
        to.parent.mkdir(parents=True, exist_ok=True)
        VARIANTS[variant](Image.open(path).convert("RGB"), to, int(path.stem))
    words = ["--dataset", f"images:{root / 'data'}", "--students", "2", "--seed", "0", *GIVEN]
    answer = ddbench("eval", tmp_path, *words, "--out", root / "runs", "--json", home=root / "home")
    assert answer.code == 0, answer.err
    assert accuracy > 0.8
    assert answer.json[0]["accuracy_mean"] == pytest.approx(accuracy, abs=0.02)


def drawn_by_a_diffusion_model(root: Path) -> Path:
    """Pictures in folders called by wnids, as MinimaxDiffusion, D4M and IGD write them, beside the data."""
    for part, count in (("data/train", 12), ("data/test", 4), ("drawn", 2)):
        for label, wnid in enumerate(("n01440764", "n02102040")):
            (folder := root / part / wnid).mkdir(parents=True)
            for i in range(count):
                stripe(label, i + 50 * len(part)).save(folder / f"{i}.png")
    return root / "drawn"


def test_a_set_of_a_diffusion_model_is_graded_by_the_rules_of_everybody_else(tmp_path):
    made = drawn_by_a_diffusion_model(tmp_path)
    rules = {"protocol.steps": 6, "protocol.lrs": "0.03", "protocol.judges": 1, "network.width": 4}
    words = ["--dataset", f"images:{tmp_path}/data", *(w for n, v in rules.items() for w in ("-o", f"{n}={v}"))]
    rest = ["--students", 1, "--device", "cpu", "--json", "--out", tmp_path / "runs"]
    home = tmp_path / "home"
    answer = ddbench("eval", made, *words, *rest, home=home)
    (drawn,) = answer.json
    random = ["--matcher", "random", "--ipc", 2, "--no-ceiling"]
    assert ddbench("run", *words, *random, *rest, home=home).code == 0
    rows = ddbench("compare", "--per-run", "--format", "json", "--out", tmp_path / "runs", home=home).json
    kinds = {row["matcher"]: row for row in rows}
    assert set(kinds) == {"imported", "random"}
    for same in ("protocol_digest", "dataset_digest", "network", "steps", "ipc", "label_type"):
        assert kinds["imported"][same] == kinds["random"][same]
    assert (drawn["selection"], drawn["steps"], drawn["ipc"], drawn["label_type"]) == ("unknown", 6, 2, "hard")
    assert "Read 4 pictures in 2 folders." in answer.err
    wrong = ddbench("eval", made, *words, "-o", "dataset.size=8", *rest, home=home)
    assert wrong.code == 3
    assert "-o dataset.size=16" in wrong.err


@pytest.mark.slow
def test_a_set_of_a_diffusion_model_has_controls(tmp_path):
    made = drawn_by_a_diffusion_model(tmp_path)
    words = ["--dataset", f"images:{tmp_path}/data", "-o", "protocol.steps=6", "-o", "protocol.lrs=0.03"]
    words += ["-o", "network.width=4", "-o", "protocol.ceiling_epochs=1", "--controls", "--coresets", "matched"]
    rest = ["--students", 1, "--device", "cpu", "--json", "--out", tmp_path / "runs"]
    held = ddbench("eval", made, *words, *rest, home=tmp_path / "home").json
    assert {row["images"] for row in held["matrix"]} == {"distilled", "random", "matched"}
    assert len(held["matrix"]) == 18
    assert all(0 < row["difficulty"] < 2**0.5 for row in held["matrix"])
