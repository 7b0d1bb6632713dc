"""Folders and archives of images as people have them: every fault is named, or counted, and nothing is half done."""

from __future__ import annotations

import gzip
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from ddbench_datasets import Images, archives, building, sources
from ddbench_datasets.archives import Tar, sha256
from ddbench_datasets.places import Place, fetch
from pictures import folder, picture, refusal, saved, tarred, tree, zipped
from PIL import Image

from ddbench import DataError
from ddbench.base import cache
from ddbench.base.progress import listening
from ddbench.data.pictures import Broken

PACKED = ["set.tar", "set.tar.gz", "set.tgz", "set.tar.bz2", "set.tar.xz"]
LAID_OUT = {"dir": folder, "zip": zipped, "tar": tarred, "tgz": tarred}


@pytest.fixture(params=LAID_OUT)
def root(request, tmp_path):
    """A function that lays out files in a folder or in one of three kinds of archive."""
    return lambda files: LAID_OUT[request.param](tmp_path / f"set.{request.param}", files)


def first(dataset) -> np.ndarray:
    return dataset.test.pixels[0].numpy()


def stored() -> list[Path]:
    return [path for path in cache.home().rglob("*") if path.suffix in {".npy", ".part"}]


# what is no image


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"these are words\n" * 99, "is in none of the formats"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is in none of the formats"),
        (picture(0, size=(40, 40), kind="JPEG")[:300], "cannot be read as an image"),
        (picture(0)[:60], "cannot be read as an image"),
        (b"P6 0 0 255\n", "is in none of the formats"),
        (saved(Image.fromarray(np.full((6, 6), 40_000, np.uint16))), "has more than 8 bits"),
        (saved(Image.fromarray(np.zeros((6, 6), np.float32)), "TIFF"), "has more than 8 bits"),
    ],
    ids=["empty", "text", "svg", "cut-jpeg", "cut-png", "no-pixels", "16-bit", "float"],
)
def test_a_file_that_gives_no_image_is_named_with_the_way_out(root, data, reason):
    message = refusal(root=root(tree() | {"train/dog/2.png": data}))
    assert message.startswith(f"train/dog/2.png {reason}")
    assert message.endswith(
        "replace or remove it, or pass -o dataset.skip_broken=true to leave out what cannot be read"
    )
    assert not [path for path in stored() if path.suffix == ".npy"]


def test_the_first_of_several_broken_files_is_named_and_the_others_counted(root):
    files = tree(train=300) | {f"train/{label}/{i}.png": b"no" for label in ("cat", "dog") for i in (7, 30, 299)}
    message = refusal(root=root(files))
    assert message.startswith("train/cat/7.png is in none of the formats")
    assert "and 5 more of 606 images are broken; replace or remove them" in message


def test_broken_files_are_skipped_counted_and_named_when_asked(root):
    files = tree(train=20)
    bad = [f"train/cat/{i}.png" for i in range(6)] + ["test/dog/2.png"]
    events = []
    with listening(events.append):
        dataset = Images(root=root(files | dict.fromkeys(bad, b"")), skip_broken=True).load()
    assert [len(dataset.train) + len(dataset.validation), len(dataset.test)] == [34, 5]
    assert torch.cat([dataset.train.targets, dataset.validation.targets]).bincount().tolist() == [14, 20]
    named = "'train/cat/0.png', 'train/cat/1.png', 'train/cat/2.png', 'train/cat/3.png', 'train/cat/4.png' and 2 more"
    assert dataset.facts["skipped"] == f"7 of 46 images, which cannot be decoded: {named}"
    told = next(event for event in events if event.what == "skipped broken images")
    assert (told.done, told.total, told.numbers) == (7, 46, {"files": named})
    good = folder(Path(cache.home()) / "good", {name: data for name, data in files.items() if name not in bad})
    assert torch.equal(dataset.test.pixels[:], Images(root=good).load().test.pixels[:])


