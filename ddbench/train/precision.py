"""In which precision student steps are computed, and how that is told to torch.

| | convolutions and matrix products | everything else, parameters, adjoints, sums over steps |
| --- | --- | --- |
| ``float32`` | IEEE float32 | float32 |
| ``tf32`` | operands rounded to TF32 (10 bits of mantissa), sums in float32; on CUDA only | float32 |
| ``bf16`` | in bfloat16 (7 bits of mantissa), and activations with them, by autocast | float32 |

Out of the box torch lets convolutions on CUDA round to TF32, and matrix products not. That is what judging and
everything else here runs with, and training unless a recipe's ``precision`` says more than ``device``. Student steps of
the gradient engine say what they want instead, around each step: their second-order pass multiplies rounding errors by
ten to fifty, and a switch thrown for the whole process would change experts whose cache keys know nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, Literal

import torch

from ddbench.errors import UsageError

Precision = Literal["float32", "tf32", "bf16"]
Trained = Literal["device", "float32", "tf32", "bf16"]  # device: whatever torch does there


def arithmetic(device: torch.device, precision: Precision) -> AbstractContextManager[None]:
    """What float32 convolutions and matrix products on ``device`` do: round to TF32, or not; nothing but on CUDA."""
    return switched(precision == "tf32") if device.type == "cuda" else nullcontext()


def training(device: torch.device, precision: Trained) -> AbstractContextManager[None]:
    """The same for all that a training computes. Raises UsageError for TF32 where there is none."""
    if precision == "tf32" and device.type != "cuda":
        raise UsageError("precision=tf32 is for training on CUDA, and this trains on the CPU; use float32 or device")
    return nullcontext() if precision == "device" else arithmetic(device, precision)


def autocast(device: torch.device, precision: Trained) -> AbstractContextManager[Any]:
    """For the forward pass alone: backwards, operations take the precision of those that they belong to.

    Around a backward pass torch would lower operations once more, on CUDA's threads to float16. No casts are cached:
    parameters are views of one vector, of which torch caches none.
    """
    if precision != "bf16":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)


@contextmanager
def switched(tf32: bool) -> Iterator[None]:
    """Whether float32 convolutions and matrix products on CUDA round to TF32; as before afterwards.

    torch has older switches and newer ones. Where the two disagree, reading the older is an error, and some versions of
    its compiler read them (2.11); the older alone do not stand against a general ``torch.backends.fp32_precision``.
    So both are set, and agree; but older ones that somebody has made unreadable stay as they are.
    """
    backends: Any = torch.backends  # the newer switches are not in its types
    newer = [backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul, backends.mkldnn.matmul]
    held, older = [switch.fp32_precision for switch in newer], _older()
    wanted = "tf32" if tf32 else "ieee"
    asked = (older[0] and ("high" if tf32 else "highest"), older[1] if older[1] is None else tf32)
    if held[:3] == [wanted] * 3 and older == asked:  # by the sweep that this step belongs to, perhaps
        yield
        return
    _set_older(*asked)
    for switch in newer[:3]:
        switch.fp32_precision = wanted
    try:
        yield
    finally:
        _set_older(*older)
        for switch, value in zip(newer, held, strict=True):
            switch.fp32_precision = value


def _older() -> tuple[str | None, bool | None]:
    """For matrix products and for cuDNN; None where they cannot be read, since somebody set newer ones."""
    products: str | None = None
    convolutions: bool | None = None
    with suppress(RuntimeError):
        products = torch.get_float32_matmul_precision()
    with suppress(RuntimeError):
        convolutions = torch.backends.cudnn.allow_tf32
    return products, convolutions


def _set_older(products: str | None, convolutions: bool | None) -> None:
    if products is not None:
        torch.set_float32_matmul_precision(products)
    if convolutions is not None:
        torch.backends.cudnn.allow_tf32 = convolutions
