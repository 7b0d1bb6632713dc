"""ImageNet by a URL: a prepared store that is copied once, and shards that are read once."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import fsspec
import pytest
import torch
from ddbench_datasets import ImageNet, remote, shards, store
from pictures import WNIDS, folder, imagenet
from refusals import refused

from ddbench import DataError, UsageError
from ddbench.base import cache


@pytest.fixture
def memory():
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


@pytest.fixture
def local(tmp_path):
    """The miniature from a folder, and where its decoded images are."""
    made = ImageNet(root=folder(tmp_path / "set", imagenet())).load()
    (place,) = [path.parent for path in (cache.home() / "datasets").glob("*/about.json")]
    return made, place


def uploaded(place: Path, memory, name: str = "set") -> str:
    for path in (place / "about.json", place / "pixels.npy"):
        memory.pipe(f"/{name}/{path.name}", path.read_bytes())
    return f"memory://{name}"


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """Another machine, with a cache of its own."""
    monkeypatch.setenv("DDBENCH_HOME", str(tmp_path / "elsewhere"))


def same(one, other) -> bool:
    parts = ((a, getattr(other, name)) for name in ("train", "validation", "test") for a in [getattr(one, name)])
    return one.digest == other.digest and all(torch.equal(a.pixels[:], b.pixels[:]) for a, b in parts)


# a prepared store


def test_a_prepared_store_is_the_dataset_it_was_made_from(local, memory, elsewhere):
    dataset, place = local
    source = ImageNet(root=uploaded(place, memory))
    assert (source.missing() or "").startswith("the 0.00")
    assert "have to be copied, once" in (source.missing() or "")
    assert same(source.load(), dataset)


def test_a_store_is_copied_once(local, memory, elsewhere, monkeypatch):
    dataset, place = local
    source = ImageNet(root=uploaded(place, memory))
    source.load()
    monkeypatch.setattr(remote, "_copy", None)
    assert source.missing() is None
    assert same(source.load(), dataset)


def test_a_copy_that_was_stopped_goes_on_where_it_was(local, memory, elsewhere, monkeypatch):
    dataset, place = local
    url, size = uploaded(place, memory), (place / "pixels.npy").stat().st_size
    monkeypatch.setattr(remote, "BLOCK", size // 3)
    seen = []

    def stop(what, done, total, **numbers):
        seen.append(done)
        if len(seen) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(remote, "report", stop)
    with pytest.raises(KeyboardInterrupt):
        ImageNet(root=url).load()
    assert same(ImageNet(root=url).load(), dataset)
    assert seen[2] > seen[1]


def test_a_store_that_changed_on_its_way_is_refused_and_copied_anew(local, memory, elsewhere):
    dataset, place = local
    url, whole = uploaded(place, memory), (place / "pixels.npy").read_bytes()
    memory.pipe("/set/pixels.npy", whole[:-1] + bytes([whole[-1] ^ 1]))
    said = refused(ImageNet(root=url).load, DataError)
    assert "has another sha256 than it says; run again" in said
    memory.pipe("/set/pixels.npy", whole)
    assert same(ImageNet(root=url).load(), dataset)


def test_a_url_of_local_files_works_too(local, elsewhere):
    dataset, place = local
    assert same(ImageNet(root=f"file://{place}").load(), dataset)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": 128}, "are those of dataset.size=64, and 128 is asked for"),
        ({"limit": 9}, "are those of dataset.limit=none, and 9 is asked for"),
        ({"subset": "nette"}, "is used whole; leave out dataset.subset"),
    ],
)
def test_options_that_would_need_other_images_are_refused(local, memory, elsewhere, options, said):
    assert said in refused(ImageNet(root=uploaded(local[1], memory), **options).load, UsageError)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("memory://nowhere", "memory://nowhere cannot be read"),
        ("nonsense://set", "nonsense://set is no place that fsspec knows"),
        ("memory://broken", "about.json of memory://broken is damaged"),
        ("memory://empty", "holds no train and no test shards"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(memory, url, said):
    memory.pipe("/broken/about.json", b'{"classes": 3')
    memory.pipe("/empty/notes.txt", b"")
    assert said in refused(ImageNet(root=url).load, DataError)


# shards


def shard(samples: list[tuple[str, bytes, int]]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for key, picture, label in samples:
            for name, data in ((f"{key}.jpg", picture), (f"{key}.cls", str(label).encode()), (f"{key}.json", b"{}")):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def sharded(memory, name: str = "wds") -> str:
    """The miniature as shards of four samples, whose classes are mixed."""
    order = sorted(WNIDS)
    for part in ("train", "val"):
        found = [(n, data) for n, data in imagenet().items() if n.startswith(f"{part}/")]
        found = sorted(found, key=lambda item: item[0][::-1])
        samples = [(n.partition(".")[0].replace("/", "_"), data, order.index(n.split("/")[1])) for n, data in found]
        for i in range(0, len(samples), 4):
            memory.pipe(f"/{name}/imagenet-{part}-{i // 4:04}.tar", shard(samples[i : i + 4]))
    memory.pipe(f"/{name}/classes.txt", "\n".join(order).encode())
    return f"memory://{name}"


def rows(data) -> set[tuple[int, bytes]]:
    return {(int(t), p.numpy().tobytes()) for t, p in zip(data.targets, data.pixels[:], strict=True)}


def test_shards_are_the_images_of_the_folder_class_by_class(local, memory, elsewhere):
    dataset, _ = local
    source = ImageNet(root=sharded(memory))
    assert "have to be read and decoded, once" in (source.missing() or "")
    made = source.load()
    assert made.classes == dataset.classes
    assert rows(made.test) == rows(dataset.test)
    assert rows(made.train) | rows(made.validation) == rows(dataset.train) | rows(dataset.validation)
    assert source.missing() is None
    assert len(list((cache.home() / "datasets").glob("*/pixels.npy"))) == 1


def test_shards_that_are_decoded_are_not_read_again(memory, monkeypatch):
    url, read = sharded(memory), []
    samples = shards._samples

    def counted(remote, name):
        read.append(name)
        if len(read) == 4:
            raise KeyboardInterrupt
        return samples(remote, name)

    monkeypatch.setattr(shards, "_samples", counted)
    with pytest.raises(KeyboardInterrupt):
        ImageNet(root=url).load()
    ImageNet(root=url).load()
    assert sorted(set(read)) == sorted(n for n in remote.Remote(url).names() if n.endswith(".tar"))
    assert len(read) == len(set(read)) + 1


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("imagenet-train-0000.tar", b"no tar", "is no whole shard of numbered classes"),
        ("imagenet-train-0000.tar", shard([("a", b"x", 77)]), "a is in none of the formats"),
        ("classes.txt", b"n01440764", "has an image of class"),
    ],
)
def test_shards_that_cannot_be_used_are_one_sentence(memory, name, data, said):
    url = sharded(memory)
    memory.pipe(f"/wds/{name}", data)
    assert said in refused(ImageNet(root=url).load, DataError)


def test_a_sample_without_a_class_is_refused(memory):
    url = sharded(memory)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("lonely.jpg"), io.BytesIO())
    memory.pipe("/wds/imagenet-train-0000.tar", stream.getvalue())
    assert "lonely in imagenet-train-0000.tar of" in refused(ImageNet(root=url).load, DataError)


def test_a_choice_among_shards_is_refused(memory):
    said = refused(ImageNet(root=sharded(memory), limit=5).load, UsageError)
    assert "are those of dataset.limit=none, and 5 is asked for" in said


def test_what_is_kept_of_a_store_says_nothing_of_the_other_machine(local, memory, elsewhere):
    ImageNet(root=uploaded(local[1], memory)).load()
    before = json.loads((local[1] / "about.json").read_text())
    after = json.loads((store.place(before["identity"]) / "about.json").read_text())
    assert after["content"] == before["content"]
    assert after["stamp"] != before["stamp"]
