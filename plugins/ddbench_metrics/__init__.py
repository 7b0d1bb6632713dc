"""What is measured of a student: accuracy, calibration, robustness to corruptions, accuracy while it learns."""

from __future__ import annotations

from ddbench import hookimpl
from ddbench_metrics.basic import Accuracy, CalibrationError
from ddbench_metrics.corruptions import Corruptions
from ddbench_metrics.curve import Curve
from ddbench_metrics.kinds import KINDS, corrupt

__all__ = ["KINDS", "Accuracy", "CalibrationError", "Corruptions", "Curve", "corrupt"]


@hookimpl
def register_metrics(register) -> None:
    for metric in (Accuracy, CalibrationError, Corruptions, Curve):
        register(metric)
