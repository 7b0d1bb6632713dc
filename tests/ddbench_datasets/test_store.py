"""Stores of decoded images: the same bytes however often the work is stopped, and never a half of them."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ddbench_datasets import Images, building, store, workers
from ddbench_datasets.building import Plan
from ddbench_datasets.sources import Folder
from pictures import folder, saved, tarred, tree
from PIL import Image

from ddbench import DataError, Store
from ddbench.base import cache
from ddbench.base.machine import reset_peak
from ddbench.base.progress import Event, listening, noting
from ddbench.errors import InterruptedRun

MANY = 40  # train images of each class; in chunks of four, so that two processes have something to do

# A process of its own that builds a store in chunks of four images; without torch, so that it starts in no time.
SCRIPT = """
import json, sys, time, types
from pathlib import Path

order = json.loads(sys.argv[1])
package = sys.modules["ddbench_datasets"] = types.ModuleType("ddbench_datasets")
package.__path__ = [order["package"]]
print("started", flush=True)

from ddbench.base.progress import listening
from ddbench_datasets import building, sources, workers

building.CHUNK, workers.cores = 4, lambda: 2

def told(event):
    print(event.done, event.total, flush=True)
    time.sleep(order["pause"])

files = sources.Folder(Path(order["root"]))
plan = building.Plan(files, order["names"], "auto", None, False, order["origin"], order["about"], ground="white")
with listening(told):
    building.build(Path(order["folder"]), plan)
assert "torch" not in sys.modules
"""


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(building, "CHUNK", 4)
    monkeypatch.setattr(workers, "cores", lambda: 2)


@pytest.fixture
def root(tmp_path) -> str:
    return folder(tmp_path / "set", tree(train=MANY, test=4, size=(8, 8)))


def order(root: str, pause: float = 0.0) -> str:
    """What SCRIPT needs to build the store that ``Images(root)`` reads."""
    images = Images(root=root)
    collection = images._collection(Path(root))
    plan, place = collection._plan(images), store.place(collection.identity(images))
    place.mkdir(parents=True, exist_ok=True)
    known = {"names": plan.names, "origin": plan.origin, "about": plan.about}
    package = str(Path(store.__file__).parent)
    return json.dumps({"root": root, "folder": str(place), "package": package, "pause": pause, **known})


def stop_at(count: int):
    """A listener that stops the work when ``count`` images are decoded."""

    def told(event: Event) -> None:
        if event.done >= count:
            raise InterruptedRun("stopped")

    return told


def children() -> set[int]:
    """The processes that this one has started and that still live."""
    text = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    return {int(pid) for pid in text.split()}


def orphans() -> set[str]:
    """Processes of any parent that decode images for a test."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if b"ddbench_datasets.workers import serve" in path.read_bytes():
                found.add(path.parent.name)
    return found


@contextmanager
def no_orphans() -> Iterator[None]:
    before = orphans()
    yield
    deadline = time.monotonic() + 20
    while orphans() - before:
        assert time.monotonic() < deadline, "decoding processes outlive their parent"
        time.sleep(0.05)


def left() -> set[str]:
    return {path.name for path in (cache.home() / "datasets").glob("*/*")}


# parallel and resumed


def test_processes_write_the_bytes_that_one_process_writes(root, small_chunks, monkeypatch):
    with no_orphans():
        parallel = Images(root=root).load()
    shutil.rmtree(cache.home())
    monkeypatch.setattr(workers, "cores", lambda: 1)
    assert Images(root=root).load().digest == parallel.digest
    assert left() == {"pixels.npy", "about.json", "lock"}


def test_decoding_processes_import_neither_torch_nor_the_main_module(root, tmp_path):
    """A script without a guard around its main part would otherwise start itself again in each process."""
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), order(root)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line for line in lines if line == "started"] == ["started"]
    assert lines[-1] == "88 88"
    start = workers._START.format(path=sys.path, folder=str(Path(workers.__file__).parent), handle=0)
    seen = start.replace("serve(0)", "print('torch' in sys.modules, 'pluggy' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", seen], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