def test_a_store_without_the_broken_images_is_refused_to_whoever_did_not_ask_for_it(root):
    where = root(tree() | {"train/dog/2.png": b""})
    Images(root=where, skip_broken=True).load()
    assert refusal(root=where).startswith("train/dog/2.png is empty; replace or remove it")


def test_after_a_refusal_skipping_decodes_nothing_twice_but_what_was_broken(tmp_path, monkeypatch):
    monkeypatch.setattr(building, "CHUNK", 4)
    where = folder(tmp_path / "set", tree() | {"train/dog/2.png": b""})
    refusal(root=where)
    events = []
    with listening(events.append):
        Images(root=where, skip_broken=True).load()
    assert (events[0].what, events[0].done, events[0].total) == ("decoding", 14, 18)


def test_a_class_whose_images_are_all_broken_is_named(root):
    files = tree() | {f"test/dog/{i}.png": b"" for i in range(3)}
    assert "all test images of 'dog' are broken" in refusal(root=root(files), skip_broken=True)


def test_images_of_which_all_are_broken_are_refused(root):
    message = refusal(root=root(dict.fromkeys(tree(), b"")), skip_broken=True)
    assert "train/cat/0.png is empty, and 17 more of 18 images are broken" in message


def test_a_file_that_may_not_be_read_or_is_a_pipe_is_named(tmp_path):
    where = Path(folder(tmp_path / "set", tree()))
    os.mkfifo(where / "train/cat/pipe.png")
    assert refusal(root=str(where)).startswith("train/cat/pipe.png is not a plain file")
    with pytest.raises(Broken, match="No such file"):
        fetch(Place("/nowhere.png"))


def test_a_mended_image_leaves_nothing_of_the_attempt_before(tmp_path):
    where = folder(tmp_path / "set", tree() | {"train/cat/1.png": b""})
    refusal(root=where)
    assert len(stored()) == 1
    folder(tmp_path / "set", tree())
    Images(root=where).load()
    assert [path.name for path in stored()] == ["pixels.npy"]


# what is an image, but an unusual one


def test_photos_are_turned_upright(root):
    photo = Image.fromarray(np.arange(36, dtype=np.uint8).reshape(6, 6) * 7)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    turned = saved(photo.transpose(Image.Transpose.ROTATE_90), exif=exif)
    dataset = Images(root=root(tree(mode="L") | {"test/cat/0.png": turned})).load()
    assert np.array_equal(first(dataset)[0], np.asarray(photo))


def test_damaged_exif_data_make_no_image_unreadable(tmp_path):
    jpeg = picture(0, size=(8, 8), kind="JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01")
    files = tree(size=(8, 8)) | {"test/cat/0.png": jpeg}
    assert Images(root=folder(tmp_path / "set", files)).load().test.shape == (3, 8, 8)


