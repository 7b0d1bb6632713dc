"""What a student's batches show of stored images, and the way back for gradients.

Shapes: r stored images of which something is shown, d images shown, k classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.autograd import grad

from ddbench.problem.decode import Decoder
from ddbench.trajectory.unroll import Gradient


@dataclass(frozen=True, eq=False)
class View:
    """The stored images ``rows`` ``(r,)``, and which of those that they decode to, ``places`` ``(d,)``, are shown."""

    decoder: Decoder
    rows: Tensor
    places: Tensor

    @classmethod
    def of(cls, decoder: Decoder, shown: Tensor, device: torch.device) -> View:
        """The view of the decoded images ``shown`` ``(d,)``, ascending, on the CPU: there nobody waits for a GPU."""
        copies = decoder.copies
        rows = (shown // copies).unique() if copies > 1 else shown
        places = torch.searchsorted(rows, shown // copies) * copies + shown % copies if copies > 1 else shown
        return cls(decoder, rows.to(device, non_blocking=True), places.to(device, non_blocking=True))

    def images(self, stored: Tensor) -> Tensor:
        """``(r, c, h, w)`` to ``(d, c, h, w)``, differentiably."""
        return stored if self.decoder.copies == 1 else self.decoder(stored)[self.places]

    def labels(self, stored: Tensor) -> Tensor:
        """``(r, k)`` to ``(d, k)``."""
        return stored if self.decoder.copies == 1 else stored[self.places // self.decoder.copies]

    def pull(self, stored: Tensor, gradient: Gradient) -> Gradient:
        """A gradient by what is shown, as one by the ``stored`` images and their labels: those of copies add up."""
        if self.decoder.copies == 1:
            return gradient
        leaf = stored.detach().requires_grad_()
        images = grad(self.images(leaf), leaf, gradient.images)[0]
        labels = gradient.labels.new_zeros(len(stored), gradient.labels.shape[1])
        labels.index_add_(0, self.places // self.decoder.copies, gradient.labels)
        return replace(gradient, images=images, labels=labels)


def mean_of_copies(decoded: Tensor, decoder: Decoder) -> Tensor:
    """Numbers of decoded images ``(n copies, k)`` to those of stored ones ``(n, k)``."""
    return decoded if decoder.copies == 1 else decoded.view(-1, decoder.copies, decoded.shape[1]).mean(1)
