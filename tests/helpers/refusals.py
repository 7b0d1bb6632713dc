"""What is said instead of doing what was asked."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ddbench.errors import DataError, DDBenchError, UsageError

CODES = {UsageError: 2, DataError: 3}


def refused(call: Callable[[], object], error: type[DDBenchError] = DataError) -> str:
    """The one line that a call says, in an error that ends a command with the exit code of its kind."""
    with pytest.raises(error) as caught:
        call()
    text = str(caught.value)
    assert caught.value.exit_code == CODES[type(caught.value)]
    assert "\n" not in text
    return text
