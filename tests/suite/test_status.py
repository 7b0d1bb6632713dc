"""What suites record: lines of others, or of a crash, are passed over."""

from __future__ import annotations

from ddbench.suite.status import append, records


def test_records_that_are_none_are_passed_over(tmp_path):
    path = tmp_path / "suites" / "a.jsonl"
    append(path, {"key": "1", "finished": "1", "status": "ok", "like": "x", "seconds": 2.0})
    odd = (
        """
        {"key": 1}
        {"key": "../x"}
        {"key": "2", "seconds": -1}
        {"key": "2", "seconds": 1e999}
        {"key": "2", "seconds": NaN}
        {"key": "2", "status": ["ok"]}
        {"key": "2", "finished": 3}
        [1]
        null
    """
        + "[" * 5000
    )
    path.write_bytes(path.read_bytes() + odd.encode() + b"\n\xff\xfe\n")
    assert [record["key"] for record in records(tmp_path)] == ["1"]