@pytest.mark.parametrize("processes", [1, 2])
def test_a_listener_that_stops_the_work_leaves_what_is_done_and_no_process(root, small_chunks, monkeypatch, processes):
    monkeypatch.setattr(workers, "cores", lambda: processes)
    with no_orphans(), listening(stop_at(20)), pytest.raises(InterruptedRun):
        Images(root=root).load()
    assert not children()
    assert left() == {"pixels.part", "journal", "lock"}
    events: list[Event] = []
    with listening(events.append):
        resumed = Images(root=root).load()
    assert (events[0].what, events[0].done, events[0].total) == ("decoding", 20, 88)
    assert events[-1].done == 88
    shutil.rmtree(cache.home())
    assert Images(root=root).load().digest == resumed.digest


@pytest.mark.parametrize("processes", [1, 2])
def test_a_load_that_is_killed_again_and_again_ends_with_the_same_bytes(root, small_chunks, monkeypatch, processes):
    command = [sys.executable, "-c", SCRIPT.replace("lambda: 2", f"lambda: {processes}"), order(root, pause=0.01)]
    with no_orphans():
        for count in (3, 2, 4, 6):
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert process.stdout is not None
            for _ in range(count):
                process.stdout.readline()
            process.kill()
            process.communicate()
            assert left() == {"pixels.part", "journal"}
    events: list[Event] = []
    with listening(events.append):
        digest = Images(root=root).load().digest
    assert 4 * 7 <= events[0].done < events[0].total
    shutil.rmtree(cache.home())
    assert Images(root=root).load().digest == digest


def test_a_packed_tar_is_gone_on_with_too(tmp_path, small_chunks):
    files = tree(train=MANY, test=4)
    packed = tarred(tmp_path / "set.tar.gz", dict(sorted(files.items(), reverse=True)))
    with listening(stop_at(20)), pytest.raises(InterruptedRun):
        Images(root=packed).load()
    assert Images(root=packed).load().digest == Images(root=folder(tmp_path / "dir", files)).load().digest


def test_chunks_without_a_whole_line_in_the_journal_are_decoded_again(root, small_chunks):
    with listening(stop_at(40)), pytest.raises(InterruptedRun):
        Images(root=root).load()
    (journal,) = cache.home().glob("datasets/*/journal")
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join(lines[:5]) + "\n" + lines[5][:2])
    start = json.loads(lines[0].rpartition(" ")[0])
    with journal.with_name("pixels.part").open("r+b") as stream:  # rows that no line vouches for
        for number in {json.loads(line.rpartition(" ")[0])[0] for line in lines[5:]}:
            stream.seek(start["offset"] + number * 4 * 3 * 64)
            stream.write(b"\xff" * 4 * 3 * 64)
    digest = Images(root=root).load().digest
    shutil.rmtree(cache.home())
    assert Images(root=root).load().digest == digest


@pytest.mark.parametrize("stopped", ["journal", "replace", "about"])
def test_stopping_between_the_last_steps_leaves_something_to_go_on_with(root, small_chunks, monkeypatch, stopped):
    def crash(*_args, **_options):
        raise KeyboardInterrupt

    whole = Images(root=root).load().digest
    shutil.rmtree(cache.home())
    steps = {"journal": (building._Journal, "add"), "replace": (store, "_commit"), "about": (cache, "write_json")}
    with monkeypatch.context() as patch:
        patch.setattr(*steps[stopped], crash)
        with pytest.raises(KeyboardInterrupt):
            Images(root=root).load()
    assert "about.json" not in left()
    assert Images(root=root).load().digest == whole
    assert left() == {"pixels.npy", "about.json", "lock"}


