"""A job behind a command."""

import time
from pathlib import Path

from ddbench_shell import Shell

from ddbench.base.process import Job


def ended(started) -> int:
    for _ in range(600):
        code = started.poll()
        if code is not None:
            return code
        time.sleep(0.05)
    raise AssertionError("the job does not end")


def test_a_job_is_carried_out_behind_the_command(tmp_path: Path):
    job = Job("a list", ("list", "executors"), tmp_path / "log")
    with Shell(command="nice -n 1").opened(tmp_path) as placing:
        (started,) = placing.start([job])
        assert ended(started) == 0, job.log.read_text()


def test_a_job_that_fails_leaves_its_reason_in_the_log(tmp_path: Path):
    job = Job("a mistake", ("info", "nothing-of-this-name"), tmp_path / "log")
    with Shell().opened(tmp_path) as placing:
        (started,) = placing.start([job])
        assert ended(started) == 2
    assert "nothing-of-this-name" in job.log.read_text()
