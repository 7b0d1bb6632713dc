"""What checks of a plugin found: every one has a name, and passed, failed with a sentence, or was not reached."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_OF_ALL = {
    "options": "a frozen dataclass whose options survive JSON, keep their bounds and can be hashed",
    "signature": "methods take what the harness gives them",
}
_AROUND = {
    "generators": "global generators are drawn from and never seeded",
    "process": "what belongs to the whole process is left as it was",
    "folder": "nothing is written but to ddbench's caches and temporary folders",
}
CHECKS: dict[str, dict[str, str]] = {
    "matcher": _OF_ALL
    | {
        "needs": "needs() names the same experts whenever it is asked",
        "runs": "init, step and result end without an error, and read no expert that needs() did not name",
        "returns": "step gives (state, metrics), result a SyntheticSet",
        "state": "the state is something that a checkpoint holds",
        "finite": "state, metrics and set are finite numbers",
        "lent": "frozen sets and real data stay as they were",
        "shape": "ipc images of each class, of the shape of the data",
        "dtype": "images and labels are float32",
        "labels": "labels are what their kind and type say, class by class",
        "repeat": "the same seed gives the same bits, with result() after every step, too",
        "resume": "a run that goes on from a checkpoint gives the bits of one that was not interrupted",
        "memory": "the set has memory of its own",
        "seed": "a method that takes steps gives other sets for other seeds",
    }
    | _AROUND,
    "scheduler": _OF_ALL
    | {
        "problems": "next() gives a problem of at least one image per class for every stage",
        "repeat": "it gives the same problem when a resumed run asks again",
        "done": "what is done is passed on as it is",
        "taught": "start networks learn sets that are done, and no others",
        "phases": "phases are a tuple of tuples, end with the newest set, and grow by one where starts are taught",
        "budget": "all images per class are spent, and no more",
        "stops": "next() gives None when all sets are done",
        "refuses": "too few images per class for its stages are a UsageError",
    }
    | _AROUND,
    "dataset": _OF_ALL
    | {
        "loads": "load() gives a ddbench.Dataset",
        "repeat": "loading twice gives the same digest, whatever generators were seeded with",
        "classes": "classes are a tuple of names that differ",
        "pixels": "pixels are uint8, targets in range, and every class has train images",
        "shape": "all parts have images of one shape and int64 targets",
        "finite": "the preprocessing gives finite numbers",
        "disjoint": "train, validation and test share no images",
    }
    | _AROUND,
    "network": _OF_ALL
    | {
        "template": "building on the meta device draws nothing and gives the same parameters",
        "starts": "it starts as its seed says, from torch's global generator alone",
        "logits": "finite logits (n, classes)",
        "repeat": "evaluation draws nothing and keeps nothing",
        "order": "an image's logits do not depend on the other images of its batch, nor on their order",
        "vmap": "vectors can be stacked",
        "training": "training is repeatable, and stackable where it draws nothing",
        "features": "features (n, f) and activations, if there are any",
        "gradients": "first derivatives by parameters and second ones by images",
    }
    | _AROUND,
    "metric": _OF_ALL
    | {
        "number": "finite floats, for perfect, wrong and equal predictions, too",
        "range": "numbers within its bounds, if it names some",
        "arguments": "what it is given stays as it was",
        "repeat": "the same predictions give the same numbers",
    }
    | _AROUND,
}
PASSED, FAILED, UNREACHED = "passed", "failed", "not reached"


class FailedCheck(AssertionError):
    """What is wrong and what mends it; ``check`` is the name of the check, where it is not that of its block."""

    def __init__(self, said: str, check: str = "") -> None:
        super().__init__(said)
        self.check = check


class Unreached(Exception):
    """The examination ends here."""


class Findings:
    """The outcome of each check of a plugin of a kind, by its name."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.failed: dict[str, str] = {}
        self._passed: set[str] = set()
        self._first: AssertionError | None = None

    @contextmanager
    def checking(self, *names: str, vital: bool = False) -> Iterator[None]:
        """A block in which checks are made: it passes all of them, or fails one. After a ``vital`` one nothing follows.

        A failure says itself which check it is of; any other exception fails the first.
        """
        try:
            yield
        except (KeyboardInterrupt, Unreached):
            raise
        except BaseException as error:
            told = error if isinstance(error, AssertionError) else FailedCheck(f"{type(error).__name__}: {error}")
            told.__cause__ = told.__cause__ or (None if told is error else error)
            self.fail(getattr(error, "check", "") or names[0], told)
            if vital:
                raise Unreached from error
        else:
            self._passed.update(names)

    def fail(self, name: str, error: AssertionError) -> None:
        """Note a failure; of one check the first counts."""
        assert name in CHECKS[self.kind], name
        self.failed.setdefault(name, str(error))
        self._first = self._first or error

    def outcomes(self) -> dict[str, str]:
        """Each check of the kind, passed, failed or not reached."""
        done = dict.fromkeys(self._passed, PASSED) | dict.fromkeys(self.failed, FAILED)
        return {name: done.get(name, UNREACHED) for name in CHECKS[self.kind]}

    def require(self) -> None:
        """Raise the first failure, if there was one."""
        if self._first is not None:
            raise self._first


def require(holds: Any, otherwise: str, check: str = "") -> None:
    """An assertion that python -O keeps."""
    if not holds:
        raise FailedCheck(otherwise, check)


@contextmanager
def explained(what: str, check: str = "") -> Iterator[None]:
    """Turn whatever ``what`` raises into a sentence; its own traceback stays attached."""
    try:
        yield
    except (FailedCheck, Unreached):
        raise
    except Exception as error:
        raise FailedCheck(f"{what} raised {type(error).__name__}: {error}", check) from error
