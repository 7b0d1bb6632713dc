"""How the ranks of one command come together: started by torchrun, or by rank 0 (``--devices``)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import IO, Any

import torch

from ddbench.base.machine import code
from ddbench.base.process import PARENT, follow_parent
from ddbench.base.ranks import CURRENT, SECONDS, Ranks, answer, last_line
from ddbench.errors import RankError, UsageError

_START = 120.0  # seconds for all ranks to be there
_IDLE = timedelta(days=365)  # between two batches: rank 0 trains experts or selects
_WORDS = 2**17  # bytes that a rank says about itself, its command line included: more than the system lets that have
_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # of torchrun
_HERE = "127.0.0.1"
_WORKER = "import sys; sys.path[:] = {path!r}; from ddbench.base.rank_start import work; work({device!r})"


def rank_here() -> int:
    """The rank that torchrun, or rank 0, gave to this process; 0 where nobody did."""
    return _placed()[0]


def _placed() -> tuple[int, int]:
    """Rank and number of ranks by the environment. Raises UsageError for what is no rank."""
    if not all(os.environ.get(name) for name in _VARIABLES):
        return 0, 1
    rank, size = os.environ["RANK"], os.environ["WORLD_SIZE"]
    if not (rank.isdecimal() and size.isdecimal() and int(rank) < int(size)):
        raise UsageError(f"RANK={rank} of WORLD_SIZE={size} is no rank; start ddbench with torchrun or --devices")
    return int(rank), int(size)


@contextmanager
def gathered(devices: int, device: str) -> Iterator[Ranks | None]:
    """Inside the block the ranks of this command work for it: those of torchrun, or ``devices`` started here.

    None where there is one. Raises UsageError for more than there are, RankError for those that do not come.
    """
    size = _placed()[1]
    if size > 1 and devices > 1:
        raise UsageError(f"torchrun has started {size} ranks, so --devices is theirs to say; leave it out")
    if max(size, devices) == 1:
        yield None
        return
    ranks = _join(device) if size > 1 else _started(devices, device)
    token = CURRENT.set(ranks)
    try:
        yield ranks
    finally:
        CURRENT.reset(token)
        ranks.close()


def see_own_gpu() -> None:
    """Under torchrun, have this process see one GPU, that of its local rank; before CUDA is in use."""
    local = os.environ.get("LOCAL_RANK", "")
    if _placed()[1] > 1 and local.isdecimal():
        given = os.environ.get("CUDA_VISIBLE_DEVICES")
        seen = given.split(",") if given else [str(i) for i in range(int(local) + 1)]
        os.environ["CUDA_VISIBLE_DEVICES"] = seen[int(local)] if int(local) < len(seen) else ""


def _started(devices: int, device: str) -> Ranks:
    """Rank 0 of ranks that it starts on this machine, each on a GPU or process of its own."""
    there = torch.cuda.device_count() if device == "cuda" else os.cpu_count() or 1
    if devices > there:
        kind = "CUDA devices" if device == "cuda" else "processors"
        raise UsageError(f"--devices {devices} asked for, but there are {there} {kind} here; ask for at most {there}")
    store = _store(0)
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = given.split(",") if given else [str(i) for i in range(devices)]
    started: list[subprocess.Popen[bytes]] = []
    words: list[IO[bytes]] = []
    try:
        for rank in range(1, devices):
            words.append(tempfile.TemporaryFile())  # noqa: SIM115 - it is read when its process is gone
            own = dict(zip(_VARIABLES, map(str, (rank, devices, _HERE, store.port)), strict=True))
            own |= {PARENT: str(os.getpid()), "OMP_NUM_THREADS": str(torch.get_num_threads())}
            own |= {"CUDA_VISIBLE_DEVICES": gpus[rank]} if device == "cuda" else {}
            started.append(_launched(own, device, words[-1]))
        _await(store, started, words, devices)
        control, data = _groups(0, devices, device, store)
    except BaseException:
        for process in started:
            process.kill()
        raise
    ranks = Ranks(devices, control, data, torch.device(device), started, words)
    ranks.watch()
    return ranks


def _store(port: int) -> Any:
    """Where ranks of this machine leave word: made at any free port, or found at the one of rank 0."""
    from torch.distributed import TCPStore  # type: ignore[reportPrivateImportUsage] # it is documented

    return TCPStore(_HERE, port, None, port == 0, timeout=timedelta(seconds=_START), wait_for_workers=False)


def _launched(own: dict[str, str], device: str, words: IO[bytes]) -> subprocess.Popen[bytes]:
    """A rank's process, in a session of its own: Ctrl-C reaches only rank 0."""
    command = [sys.executable, "-P", "-c", _WORKER.format(path=sys.path, device=device)]
    nothing = subprocess.DEVNULL
    return subprocess.Popen(  # noqa: S603 - our own command
        command, stdin=nothing, stdout=nothing, stderr=words, env=os.environ | own, start_new_session=True
    )


