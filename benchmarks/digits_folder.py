"""scikit-learn's digits as image files, for suites on folders: ``python benchmarks/digits_folder.py FOLDER``.

``FOLDER/{train,test}/<digit>/*.png``, 8x8 pixels in 17 greys; 1,347 to train on and 450 for tests, drawn once.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

TESTS = 450


def write(folder: Path) -> None:
    """Write all images; the same files whenever it is called."""
    digits: Any = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    for part, rows in (("test", order[:TESTS]), ("train", order[TESTS:])):
        for row in sorted(rows.tolist()):
            place = folder / part / str(digits.target[row])
            place.mkdir(parents=True, exist_ok=True)
            grey = (digits.images[row] * 255 / 16).round().astype(np.uint8)
            Image.fromarray(grey).save(place / f"{row:04d}.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    write(parser.parse_args().folder)
