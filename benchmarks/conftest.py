"""A fixed number of threads (DDBENCH_THREADS, by default 1), so that times of two runs can be compared."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))  # scripts import each other as scripts do
torch.set_num_threads(int(os.environ.get("DDBENCH_THREADS", "1")))
