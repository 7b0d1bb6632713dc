"""The kit that plugin authors run on their own classes: ``from ddbench.testing import check_matcher``.

May import: everything but the command line. Start with ``kit``; ``findings`` names the checks, ``trial`` drives a
matcher in every way in which the harness may, ``check`` and ``new`` are ``ddbench plugins check`` and ``new``.
"""

from ddbench.testing.kit import (
    check_dataset,
    check_matcher,
    check_metric,
    check_network,
    check_scheduler,
    toy_task,
)

__all__ = ["check_dataset", "check_matcher", "check_metric", "check_network", "check_scheduler", "toy_task"]