def test_cmyk_palette_and_animated_images_become_plain_colour(root):
    plain = Image.new("RGB", (6, 6), (250, 10, 20))
    frames = [Image.new("P", (6, 6), k) for k in range(3)]
    for frame in frames:
        frame.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    files = tree() | {
        "test/cat/0.png": saved(plain.convert("CMYK"), "JPEG", quality=100),
        "test/cat/1.png": saved(plain.quantize(4)),
        "test/cat/2.png": saved(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "test/dog/0.png": saved(plain.convert("RGBA"), "WEBP", lossless=True),
    }
    test = Images(root=root(files)).load().test.pixels[:, :, 3, 3].int()
    wanted = torch.tensor([[250, 10, 20], [250, 10, 20], [200, 0, 0], [250, 10, 20]])
    assert (test[:4] - wanted).abs().max() <= 8


def test_one_colour_image_late_among_grey_ones_makes_all_of_them_colour(root):
    files = tree(train=300, mode="L") | {"train/dog/290.png": picture(0)}
    dataset = Images(root=root(files)).load()
    assert dataset.train.shape == (3, 6, 6)
    assert torch.equal(dataset.test.pixels[:, 0], dataset.test.pixels[:, 2])


def test_the_middle_of_a_wide_photo_is_kept_and_its_shorter_side_resized(tmp_path):
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 200
    files = dict.fromkeys(tree(), saved(Image.fromarray(wide)))
    files["train/cat/0.png"] = picture(0)
    dataset = Images(root=folder(tmp_path / "set", files), size=5).load()
    assert (first(dataset) > 180).all()  # the kernel sees a little of the sides


def test_an_image_of_another_size_deep_in_the_data_is_named_and_leaves_nothing(root):
    message = refusal(root=root(tree(train=300) | {"train/dog/250.png": picture(0, size=(9, 7))}))
    assert "train/cat/0.png is 6x6, but train/dog/250.png is 9x7; pass -o dataset.size=6 to resize all" in message
    assert not stored()


# folders


def test_classes_without_train_and_test_are_divided_the_same_way_each_time(root):
    files = {name.removeprefix("train/"): data for name, data in tree(train=20, test=0).items()}
    where = root(files)
    dataset = Images(root=where).load()
    assert [len(dataset.train) + len(dataset.validation), len(dataset.test)] == [32, 8]
    assert dataset.test.targets.bincount().tolist() == [4, 4]
    assert dataset.facts["test"].startswith("a fifth of the images of each class, drawn with seed 0")
    train, test = ({bytes(i.numpy()) for i in part.pixels} for part in (dataset.train, dataset.test))
    assert not train & test
    top = folder(cache.home() / "again", {f"photos/{name}": data for name, data in files.items()})
    assert Images(root=top).load().digest == dataset.digest


def test_a_class_of_two_images_cannot_be_divided(root):
    files = {name.removeprefix("train/"): data for name, data in tree(train=5, test=0).items()}
    files |= {f"owl/{i}.png": picture(i) for i in range(2)}
    assert "'owl' of" in (message := refusal(root=root(files)))
    assert "fewer than three images" in message


def test_folders_that_hold_images_at_several_depths_are_refused(root):
    files = {name.removeprefix("train/"): data for name, data in tree(train=5, test=0).items()}
    assert "cat/more/1.png of" in refusal(root=root(files | {"cat/more/1.png": picture(0)}))


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_a_validation_folder_is_the_test_part_when_there_is_no_other(root, name):
    files = {path.replace("test/", f"{name}/"): data for path, data in tree().items()}
    dataset = Images(root=root(files | {"test/readme.txt": b"the labels are secret"})).load()
    assert len(dataset.test) == 6
    assert dataset.facts["test"] == f"the folder '{name}', since there is no 'test' with classes"


def test_a_class_may_be_called_valid(root):
    files = tree(("invalid", "valid"), train=5, test=0)
    dataset = Images(root=root({name.removeprefix("train/"): data for name, data in files.items()})).load()
    assert dataset.classes == ("invalid", "valid")


def test_every_option_of_datasets_works_on_images_and_only_what_is_used_is_decoded(root):
    where = root(tree(("ant", "bee", "cat"), train=20))
    options = {"classes": ("cat", "ant"), "imbalance": 4.0, "limit": 18, "noise": 0.25, "zca": True}
    dataset = Images(root=where, **options).load()
    assert dataset.classes == ("cat", "ant")
    targets = torch.cat([dataset.train.targets, dataset.validation.targets])
    assert (len(targets), len(dataset.test)) == (18, 6)
    assert dataset.train.preprocessing.kind == "zca"
    assert len(dataset.train.pixels.store.array) == 18 + 6
    assert dataset.train.pixels.store is dataset.test.pixels.store
    clean = Images(root=where, **options | {"noise": 0.0}).load()
    assert torch.equal(clean.train.pixels.store.array, dataset.train.pixels.store.array)


def test_a_root_given_by_mistake_is_not_walked_whole(tmp_path, monkeypatch):
    deep = tmp_path / "home" / "a" / "b" / "c" / "d"
    deep.mkdir(parents=True)
    listed, scan = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(str(path)) or scan(path))
    assert "no train and no test folder, and no classes either; its folders are 'home'" in refusal(root=str(tmp_path))
    assert str(deep) not in listed