def test_two_processes_that_want_the_same_store_make_it_once(root):
    code = (
        "import sys, time; from ddbench_datasets import Images; from ddbench.base.progress import listening\n"
        "with listening(lambda event: print(event.done, flush=True) or time.sleep(0.2)):\n"
        "    print(Images(root=sys.argv[1]).load().digest)"
    )
    with subprocess.Popen([sys.executable, "-c", code, root], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "0\n"  # it has begun, and takes some time
        events: list[Event] = []
        with listening(events.append):
            digest = Images(root=root).load().digest
        assert other.stdout.read().splitlines() == ["88", digest]
    assert not [event for event in events if event.what == "decoding"]


def test_a_process_that_dies_is_told_and_the_rest_is_kept(root, small_chunks, monkeypatch):
    real = workers._Worker

    def told(event: Event) -> None:
        if event.done == 8:
            for worker in started:
                os.kill(worker.process.pid, signal.SIGKILL)

    started: list[Any] = []
    monkeypatch.setattr(workers, "_Worker", lambda target: started.append(real(target)) or started[-1])
    with listening(told), pytest.raises(DataError, match="died, perhaps for lack of memory; run again to go on"):
        Images(root=root).load()
    assert left() == {"pixels.part", "journal", "lock"}
    assert len(Images(root=root).load().test) == 8


# disks


def test_too_little_room_is_told_before_the_work(root, monkeypatch):
    free = shutil.disk_usage("/")._replace(free=5000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: free)
    with pytest.raises(DataError) as caught:
        Images(root=root).load()
    message = str(caught.value)
    assert "decoding 88 images needs 1.7e-05 GB in" in message
    assert "where only 5e-06 GB are free; free some space, or let DDBENCH_HOME name" in message
    assert left() <= {"lock"}


def test_a_file_size_limit_is_one_sentence_and_leaves_no_store(root):
    kept = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, kept[1]))
    try:
        with pytest.raises(DataError, match=r"cannot write in .*: File too large; free some space and run again"):
            Images(root=root).load()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, kept)
    assert left() <= {"lock"}
    assert len(Images(root=root).load().test) == 8


def test_a_disk_that_fills_while_decoding_is_one_sentence_and_can_be_gone_on_with(root, small_chunks, monkeypatch):
    writes, real = [], os.pwrite

    def full(file: int, data: bytes, offset: int) -> int:
        writes.append(offset)
        if len(writes) > 30:
            raise OSError(28, "No space left on device")
        return real(file, data[:100], offset)  # a part of it, as systems may do

    monkeypatch.setattr(workers, "cores", lambda: 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(DataError, match="No space left on device; free some space"):
            Images(root=root).load()
    assert left() == {"pixels.part", "journal", "lock"}
    digest = Images(root=root).load().digest
    shutil.rmtree(cache.home())
    assert Images(root=root).load().digest == digest


def test_a_cache_folder_that_may_not_be_written_is_one_sentence(root, monkeypatch):
    monkeypatch.setenv("DDBENCH_HOME", "/proc/nowhere")
    with pytest.raises(DataError, match="cannot write in /proc/nowhere"):
        Images(root=root).load()


# reading


def test_the_digest_that_is_kept_is_that_of_the_array(root, tmp_path):
    dataset = Images(root=root).load()
    held = dataset.train.pixels.store
    assert held.known == Store(held.array.clone()).content
    array, about = store.cached(["small"], lambda: (np.arange(24, dtype=np.uint8).reshape(2, 3, 2, 2), {"a": 1}))
    assert about["content"] == Store(torch.from_numpy(array.copy())).content
    assert about["a"] == 1
    again, _ = store.cached(["small"], lambda: pytest.fail("made again"))
    assert np.array_equal(array, again)


def test_what_is_written_to_images_never_reaches_the_file(root):
    pixels = Images(root=root).load().train.pixels.store.array
    pixels[0] = 255 - pixels[0]
    assert not torch.equal(Images(root=root).load().train.pixels.store.array[0], pixels[0])


def test_a_store_larger_than_memory_can_be_mapped(tmp_path):
    path = tmp_path / "pixels.npy"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    count = 2 * memory // (3 * 2**20)
    with path.open("wb") as stream:
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, 3, 1024, 1024)}
        np.lib.format.write_array_header_1_0(stream, header)
        stream.truncate(stream.tell() + count * 3 * 2**20)  # a hole, which takes no room
    pages = store._mapped(path)
    path.unlink()  # pytest would keep it
    assert pages.shape[0] == count


