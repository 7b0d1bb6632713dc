"""A fixed number of threads (DDBENCH_THREADS, by default 1), so that times of two runs can be compared."""

from __future__ import annotations

import os

import torch

torch.set_num_threads(int(os.environ.get("DDBENCH_THREADS", "1")))
