"""Schedulers besides pdd: single and restarts (one stage), seqmatch, boost. Each works with any matcher."""

from __future__ import annotations

from ddbench import hookimpl
from ddbench_schedulers.boost import Boost
from ddbench_schedulers.restarts import Restarts
from ddbench_schedulers.seqmatch import SeqMatch
from ddbench_schedulers.single import Single


@hookimpl
def register_schedulers(register) -> None:
    register(Single)
    register(SeqMatch)
    register(Boost)
    register(Restarts)
