"""A plugin of pytest for ``benchmarks.gpu``: says what came of each test at once, and leaves out those that are known.

``DDBENCH_GPU_TESTS`` holds the known ones as JSON. It imports nothing that pytest would want to see imported first.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

VARIABLE = "DDBENCH_GPU_TESTS"
LOST = 4  # exit code: the device answers no more
_out = os.fdopen(os.dup(1), "w")  # pytest captures the one that it is a copy of
_known = frozenset(json.loads(os.environ.get(VARIABLE, "[]")))


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Deselect what is known."""
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in _known])
    items[:] = [item for item in items if item.nodeid not in _known]


def pytest_runtest_logstart(nodeid: str) -> None:
    """Say what is being done."""
    _say(doing=nodeid)


def pytest_runtest_logreport(report: Any) -> None:
    """Say seconds, or why it failed; ends the process where the device is gone, since every test would fail then."""
    told = {"part": "tests", "variant": report.nodeid, "unit": "s"}
    if report.failed:
        _say(**told, error=str(report.longrepr)[-1500:])
        if not _answers():
            _say(left="what follows: the device answers no more")
            os._exit(LOST)
    elif report.when == "call" and report.passed:
        _say(**told, value=round(report.duration, 2))


def pytest_unconfigure() -> None:
    """Nothing follows."""
    _out.close()


def _say(**told: Any) -> None:
    print("\n@" + json.dumps(told), file=_out, flush=True)  # whatever stands on the line before it


def _answers() -> bool:
    torch = sys.modules.get("torch")  # which tests that use a device have imported
    try:
        return torch is None or not torch.cuda.is_available() or torch.ones(1, device="cuda").sum().item() == 1.0
    except Exception:  # noqa: BLE001 - of whatever kind: CUDA reports an illegal access in every later call
        return False