def test_links_in_a_circle_end(tmp_path):
    where = Path(folder(tmp_path / "set", tree()))
    (where / "train" / "cat" / "loop").symlink_to(where / "train")
    assert len(Images(root=str(where)).load().test) == 6


def test_a_folder_of_links_to_images_elsewhere_is_read(tmp_path):
    real, links = Path(folder(tmp_path / "real", tree())), tmp_path / "links"
    for path in real.rglob("*.png"):
        (links / path.relative_to(real)).parent.mkdir(parents=True, exist_ok=True)
        (links / path.relative_to(real)).symlink_to(path)
    assert Images(root=str(links)).load().digest == Images(root=str(real)).load().digest


@pytest.mark.parametrize("label", ["two\nlines", "bell\a"])
def test_a_class_whose_name_cannot_be_printed_is_refused_in_one_line(root, label):
    message = refusal(root=root(tree(("cat", label))))
    assert "has a name that cannot be printed, " + label.encode("unicode_escape").decode() in message


def test_names_that_are_no_utf8_are_read_in_files_and_refused_in_classes(tmp_path):
    odd = os.fsdecode(b"caf\xe9")
    files = {name.replace("/0.png", f"/{odd}.png"): data for name, data in tree().items()}
    for where in (folder(tmp_path / "set", files), tarred(tmp_path / "set.tar", files)):
        assert len(Images(root=where).load().test) == 6
    where = folder(tmp_path / "broken", files | {f"train/cat/{odd}.png": b""})
    assert refusal(root=where).startswith(r"train/cat/caf\udce9.png is empty")
    assert r"caf\udce9; rename it" in refusal(root=folder(tmp_path / "class", tree(("cat", odd))))


def test_a_root_whose_path_cannot_be_printed_is_refused_in_one_line(tmp_path):
    for name in ("two\nlines", os.fsdecode(b"caf\xe9")):
        assert "characters that cannot be printed; rename it" in refusal(root=folder(tmp_path / name, tree()))


def test_a_text_beside_the_images_does_not_decode_them_again(tmp_path):
    where = Path(folder(tmp_path / "set", tree()))
    Images(root=str(where)).load()
    (where / "readme.txt").write_text("words")
    assert Images(root=str(where)).missing() is None


def test_numbers_in_names_may_be_longer_than_python_reads(tmp_path):
    files = tree() | {f"train/cat/{digit * 5000}.png": picture(99) for digit in "91"}
    dataset = Images(root=zipped(tmp_path / "set.zip", files)).load()
    assert len(dataset.train) + len(dataset.validation) == 14


def test_long_names_and_spaces_are_names(root):
    files = tree(("a class", "b" * 200))
    assert Images(root=root(files)).load().classes == ("a class", "b" * 200)


# archives


@pytest.mark.parametrize("name", PACKED)
def test_a_tar_gives_the_same_dataset_as_its_folder_whatever_the_order_of_its_members(tmp_path, name):
    files = tree(train=12)
    shuffled = {f"./top/{key}": files[key] for key in sorted(files, reverse=True)}
    for limit in (None, 8):
        packed = Images(root=tarred(tmp_path / name, shuffled), limit=limit).load()
        assert packed.digest == Images(root=folder(tmp_path / "folder", files), limit=limit).load().digest
    assert packed.name == "set"
    assert packed.facts == {"source": name, "sha256": cache.file_digest(tmp_path / name)}


def test_a_packed_tar_is_unpacked_twice_and_not_once_for_each_image(tmp_path, monkeypatch):
    where = tarred(tmp_path / "set.tar.gz", tree(train=40))
    opened = []
    monkeypatch.setitem(archives.OPEN, b"\x1f\x8b", lambda *a, **k: opened.append(a) or gzip.GzipFile(*a, **k))
    Images(root=where).load()
    assert len(opened) == 2 + 3  # twice to see what it is; to list it, to look at one image, to read all
    opened.clear()
    Images(root=where).load()
    assert len(opened) == 2


