"""Datasets that torchvision can download: what each of them is. How they are got and read is said elsewhere, once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Le, MultipleOf

from ddbench import Dataset, Preprocessing
from ddbench_datasets import vision_read as read
from ddbench_datasets.common import BORROWED, FLIP, NO_FLIP, Choices, assemble, origin
from ddbench_datasets.vision_get import Files
from ddbench_datasets.vision_store import Read, Stored, arrays, images

Statistics = tuple[tuple[float, ...], tuple[float, ...]]

# Mean and deviation of the channels, as the code of DC, DSA, DM and their successors has them. The deviation of
# CIFAR-10 is the mean of the deviations within single images, smaller than that of all pixels (.247, .243, .262),
# which Preprocessing.fit would give.
CIFAR10_STATISTICS: Statistics = BORROWED["cifar10"]
CIFAR100_STATISTICS: Statistics = ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762))
SVHN_STATISTICS: Statistics = ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970))
MNIST_STATISTICS: Statistics = ((0.1307,), (0.3081,))
FASHION_STATISTICS: Statistics = ((0.2861,), (0.3530,))

NO_LICENCE = "none stated by the authors"


@dataclass(frozen=True)
class Downloaded(Choices):
    """A dataset that torchvision gets. What it is, a subclass says in class attributes; the code is here."""

    name = ""
    downloads = True  # a file of others that names it is not enough to get it
    files = Files("", {})
    form: ClassVar[Read | Stored]
    about: ClassVar[dict[str, str]]
    augment = FLIP
    constants: ClassVar[Statistics | None] = None
    facts: ClassVar[dict[str, str]] = {}

    def load(self) -> Dataset:
        statistics = self.normalised_by()
        fixed = None if statistics is None else Preprocessing(*(torch.tensor(values) for values in statistics))
        whole, facts = self.form.whole(self), origin(self) | self.facts
        return assemble(self, self.name, whole, augment=self.augment, preprocessing=fixed, facts=facts)

    def missing(self) -> str | None:
        return self.form.missing(self)

    def normalised_by(self) -> Statistics | None:
        """Mean and deviation of the channels; None to fit them."""
        return self.constants


def _idx(kind: str) -> Files:
    names = [f"{part}-{what}-ubyte" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1")]
    return Files(kind, {f"{name}.gz": (name,) for name in names}, f"{kind}/raw")


@dataclass(frozen=True)
class MNIST(Downloaded):
    """Handwritten digits (LeCun et al. 1998): 60,000 and 10,000 grey images, 28x28, 10 classes."""

    name = "mnist"
    files = _idx("MNIST")
    form = Read(read.idx("MNIST"))
    augment, constants = NO_FLIP, MNIST_STATISTICS
    about: ClassVar[dict[str, str]] = {
        "homepage": "http://yann.lecun.com/exdb/mnist/",
        "licence": NO_LICENCE,
        "citation": "LeCun, Bottou, Bengio & Haffner: Gradient-based learning applied to document recognition, 1998",
        "images": "60,000 train, 10,000 test; 28x28, grey; 10 classes",
    }


@dataclass(frozen=True)
class FashionMNIST(Downloaded):
    """Clothes (Xiao et al. 2017): 60,000 and 10,000 grey images, 28x28, 10 classes."""

    name = "fashionmnist"
    files = _idx("FashionMNIST")
    form = Read(read.idx("FashionMNIST"))
    constants = FASHION_STATISTICS
    about: ClassVar[dict[str, str]] = {
        "homepage": "https://github.com/zalandoresearch/fashion-mnist",
        "licence": "MIT",
        "licence_url": "https://github.com/zalandoresearch/fashion-mnist/blob/master/LICENSE",
        "citation": "Xiao, Rasul & Vollgraf: Fashion-MNIST: a novel image dataset for benchmarking, arXiv 1708.07747",
        "images": "60,000 train, 10,000 test; 28x28, grey; 10 classes",
    }


@dataclass(frozen=True)
class KMNIST(Downloaded):
    """Cursive Japanese characters (Clanuwat et al. 2018): 60,000 and 10,000 grey images, 28x28, 10 classes."""

    name = "kmnist"
    files = _idx("KMNIST")
    form = Read(read.idx("KMNIST"))
    augment = NO_FLIP
    about: ClassVar[dict[str, str]] = {
        "homepage": "https://github.com/rois-codh/kmnist",
        "licence": "CC BY-SA 4.0",
        "licence_url": "https://creativecommons.org/licenses/by-sa/4.0/",
        "citation": "KMNIST Dataset (created by CODH), adapted from Kuzushiji Dataset, doi:10.20676/00000341",
        "images": "60,000 train, 10,000 test; 28x28, grey; 10 classes",
    }


@dataclass(frozen=True)
class SVHN(Downloaded):
    """Cropped house numbers (Netzer et al. 2011): 73,257 and 26,032 colour images, 32x32, 10 classes."""

    name = "svhn"
    files = Files("SVHN", {"train_32x32.mat": (), "test_32x32.mat": ()})
    form = Read(read.svhn)
    augment, constants = NO_FLIP, SVHN_STATISTICS
    about: ClassVar[dict[str, str]] = {
        "homepage": "http://ufldl.stanford.edu/housenumbers/",
        "licence": "for non-commercial use only",
        "licence_url": "http://ufldl.stanford.edu/housenumbers/",
        "citation": "Netzer et al.: Reading digits in natural images with unsupervised feature learning, 2011",
        "images": "73,257 train, 26,032 test; 32x32, colour; 10 classes; the 531,131 extra ones are not used",
    }


@dataclass(frozen=True)
class CIFAR10(Downloaded):
    """CIFAR-10 (Krizhevsky 2009): 50,000 and 10,000 colour images, 32x32, 10 classes."""

    name = "cifar10"
    files = Files("CIFAR-10", {"cifar-10-python.tar.gz": ("cifar-10-batches-py",)})
    form = Read(read.cifar("CIFAR10"))
    constants = CIFAR10_STATISTICS
    about: ClassVar[dict[str, str]] = {
        "homepage": "https://www.cs.toronto.edu/~kriz/cifar.html",
        "licence": NO_LICENCE,
        "citation": "Krizhevsky: Learning multiple layers of features from tiny images, 2009",
        "images": "50,000 train, 10,000 test; 32x32, colour; 10 classes",
    }


@dataclass(frozen=True)
class CIFAR100(Downloaded):
    """CIFAR-100 (Krizhevsky 2009): 50,000 and 10,000 colour images, 32x32, 100 classes."""

    name = "cifar100"
    constants = CIFAR100_STATISTICS
    files = Files("CIFAR-100", {"cifar-100-python.tar.gz": ("cifar-100-python",)})
    form = Read(read.cifar("CIFAR100"))
    about: ClassVar[dict[str, str]] = {
        "homepage": "https://www.cs.toronto.edu/~kriz/cifar.html",
        "licence": NO_LICENCE,
        "citation": "Krizhevsky: Learning multiple layers of features from tiny images, 2009",
        "images": "50,000 train, 10,000 test; 32x32, colour; 100 classes",
    }


@dataclass(frozen=True)
class STL10(Downloaded):
    """The labelled part of STL-10 (Coates et al. 2011): 5,000 and 8,000 colour images, 96x96, 10 classes."""

    name = "stl10"
    files = Files("STL-10", {"stl10_binary.tar.gz": ("stl10_binary",)})
    form = Stored(arrays, read.stl10)
    about: ClassVar[dict[str, str]] = {
        "homepage": "https://cs.stanford.edu/~acoates/stl10/",
        "licence": f"{NO_LICENCE}; the images are from ImageNet",
        "citation": "Coates, Lee & Ng: An analysis of single-layer networks in unsupervised feature learning, 2011",
        "images": "5,000 train, 8,000 test; 96x96, colour; 10 classes; the 100,000 without labels are not used",
    }


@dataclass(frozen=True)
class Imagenette(Downloaded):
    """Ten easy classes of ImageNet (Howard 2019), the 160 px version: 9,469 and 3,925 colour images."""

    name = "imagenette"
    files = Files("Imagenette", {"imagenette2-160.tgz": ("imagenette2-160",)})
    counts = (9_469, 3_925)
    form = Stored(images, read.imagenette)
    about: ClassVar[dict[str, str]] = {
        "homepage": "https://github.com/fastai/imagenette",
        "licence": "Apache 2.0; the images are from ImageNet, which has terms of its own",
        "licence_url": "https://www.apache.org/licenses/LICENSE-2.0",
        "citation": "Howard: Imagenette, 2019",
        "images": "9,469 train, 3,925 test (published as val); shorter side 160, colour; 10 classes",
    }
    size: Annotated[int, MultipleOf(64), Ge(64), Le(128), "pixels along each side, 64 or 128"] = 128


@dataclass(frozen=True)
class EuroSAT(Downloaded):
    """Land use seen by Sentinel-2 (Helber et al. 2019), RGB: 27,000 colour images, 64x64, 10 classes.

    The authors published no test part: a fifth of the images, stratified and the same in every run, is taken.
    """

    name = "eurosat"
    files = Files("EuroSAT", {"EuroSAT.zip": ("2750",)}, "eurosat")
    counts = (27_000, 0)
    form, size = Stored(images, read.eurosat), 64
    facts: ClassVar[dict[str, str]] = {"split": "80/20 by ddbench, stratified; the authors published none"}
    about: ClassVar[dict[str, str]] = {
        "homepage": "https://github.com/phelber/EuroSAT",
        "licence": "MIT",
        "licence_url": "https://opensource.org/license/mit",
        "citation": "Helber, Bischke, Dengel & Borth: EuroSAT: a novel dataset and deep learning benchmark, 2019",
        "images": "27,000 without a published split, here 21,600 train, 5,400 test; 64x64, colour; 10 classes",
    }


@dataclass(frozen=True)
class GTSRB(Downloaded):
    """German traffic signs (Stallkamp et al. 2012): 26,640 and 12,630 colour images of 43 classes, made 32x32."""

    name = "gtsrb"
    files = Files(
        "GTSRB",
        {
            "GTSRB-Training_fixed.zip": ("GTSRB/Training",),
            "GTSRB_Final_Test_Images.zip": ("GTSRB/Final_Test/Images",),
            "GTSRB_Final_Test_GT.zip": ("GT-final_test.csv",),
        },
        "gtsrb",
    )
    counts = (26_640, 12_630)
    form, size = Stored(partial(images, stretch=True), read.gtsrb), 32
    augment = NO_FLIP
    facts: ClassVar[dict[str, str]] = {"validation": "shares signs with train: each was photographed 30 times"}
    about: ClassVar[dict[str, str]] = {
        "homepage": "https://benchmark.ini.rub.de/",
        "licence": "not known to ddbench; see the homepage",
        "citation": "Stallkamp, Schlipsing, Salmen & Igel: Man vs. computer, Neural Networks 32, 2012",
        "images": "26,640 train, 12,630 test; 15 to 250 pixels, colour; 43 classes",
    }
