"""torch's newer switches for the precision of float32."""

from __future__ import annotations

import torch

WHERE = [("cuda", "conv"), ("cuda", "rnn"), ("cuda", "matmul"), ("mkldnn", "matmul")]


def newer() -> list[str]:
    """What they say, place by place."""
    return [torch._C._get_fp32_precision_getter(*place) for place in WHERE]