def _await(store: Any, started: list[subprocess.Popen[bytes]], words: list[IO[bytes]], devices: int) -> None:
    began = time.monotonic()
    while not store.check([f"here/{rank}" for rank in range(1, devices)]):
        for rank, process in enumerate(started, 1):
            if process.poll() is not None:
                raise RankError(f"rank {rank} of {devices} could not be started: {last_line(words[rank - 1])}")
        if time.monotonic() - began > _START:
            raise RankError(f"not all {devices} ranks were there after {_START:g} s; run again with fewer --devices")
        time.sleep(0.02)


def _join(device: str) -> Ranks:
    """Rank 0 of the ranks that torchrun has started; it refuses those that are not of one mind."""
    size = _placed()[1]
    control, data = _groups(0, size, device)
    return Ranks(size, control, data, torch.device(device))


def _groups(rank: int, size: int, device: str, store: Any = None) -> tuple[Any, Any]:
    """The process groups for headers and for batches, once all ranks are the same ddbench with the same command."""
    import torch.distributed as dist

    where: dict[str, Any] = {"store": store} if store is not None else {"init_method": "env://"}
    try:
        dist.init_process_group("gloo", rank=rank, world_size=size, timeout=timedelta(seconds=_START), **where)
        given = [] if store is not None else sys.argv[1:]
        told = _told({"ddbench": code(), "torch": str(torch.__version__), "device": device, "words": given}, size)
    except RuntimeError as error:
        raise RankError(f"the {size} ranks do not find each other ({str(error).splitlines()[0]}); run again") from error
    if flaw := _disagreement(told):
        dist.destroy_process_group()
        raise UsageError(flaw)
    data = dist.new_group(backend="nccl" if device == "cuda" else "gloo", timeout=timedelta(seconds=SECONDS))
    return dist.new_group(backend="gloo", timeout=_IDLE), data


def _told(about: dict[str, Any], size: int) -> list[dict[str, Any]]:
    """What each rank says about itself."""
    import torch.distributed as dist

    text = json.dumps(about).encode()[:_WORDS].ljust(_WORDS)
    found = [torch.empty(_WORDS, dtype=torch.uint8) for _ in range(size)]
    dist.all_gather(found, torch.frombuffer(bytearray(text), dtype=torch.uint8))
    return [json.loads(one.numpy().tobytes()) for one in found]


def _disagreement(told: Sequence[dict[str, Any]]) -> str | None:
    """What ranks do not agree on, if anything."""
    names = {"ddbench": "ddbench", "torch": "torch", "device": "a device called", "words": "the command ddbench"}
    for rank, one in enumerate(told):
        for what, name in names.items():
            if one[what] != told[0][what]:
                here, there = (" ".join(v) if isinstance(v, list) else v for v in (one[what], told[0][what]))
                return f"rank {rank} runs {name} {here}, and rank 0 {name} {there}; let all ranks run the same"
    return None


def work(device: str) -> None:
    """A rank that rank 0 started, on the kind of device that it works on."""
    follow_parent()
    store = _store(int(os.environ["MASTER_PORT"]))
    store.set(f"here/{_placed()[0]}", "1")
    _serve(device, store)


def serve(device: str) -> int:
    """A rank that torchrun started: signals are for rank 0, which says when to stop. Returns its exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    try:
        _serve(device)
    except (UsageError, RankError) as error:  # rank 0 says the same
        return error.exit_code
    return 0


def _serve(device: str, store: Any = None) -> None:
    """Answer what rank 0 asks, until it says stop."""
    rank, size = _placed()
    answer(rank, size, *_groups(rank, size, device, store), device)
    import torch.distributed as dist

    dist.destroy_process_group()
