"""What a pickle would do, told from its opcodes: nothing is loaded, and what would grow is refused.

A pickle is a program of one-byte instructions. Those that torch.load follows make containers, texts and numbers, call
the few functions that are let through, and refer to what was made before. The last two make bombs: a text of a megabyte
that is encoded a thousand times, an encoding that doubles its bytes, keys that collide in a dictionary.
"""

from __future__ import annotations

import encodings.aliases
import pickletools
import pkgutil
from collections.abc import Collection
from typing import IO, Any

from ddbench.errors import DataError

WAY_OUT = "have it saved again as plain tensors (safetensors or npz) by someone who trusts it"
PICKLED = 4_000_000  # bytes of a pickle: the tensors' numbers lie outside it
STEPS = 200_000  # instructions of a small file; a trajectory of experts takes 20 for each of its tensors
LONG_NUMBERS = 10_000  # beyond 32 bits: their hashes can be made to collide
_GROWING = ("_codecs.encode", "torch.Size")  # functions whose results are as large as what they are given
_GIVEN = "collections.OrderedDict"  # likewise, unless it is given nothing
_MANY = 10_000_000
_ENCODINGS = {m.name for m in pkgutil.iter_modules(encodings.__path__)} | set(encodings.aliases.aliases)
_PLAIN = {"latin_1", "ascii", "utf_8"}  # "u8" is also a type of numbers
_ENCODINGS -= {"aliases", *_PLAIN} | {alias for alias, name in encodings.aliases.aliases.items() if name in _PLAIN}


def check(stream: IO[bytes], size: int, allowed: Collection[str]) -> None:
    """Read one pickle of a file of ``size`` bytes, and refuse it, by a DataError, unless loading it is harmless."""
    survey = _Survey()
    source: Any = _Limited(stream, PICKLED + size // 32)
    most = STEPS + size // 64
    for opcode, argument, _ in pickletools.genops(source):
        survey.see(opcode.name, argument)
        if survey.wanted is not None:
            _refuse(survey.wanted, allowed)
        if survey.steps > most:
            raise DataError(f"has more than the {most:,} instructions that its tensors need; {WAY_OUT}")
    if survey.newer:
        raise DataError(f"is pickled by a newer protocol than torch.load reads; {WAY_OUT}")
    survey.refuse_growth(size)


def _refuse(name: str, allowed: Collection[str]) -> None:
    if name in allowed:
        return
    if name.startswith("torch._utils._rebuild"):
        raise DataError(f"holds a tensor that is sparse, quantised or empty of data ({name}); {WAY_OUT}")
    raise DataError(f"was not opened: it wants to run or build {name!r}, which data do not need; {WAY_OUT}")


class _Limited:
    """A stream that gives so many bytes at most: texts in a pickle say themselves how long they are."""

    def __init__(self, stream: IO[bytes], most: int) -> None:
        self.stream, self.left = stream, most

    def read(self, n: int) -> bytes:
        return self._counted(self.stream.read(min(n, self.left + 1)))

    def readline(self) -> bytes:
        return self._counted(self.stream.readline(self.left + 1))

    def _counted(self, data: bytes) -> bytes:
        self.left -= len(data)
        if self.left < 0:
            raise DataError(f"has a longer pickle than its tensors need; {WAY_OUT}")
        return data


class _Survey:
    """What was seen of a pickle so far."""

    def __init__(self) -> None:
        self.steps = self.long = self.longest = self.empty = 0
        self.texts, self.newer, self.encoding = ["", ""], False, ""
        self.wanted: str | None = None  # the function or class that the last instruction names
        self.uses = dict.fromkeys((*_GROWING, _GIVEN), 0)
        self.kept: dict[object, str] = {}  # by their places in the memo
        self.top: str | None = None  # such a function, if the last instruction left one on top of the stack
        self.before = ""

    def see(self, name: str, argument: Any) -> None:
        """One instruction with its argument."""
        self.steps += 1
        self.wanted = None
        top, self.top = self.top, None
        if name in ("GLOBAL", "INST"):
            self.wanted = str(argument).replace(" ", ".")
            self._use(self.wanted)
        elif name == "STACK_GLOBAL":  # its names are the last two texts, which a hostile file may have hidden
            self.wanted, self.newer = ".".join(self.texts), True
        elif name.startswith("EXT"):
            self.wanted = f"extension {argument}"
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.top = top  # which is still there
            if top is not None:
                self.kept[argument] = top
            else:
                self.kept.pop(argument, None)
        elif name in ("BINGET", "LONG_BINGET") and argument in self.kept:
            self._use(self.kept[argument])
        elif name == "REDUCE":
            self.empty += self.before == "EMPTY_TUPLE"
        elif isinstance(argument, str):
            self._text(argument)
        elif isinstance(argument, int) and abs(argument) >= 2**31:
            self.long += 1
        self.before = name

    def _use(self, name: str) -> None:
        if name in self.uses:
            self.uses[name] += 1
            self.top = name

    def _text(self, text: str) -> None:
        self.texts = [self.texts[-1], text[:80]]
        self.longest = max(self.longest, len(text))
        if text[:40].casefold().replace("-", "_").replace(" ", "_") in _ENCODINGS:
            self.encoding = text[:40]

    def refuse_growth(self, size: int) -> None:
        """Raise DataError where loading would take far more memory or time than the file."""
        encoded, sizes = (self.uses[name] for name in _GROWING)
        copied = sizes + max(0, self.uses[_GIVEN] + sizes - self.empty)  # perhaps it is sizes that are given nothing
        grown = encoded * self.longest > 2 * size + _MANY or copied * self.steps > _MANY
        if grown or (encoded and self.encoding):
            raise DataError(f"would grow when it is loaded, as no file of tensors does; {WAY_OUT}")
        if self.long > LONG_NUMBERS:
            raise DataError(f"holds {self.long:,} numbers of more than 32 bits outside its tensors; {WAY_OUT}")