def resident() -> dict[str, int]:
    """MB of this process's memory that is its own, and that belongs to files."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0].removesuffix(":"): int(words[1]) // 1000 for words in lines if words[0].startswith("Rss")}


def test_reading_all_of_a_store_takes_no_memory_of_its_own(tmp_path):
    """400 MB: what is read belongs to the file, so the system can drop it again."""
    count, shape = 400, (4, 500, 500)
    array = np.lib.format.open_memmap(tmp_path / "pixels.npy", "w+", np.uint8, (count, *shape))
    array[:, 0, 0, 0] = 1
    del array
    pixels = torch.from_numpy(store._mapped(tmp_path / "pixels.npy"))
    (tmp_path / "pixels.npy").unlink()  # pytest would keep it
    reset_peak("cpu")  # commands of other tests have had the allocator keep what torch frees
    before = resident()
    assert int(sum(int(block.sum(dtype=torch.int64)) for block in pixels.split(10))) == count
    reset_peak("cpu")
    after = resident()
    assert after["RssAnon"] - before["RssAnon"] < 40
    assert after["RssFile"] - before["RssFile"] > 350


# the plan


def test_chunks_are_bounded_in_images_and_in_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(building, "CHUNK_BYTES", 1000)
    files = {f"{i}.png": bytes(size) for i, size in enumerate([400, 400, 400, 5000, 10, 10])}
    plan = Plan(Folder(Path(folder(tmp_path / "set", files))), sorted(files), "3", 8, False, None)
    assert list(building._chunks(plan, range(6))) == [[0, 1], [2], [3], [4, 5]]
    monkeypatch.setattr(building, "CHUNK", 1)
    assert len(list(building._chunks(plan, range(6)))) == 6


def test_a_store_of_another_version_or_with_a_damaged_description_is_made_again(root):
    digest = Images(root=root).load().digest
    (about,) = cache.home().glob("datasets/*/about.json")
    whole = json.loads(about.read_text())
    for damaged in ({}, {**whole, "shape": [1]}, {**whole, "content": None}, []):
        about.write_text(json.dumps(damaged))
        assert Images(root=root).load().digest == digest
    about.with_name("pixels.npy").write_bytes(b"\x93NUMPY\x02\x00" + bytes(100))
    assert Images(root=root).load().digest == digest


# pixels that change on the disk


def flip(path: Path, at: int = -1) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(bytes(raw))


@pytest.fixture
def notes() -> Iterator[list[str]]:
    said: list[str] = []
    with noting(said.append):
        yield said


def test_a_flipped_pixel_is_noticed_and_healed_with_one_line(root, notes):
    whole = Images(root=root).load()
    (stored,) = cache.home().glob("datasets/*/pixels.npy")
    for at in (-1, 200, stored.stat().st_size // 2):
        flip(stored, at)
        healed = Images(root=root).load()
        assert healed.digest == whole.digest
        assert torch.equal(healed.train.pixels[:], whole.train.pixels[:])
    wanted = f"the decoded images in {stored.parent} are not as they were written (sha256); they are made again"
    assert notes == [wanted] * 3
    assert left() == {"pixels.npy", "about.json", "lock"}


def test_a_flipped_pixel_is_noticed_by_a_process_that_finds_the_time_unchanged(root, tmp_path):
    Images(root=root).load()
    (stored,) = cache.home().glob("datasets/*/pixels.npy")
    status = stored.stat()
    flip(stored)
    os.utime(stored, ns=(status.st_atime_ns, status.st_mtime_ns))
    command = [sys.executable, "-m", "ddbench", "prepare", f"images:{root}", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1
    assert "are not as they were written (sha256); they are made again" in lines[0]
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not again.stderr.strip()
    assert again.stdout == done.stdout


def test_large_stores_are_digested_when_they_were_touched_or_when_somebody_wants_to_be_sure(root, notes, monkeypatch):
    digest = Images(root=root).load().digest
    (stored,) = cache.home().glob("datasets/*/pixels.npy")
    monkeypatch.setattr(store, "CHECKED", 1000)
    monkeypatch.setattr(store, "_trusted", set())
    status = stored.stat()
    flip(stored)
    os.utime(stored, ns=(status.st_atime_ns, status.st_mtime_ns))
    Images(root=root).load()
    assert not notes  # a flipped bit of a large file, found by whoever prepares
    with cache.thoroughly():
        assert Images(root=root).load().digest == digest
    assert len(notes) == 1
    flip(stored)  # with another time
    assert Images(root=root).load().digest == digest
    assert len(notes) == 2


def test_a_store_of_which_the_source_is_gone_is_refused_by_naming_it(root, tmp_path):
    Images(root=root).load()
    (stored,) = cache.home().glob("datasets/*/pixels.npy")
    flip(stored)
    shutil.rmtree(root)
    with pytest.raises(DataError, match=rf"there is no folder, zip or tar {root}; pass -o dataset.root"):
        Images(root=root).load()


def test_parts_of_a_half_made_store_that_changed_are_decoded_again(root, small_chunks, notes, monkeypatch):
    monkeypatch.setattr(workers, "cores", lambda: 1)  # so that the first part is done first
    with listening(stop_at(40)), pytest.raises(InterruptedRun):
        Images(root=root).load()
    (part,) = cache.home().glob("datasets/*/pixels.part")
    flip(part, 128 + 5)
    flip(part, 20)  # in the header
    events: list[Event] = []
    with listening(events.append):
        digest = Images(root=root).load().digest
    assert events[0].done == 36
    assert notes == [f"1 of 10 parts of {part.parent} have changed on the disk; they are decoded again"]
    shutil.rmtree(cache.home())
    assert Images(root=root).load().digest == digest


def test_any_damage_to_a_journal_costs_work_and_nothing_else(root, small_chunks, monkeypatch):
    monkeypatch.setattr(workers, "cores", lambda: 1)
    whole = Images(root=root).load().digest
    shutil.rmtree(cache.home())
    random = np.random.default_rng(0)
    with listening(stop_at(40)), pytest.raises(InterruptedRun):
        Images(root=root).load()
    kept = {path.name: path.read_bytes() for path in cache.home().glob("datasets/*/*")}
    (folder_,) = cache.home().glob("datasets/*")
    for _ in range(12):
        for path in folder_.iterdir():
            path.unlink()
        for name, data in kept.items():
            (folder_ / name).write_bytes(data)
        flip(folder_ / "journal", int(random.integers(len(kept["journal"]))))
        assert Images(root=root).load().digest == whole


def test_any_damage_to_the_description_makes_the_store_again(root):
    digest = Images(root=root).load().digest
    (about,) = cache.home().glob("datasets/*/about.json")
    whole, random = about.read_bytes(), np.random.default_rng(0)
    deep = b'{"a":' * 100_000
    for damaged in (b"", b"[]", b"null", b'"text"', b"7", deep, b"\xff\xfe", whole[: len(whole) // 2], b"{}"):
        about.write_bytes(damaged)
        assert Images(root=root).missing() is not None
        assert Images(root=root).load().digest == digest
    for at in random.integers(len(whole), size=25):
        changed = bytearray(whole)
        changed[at] ^= int(2 ** random.integers(7))
        about.write_bytes(bytes(changed))
        assert Images(root=root).load().digest == digest


def test_a_store_that_is_cut_or_of_an_earlier_version_is_made_again_with_one_line(root, notes):
    digest = Images(root=root).load().digest
    (stored,) = cache.home().glob("datasets/*/pixels.npy")
    about = stored.with_name("about.json")
    earlier = {name: value for name, value in json.loads(about.read_text()).items() if name not in ("seal", "stamp")}
    stored.write_bytes(stored.read_bytes()[:-5])
    assert Images(root=root).load().digest == digest
    about.write_text(json.dumps(earlier))
    assert Images(root=root).load().digest == digest
    wanted = f"the decoded images in {stored.parent} are damaged, or of an earlier version; they are made again"
    assert notes == [wanted] * 2


@pytest.mark.parametrize("name", ["about.json", "pixels.npy"])
def test_a_pipe_in_the_place_of_a_file_of_the_store_is_not_waited_for(root, name):
    digest = Images(root=root).load().digest
    (path,) = cache.home().glob(f"datasets/*/{name}")
    path.unlink()
    os.mkfifo(path)
    assert Images(root=root).load().digest == digest


def test_images_that_a_ground_changes_lie_apart_from_what_earlier_versions_stored(tmp_path):
    opaque = folder(tmp_path / "opaque", tree())
    clear = Image.new("RGBA", (6, 6), (9, 9, 9, 255))
    clear.putpixel((0, 0), (9, 9, 9, 0))
    through = folder(tmp_path / "through", tree() | {"train/cat/0.png": saved(clear)})
    for where, at in ((opaque, 0), (through, 1)):
        images = Images(root=where)
        images.load()
        places = store._places(images._collection(Path(where)).identity(images))
        assert [(place / "about.json").exists() for place in places] == [at == 0, at == 1]