def test_a_tar_that_ends_with_a_zip_is_a_tar(tmp_path):
    inner = Path(zipped(tmp_path / "inner.zip", {"a.txt": b"a"})).read_bytes()
    assert len(Images(root=tarred(tmp_path / "set.tar", tree() | {"inner.zip": inner})).load().test) == 6


def links(kind: bytes, name: str, target: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def test_nothing_in_an_archive_is_followed_or_written_outside(tmp_path):
    outside = {"../train/cat/up.png": picture(1), "/train/cat/root.png": picture(2), "C:\\train\\x.png": picture(3)}
    device = links(tarfile.CHRTYPE, "train/zero", "")
    out = links(tarfile.SYMTYPE, "train/owl", "/etc")
    for where in (
        zipped(tmp_path / "set.zip", tree() | outside),
        tarred(tmp_path / "set.tar", tree() | outside, device, out),
    ):
        before = {path for path in tmp_path.rglob("*") if cache.home() not in path.parents}
        dataset = Images(root=where).load()
        assert (len(dataset.train) + len(dataset.validation), dataset.classes) == (12, ("cat", "dog"))
        assert "'../train/cat/up.png', '/train/cat/root.png'" in dataset.facts["ignored"]
        assert {path for path in tmp_path.rglob("*") if cache.home() not in path.parents} == before
    assert dataset.facts["ignored"].startswith("5 links or names that point outside")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_an_image_in_a_tar_that_is_a_link_or_a_device_is_named(tmp_path, kind):
    where = tarred(tmp_path / "set.tar", tree(), links(kind, "train/cat/9.png", "train/cat/0.png"))
    reason = "is a link, which is not followed" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else "is not a plain file"
    assert refusal(root=where).startswith(f"train/cat/9.png {reason}")
    assert Images(root=where, skip_broken=True).load().facts["skipped"].startswith("1 of 19 images")


def test_a_link_in_a_zip_is_named(tmp_path):
    where = zipped(tmp_path / "set.zip", tree())
    with zipfile.ZipFile(where, "a") as archive:
        member = zipfile.ZipInfo("train/cat/9.png")
        member.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(member, "0.png")
    assert refusal(root=where).startswith("train/cat/9.png is a link")


def test_an_encrypted_zip_is_named(tmp_path):
    where = Path(zipped(tmp_path / "set.zip", tree()))
    raw = bytearray(where.read_bytes())
    at = -1
    while (at := raw.find(b"PK\1\2", at + 1)) >= 0:
        raw[at + 8] |= 1  # the flag in each entry of the directory
    where.write_bytes(raw)
    message = refusal(root=str(where))
    assert message.startswith("train/cat/0.png is encrypted; unpack the zip and pass the folder")
    assert "17 more of 18" in message


def test_members_of_one_name_are_refused_since_either_may_be_meant(tmp_path):
    with zipfile.ZipFile(zipped(tmp_path / "set.zip", tree()), "a") as archive, pytest.warns(UserWarning, match="Dup"):
        archive.writestr("train/cat/1.png", picture(99))
    assert refusal(root=str(tmp_path / "set.zip")).startswith("train/cat/1.png is in the archive twice")
    where = tarred(tmp_path / "set.tar", tree() | {"./train/cat/1.png": picture(99)})
    assert refusal(root=where).startswith("train/cat/1.png is in the archive twice")


def test_a_zip_packed_in_an_unusual_way_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_LZMA) as archive:
        for name, data in tree().items():
            archive.writestr(name, data)
    assert refusal(root=str(tmp_path / "set.zip")).startswith("train/cat/0.png is packed by method 14; pack the zip")


def test_stored_members_and_a_zip_behind_other_bytes_are_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_STORED) as archive:
        for name, data in tree().items():
            archive.writestr(name, data)
    plain = Images(root=str(tmp_path / "set.zip")).load().digest
    (tmp_path / "sfx.zip").write_bytes(b"MZ program" * 50 + (tmp_path / "set.zip").read_bytes())
    assert Images(root=str(tmp_path / "sfx.zip")).load().digest == plain


