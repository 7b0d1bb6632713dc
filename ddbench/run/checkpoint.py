"""What a stage keeps on disk while it is at work: its checkpoint, and the log of its metrics.

A checkpoint holds the matcher's state, the best candidate so far, and the ledger. All of it is sealed, and it is
believed only where ledger, candidate and log agree.
"""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Annotated, Any, Self

import torch
from pydantic import AfterValidator, TypeAdapter, ValidationError

from ddbench.base.cache import atomic_write
from ddbench.base.opening import in_place, may_store, reading
from ddbench.base.progress import note
from ddbench.base.schema import Digest, Number, Text, Whole
from ddbench.base.state import load_state, save_state
from ddbench.errors import DamagedError, DataError
from ddbench.problem.synthetic import SyntheticSet
from ddbench.run.place import deleted
from ddbench.run.record import CheckRecord


def _check(value: dict[str, Any]) -> dict[str, Any]:
    CheckRecord.model_validate(value)
    return value


Check = Annotated[dict[str, Any], AfterValidator(_check)]


@dataclass
class Ledger:
    """What the harness knows about a stage in progress; saved with every checkpoint."""

    step: Whole = 0
    metrics_end: Whole = 0
    seconds: Number = 0.0
    selection_seconds: Number = 0.0
    peak: Whole = 0
    first_loss: Number | None = None
    best: Check | None = None
    checks: list[Check] = field(default_factory=list)
    check_seconds: list[Number] = field(default_factory=list)  # of distilling until each check
    engine: dict[str, dict[str, Any]] = field(default_factory=dict)  # what was compiled or lowered, and what was not
    stage: Text = ""  # its folder in that of its run
    experts: dict[str, Any] | None = None  # what its first expert reaches on validation data, by snapshot
    warnings: list[Text] = field(default_factory=list)  # what the run saw of itself
    ranks: list[Whole] = field(default_factory=list)  # how many worked at it, one after the other; none for one alone
    pictures: dict[Text, Digest] = field(default_factory=dict)  # sha256 of those that were taken, by iteration


@dataclass(frozen=True)
class Checkpoint:
    """The file of a stage with ``steps`` iterations, whose metrics are in ``log``."""

    path: Path
    log: Path
    index: int
    steps: int

    @property
    def _stage(self) -> str:
        return "/".join(self.path.parts[-3:-1])

    def save(self, state: Any, best: SyntheticSet | None, ledger: Ledger) -> None:
        ledger.stage = self._stage
        save_state(self.path, {"state": state, "best": best}, vars(ledger))

    def load(self, device: torch.device) -> tuple[Any, SyntheticSet | None, Ledger]:
        """The state, the best candidate and the ledger. Raises DataError for what is not to be believed."""
        try:
            saved, notes = load_state(self.path, device)
            ledger = TypeAdapter(Ledger).validate_json(json.dumps(notes), strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            raise self._refused(f"{'.'.join(map(str, first['loc']))[:80]}: {first['msg'][:200]}") from error
        except DamagedError as error:
            raise DamagedError(f"{str(error).rpartition(';')[0]}; {self._way}") from error
        except DataError as error:
            raise DataError(f"{str(error).rpartition(';')[0]}; {self._way}") from error
        if not isinstance(saved, dict) or saved.keys() != {"state", "best"}:
            raise self._refused("it holds no state and candidate")
        if flaw := self._flaw(ledger, saved["best"]):
            raise self._refused(flaw)
        return saved["state"], saved["best"], ledger

    def _flaw(self, ledger: Ledger, best: Any) -> str | None:
        """What its parts do not agree on, if anything."""
        if ledger.stage not in ("", self._stage):
            return f"it is that of {ledger.stage}"
        if not (best is None or isinstance(best, SyntheticSet)) or (best is None) != (ledger.best is None):
            return "its candidate is not the one that it speaks of"
        steps = [check["step"] for check in ledger.checks]
        if ledger.step > self.steps or steps != sorted(set(steps)) or max(steps, default=0) > ledger.step:
            return f"it claims {ledger.step} of {self.steps} iterations, with candidates judged after {steps}"
        if ledger.best is not None and ledger.best not in ledger.checks:
            return "its best candidate is none of those that were judged"
        if ledger.step and not ledger.metrics_end:
            return f"it claims {ledger.step} iterations, and no metrics of any"
        logged = last_logged(self.log, ledger.metrics_end)
        if logged is not None and logged != (self.index, ledger.step - 1) and (ledger.step or logged[0] >= self.index):
            last = f"iteration {logged[1]} of stage {logged[0]}"
            return f"it claims {ledger.step} iterations, where {self.log} ends with {last}"
        return None

    def _refused(self, reason: str) -> DataError:
        return DataError(f"{self.path} is not to be believed ({reason}); {self._way}")

    @property
    def _way(self) -> str:
        return f"delete it and run again: stage {self.index} starts anew, from its first iteration"


def last_logged(path: Path, end: int) -> tuple[int, int] | None:
    """Stage and step of the last line before ``end``; None where there is none, or the file is shorter."""
    if not path.exists() or path.stat().st_size < end:
        return None
    with reading(path) as stream:
        stream.seek(max(0, end - 100_000))  # the longest line has some thousand bytes
        lines = stream.read(min(end, 100_000)).splitlines()
    try:
        line = json.loads(lines[-1])
        return int(line["stage"]), int(line["step"])
    except (IndexError, KeyError, TypeError, ValueError, RecursionError):
        return None if not lines else (-1, -1)


class Log:
    """``metrics.jsonl``, of which what was recorded up to ``end`` stays, and whatever came after it goes.

    It is only a log: where it was shortened or deleted, the run says so and goes on.
    """

    def __init__(self, path: Path, end: int) -> None:
        self.path = path
        self._end = end
        self._files = ExitStack()

    def __enter__(self) -> Self:
        self._stream = self._opened()
        size = os.fstat(self._stream.fileno()).st_size
        if size < self._end:
            self._stream.seek(0)
            whole = self._stream.read().rpartition(b"\n")
            size = len(whole[0]) + len(whole[1])
            note(f"{self.path} was deleted or cut; what it held of earlier iterations is lost, and the run goes on")
        self._stream.truncate(min(size, self._end))
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def write(self, line: dict[str, Any]) -> None:
        may_store(self.path)
        self._stream.write((json.dumps(line, allow_nan=False) + "\n").encode())
        self._stream.flush()  # nothing is left to be written when another process has the run

    def sync(self) -> int:
        """Everything on the disk; the number of its bytes. Raises DataError where the run's whole folder is gone."""
        self._stream.flush()
        here = os.fstat(self._stream.fileno())
        if not self.path.exists() or not os.path.samestat(here, self.path.stat()):
            self._restore()
        os.fsync(self._stream.fileno())
        return os.fstat(self._stream.fileno()).st_size

    def _opened(self) -> IO[bytes]:
        return self._files.enter_context(in_place(self.path, "a+b"))

    def _restore(self) -> None:
        """Write the log again from what is still open."""
        folder = self.path.parent
        if not (folder / "spec.json").exists():
            raise DataError(deleted(folder))
        note(f"{self.path} was deleted or replaced while the run was at work; it is written again")
        self._stream.seek(0)
        atomic_write(self.path, self._stream.read())
        self._files.close()
        self._stream = self._opened()
