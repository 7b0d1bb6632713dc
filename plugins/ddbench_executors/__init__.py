"""Where the cells of a suite are carried out: processes of this machine, Ray, or Slurm by way of submitit."""

from __future__ import annotations

from typing import Any

from ddbench import hookimpl
from ddbench_executors.local import Local
from ddbench_executors.on_ray import Ray
from ddbench_executors.on_slurm import Slurm


@hookimpl
def register_executors(register: Any) -> None:
    for executor in (Local, Ray, Slurm):
        register(executor)
