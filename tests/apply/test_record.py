"""Records of applications go on where they ended, and say in a sentence what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ddbench.apply.record import Record
from ddbench.base.cache import read_json, write_json
from ddbench.errors import DataError

TRAINED = {"accuracies": [0.5], "seconds": 1.0, "parameters": 7}
GOOD = {
    "continual": {"lr/random": "0.01", "lr/x": None, "distilled/order 0/step 0": [0.5, 1]},
    "architecture-search": {"lr/distilled": "own", "lr/early stopping": 0.1, "early stopping/convnet": TRAINED},
}


def opened(folder: Path, name: str) -> Record:
    return Record.open(folder / "applications", name, {"seed": 0}, {})


@pytest.mark.parametrize("name", GOOD)
def test_a_record_goes_on_with_what_it_holds(tmp_path, name):
    record = opened(tmp_path, name)
    for key, value in GOOD[name].items():
        record.get(key, lambda value=value: value)
    assert opened(tmp_path, name).results == GOOD[name]


@pytest.mark.parametrize(
    ("name", "result"),
    [
        ("continual", {"distilled/order 0/step 0": 0.5}),
        ("continual", {"distilled/order 0/step 0": []}),
        ("continual", {"distilled/order 0/step 0": [2.0]}),
        ("continual", {"distilled/order 0/step 0": TRAINED}),
        ("continual", {"lr/random": [0.5]}),
        ("continual", {"lr/random": "fast"}),
        ("continual", {"lr/random": "1e999"}),
        ("continual", {"lr/random": -1}),
        ("continual", {"lr/random": {}}),
        ("architecture-search", {"distilled/convnet": [0.5]}),
        ("architecture-search", {"distilled/convnet": TRAINED | {"accuracies": ["0.5"]}}),
        ("architecture-search", {"distilled/convnet": TRAINED | {"parameters": -1}}),
    ],
)
def test_a_result_that_is_none_is_refused(tmp_path, name, result):
    record = opened(tmp_path, name)
    record.results.update(result)
    record.save(complete=False)
    with pytest.raises(DataError, match=r"is damaged \(.*\); delete it to have it made again"):
        opened(tmp_path, name)


@pytest.mark.parametrize("change", [{"identity": {"seed": 1}}, {"results": []}, {"results": None}])
def test_a_record_of_another_set_is_refused(tmp_path, change: dict[str, Any]):
    record = opened(tmp_path, "continual")
    record.save(complete=False)
    write_json(record.path, read_json(record.path) | change)
    with pytest.raises(DataError, match="it is of another set, or of other rules"):
        opened(tmp_path, "continual")


def test_a_record_is_not_written_through_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "applications").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="is a link"):
        opened(tmp_path / "run", "continual")