@pytest.mark.parametrize(
    ("at", "reason"),
    [
        (0, "is not where the zip's directory says; the zip is damaged"),
        (60, "cannot be read (the zip's checksum is another)"),
    ],
)
def test_damage_to_one_member_of_a_zip_is_that_images_fault(tmp_path, at, reason):
    with zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_STORED) as archive:
        for name, data in tree().items():
            archive.writestr(name, data)
        begins = archive.getinfo("train/dog/2.png").header_offset
    raw = bytearray((tmp_path / "set.zip").read_bytes())
    raw[begins + at] ^= 255
    (tmp_path / "set.zip").write_bytes(raw)
    assert refusal(root=str(tmp_path / "set.zip")).startswith(f"train/dog/2.png {reason}; replace or remove it")
    assert Images(root=str(tmp_path / "set.zip"), skip_broken=True).load().facts["skipped"].startswith("1 of 18 images")


# bombs


def test_a_member_that_inflates_to_more_than_it_declares_is_stopped_there(tmp_path):
    where = Path(zipped(tmp_path / "set.zip", tree() | {"train/cat/0.png": bytes(3_000_000)}))
    raw = where.read_bytes()
    where.write_bytes(raw.replace(struct.pack("<I", 3_000_000), struct.pack("<I", 3000)))
    assert refusal(root=str(where)).startswith("train/cat/0.png cannot be read (the zip's checksum is another)")


@pytest.mark.parametrize("name", ["set.zip", "set.tar.gz"])
def test_an_archive_that_unpacks_without_bound_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.setattr(archives, "HARMLESS", 1_000_000)
    pack = zipped if name.endswith("zip") else tarred
    where = pack(tmp_path / name, tree() | {f"test/cat/{i}.png": bytes(9_000_000) for i in range(10, 15)})
    message = refusal(root=where)
    assert "over 200 times its size: no archive of images does" in message


def test_a_tar_header_that_wants_all_memory_is_refused(tmp_path):
    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 900_000_000
    squeeze = zlib.compressobj(wbits=31)
    data = b"".join([squeeze.compress(member.tobuf()), squeeze.compress(bytes(9_000_000)), squeeze.flush()])
    (tmp_path / "set.tar.gz").write_bytes(data)
    assert "describes a member by 900 MB; it is damaged, or a bomb" in refusal(root=str(tmp_path / "set.tar.gz"))


def test_a_bomb_of_pixels_is_refused_before_it_is_decoded(root):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10_000)))
    message = refusal(root=root(tree() | {"train/cat/3.png": png + chunk(b"IEND", b"")}))
    assert message.startswith("train/cat/3.png cannot be read as an image (Image size (3600000000 pixels)")


# damage


