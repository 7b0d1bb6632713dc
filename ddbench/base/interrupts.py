"""What SIGINT and SIGTERM do in a command of ddbench, from its first moment to its last. Loads next to nothing.

Before long work begins (:class:`ddbench.base.progress.Interrupts`) and after it, a signal ends the command at once:
where modules are being imported, whose code may swallow an exception, by leaving; elsewhere by a KeyboardInterrupt, so
that temporary files go. A signal that comes while an earlier one is handled always leaves: what is on the disk is whole
at any moment, as after SIGKILL.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False  # typing takes longer to load than all of this
if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)
EXIT_CODE = 130
KEPT = "interrupted; everything finished so far is kept"
_SHOW_CURSOR = "\x1b[?25h"  # progress bars hide it


def hear() -> None:
    """From now on SIGINT and SIGTERM end this process with 130 and the command that goes on."""
    heard = []

    def stop(number: int, frame: FrameType | None) -> None:
        heard.append(number)
        if len(heard) > 1 or _importing(frame):
            leave()
        raise KeyboardInterrupt

    for number in SIGNALS:
        signal.signal(number, stop)
    os.register_at_fork(after_in_child=_forget)


def _forget() -> None:
    """A forked child is none of ours to speak for: signals end it as they end any process."""
    for number in SIGNALS:
        if is_ours(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)


def is_ours(handler: object) -> bool:
    """Whether a handler of signals is one of ddbench."""
    return getattr(handler, "__module__", "").startswith("ddbench.")


def rest(code: object) -> None:
    """All is done and said: signals change nothing any more, and an interrupted command does without tidying up."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if code == EXIT_CODE:
        os._exit(EXIT_CODE)


def leave(*_signal: object) -> NoReturn:
    """End this process now, with the command that goes on; also as the handler of a signal."""
    shown = _SHOW_CURSOR if os.isatty(2) else ""
    try:
        os.write(2, f"{shown}error: {sentence()}\n".encode(errors="backslashreplace"))
    finally:  # whatever became of stderr
        os._exit(EXIT_CODE)


def sentence(said: str = KEPT) -> str:
    """What is said of an interrupted command: that nothing is lost, and the command that goes on."""
    return f"{said}; to go on: {' '.join(map(_quoted, ['ddbench', *sys.argv[1:]]))}"


def _quoted(word: str) -> str:
    """As shlex.quote, which may itself be half imported."""
    if word and word.isascii() and all(c.isalnum() or c in "@%_+=:,./-" for c in word):
        return word
    return "'" + word.replace("'", "'\"'\"'") + "'"


def _importing(frame: FrameType | None) -> bool:
    """Whether an import is under way: what it runs is not ours, and may take any exception for something else."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib._bootstrap"):
            return True
        frame = frame.f_back
    return False
