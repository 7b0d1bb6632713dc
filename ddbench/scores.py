"""Scores that tell what labels and augmentation contribute to an accuracy.

After DD-Ranking (Li et al., arXiv 2505.13300; the formulas are those of its released code, version 0.2).
All accuracies are fractions. The published code puts percent points into the exponential, which leaves the
interval [0, 1] that the paper states; these functions do not.
"""

from __future__ import annotations

import math

WEIGHT = 0.5  # of both scores, as published


def improvement_over_random(distilled: float, random: float) -> float:
    """IOR: accuracy on the distilled set less that on random images with the same kind of labels, in [-1, 1]."""
    return distilled - random


def hard_label_recovery(full: float, distilled_hard: float) -> float:
    """HLR: accuracy of training on all real data less that on the distilled images with hard labels, in [-1, 1]."""
    return full - distilled_hard


def squashed(value: float) -> float:
    """(e^v - e^-1) / (e - e^-1): maps [-1, 1] onto [0, 1], rising."""
    return (math.exp(value) - math.exp(-1)) / (math.e - math.exp(-1))


def label_robust_score(ior: float, hlr: float, weight: float = WEIGHT) -> float:
    """LRS: alpha = w IOR - (1 - w) HLR, squashed. 1 is best; 0.5 IOR and HLR of zero give (1 - e^-1) / (e - e^-1)."""
    return squashed(weight * ior - (1 - weight) * hlr)


def augmentation_robust_score(
    distilled: float, random: float, distilled_plain: float, random_plain: float, weight: float = WEIGHT
) -> float:
    """ARS: beta = g (improvement with augmentation) + (1 - g) (improvement without it, ``plain``), squashed."""
    return squashed(weight * (distilled - random) + (1 - weight) * (distilled_plain - random_plain))