@pytest.mark.parametrize("name", PACKED)
def test_a_tar_cut_short_is_refused(tmp_path, name):
    where = Path(tarred(tmp_path / name, tree(train=40, size=(40, 40))))
    where.write_bytes(where.read_bytes()[: -where.stat().st_size // 3])
    # of bzip2, the only block is incomplete, so that nothing can be seen of it
    wanted = "is neither a folder nor a readable" if name.endswith("bz2") else "is a damaged archive"
    assert refusal(root=str(where)).startswith(f"{where} {wanted}")
    assert not stored()


def test_a_broken_header_in_the_middle_of_a_tar_does_not_end_it_silently(tmp_path):
    where = Path(tarred(tmp_path / "set.tar", tree()))
    raw = bytearray(where.read_bytes())
    raw[raw.index(b"train/dog/3.png") + 150] ^= 255
    where.write_bytes(raw)
    assert "is a damaged archive (there is something else where a member's header should be)" in refusal(
        root=str(where)
    )


def test_a_flipped_byte_in_a_packed_tar_is_noticed(tmp_path):
    where = Path(tarred(tmp_path / "set.tar.gz", tree(size=(30, 30))))
    raw = bytearray(where.read_bytes())
    raw[len(raw) // 2] ^= 1
    where.write_bytes(raw)
    assert "set.tar.gz" in refusal(root=str(where))


def test_a_member_of_a_zip_without_a_name_is_no_image(tmp_path):
    where = Path(zipped(tmp_path / "set.zip", tree() | {"x": b"1"}))
    raw = bytearray(where.read_bytes())
    raw[(at := raw.rindex(b"PK\1\2")) + 28 : at + 32] = bytes([0, 0, 1, 0])  # its name becomes an extra field
    where.write_bytes(raw)
    assert len(Images(root=str(where)).load().test) == 6


def test_bytes_changed_at_random_give_one_sentence_and_no_other_error(tmp_path):
    """Zips, tars and packed tars, each with a few bytes changed: either it loads, or it says why not."""
    random = np.random.default_rng(0)
    for pack, name in ((zipped, "set.zip"), (tarred, "set.tar"), (tarred, "set.tar.gz")):
        raw = Path(pack(tmp_path / name, tree(train=3, test=2))).read_bytes()
        for trial in range(40):
            changed = bytearray(raw)
            for at in random.integers(0, len(raw), 4):
                changed[at] = random.integers(256)
            where = tmp_path / f"{trial}-{name}"
            where.write_bytes(changed)
            with suppress(DataError):
                Images(root=str(where)).load()


# identity


def test_the_digest_of_a_large_archive_is_kept_until_it_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "WORTH_KEEPING", 0)
    where = Path(zipped(tmp_path / "set.zip", tree()))
    digest = sha256(where)
    assert digest == cache.file_digest(where)
    with monkeypatch.context() as patch:
        patch.setattr(cache, "file_digest", lambda path: pytest.fail("read again"))
        assert sha256(where) == digest
    zipped(where, tree(train=7))
    assert sha256(where) == cache.file_digest(where) != digest


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"sha256": 7}', b'{"sha256": "abc"}', b"{}", b"\xff"])
def test_a_kept_digest_that_is_damaged_is_taken_again(tmp_path, monkeypatch, damage):
    monkeypatch.setattr(archives, "WORTH_KEEPING", 0)
    where = Path(zipped(tmp_path / "set.zip", tree()))
    digest = sha256(where)
    (kept,) = cache.home().glob("datasets/archives/*.json")
    kept.write_bytes(damage)
    assert sha256(where) == digest


def test_listing_a_folder_asks_for_the_status_of_each_file_once(tmp_path, monkeypatch):
    where = Path(folder(tmp_path / "set", tree()))
    asked, scan = [], os.scandir

    class Counting:
        def __init__(self, entry):
            self._entry = entry

        def __getattr__(self, name):
            return getattr(self._entry, name)

        def stat(self):
            asked.append(self._entry.name)
            return self._entry.stat()

    class Scan:
        def __init__(self, path):
            self._entries = scan(path)

        def __enter__(self):
            return (Counting(entry) for entry in self._entries)

        def __exit__(self, *_):
            self._entries.close()

    monkeypatch.setattr(os, "scandir", Scan)
    files = sources.Folder(where)
    names, identity = files.names(), files.identity()
    assert len(asked) == 18
    assert len([name for name in names if not name.endswith("/")]) == 18
    assert identity == sources.identity(where)


def test_a_packed_tar_is_not_unpacked_to_know_that_it_was_decoded(tmp_path, monkeypatch):
    where = tarred(tmp_path / "set.tar.gz", tree())
    images = Images(root=where)
    assert images.missing() == f"the images of {where} have to be decoded, once"
    images.load()
    monkeypatch.setattr(Tar, "_list", lambda self: pytest.fail("unpacked"))
    assert images.missing() is None
    images.load()


def test_missing_says_what_load_would_refuse(tmp_path):
    assert "pass -o dataset.root=FOLDER_OR_ARCHIVE" in (Images().missing() or "")
    assert f"there is no folder, zip or tar {tmp_path}/x" in (Images(root=f"{tmp_path}/x").missing() or "")


def test_reading_an_image_file_does_not_wait_for_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Broken, match="is not a plain file"):
        fetch(Place(str(tmp_path / "pipe")))
    assert fetch(Place(data=b"here", size=4)) == b"here"
