"""Schedulers that distil in stages: pdd, seqmatch, boost. Each works with any matcher."""

from __future__ import annotations

from ddbench import hookimpl
from ddbench_pdd.boost import Boost
from ddbench_pdd.progressive import Progressive
from ddbench_pdd.seqmatch import SeqMatch


@hookimpl
def register_schedulers(register) -> None:
    register(Progressive)
    register(SeqMatch)
    register(Boost)
