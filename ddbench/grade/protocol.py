"""Protocols: the frozen rules by which every set is selected and every student is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

from ddbench.base.cache import digest
from ddbench.base.options import changed, make, options
from ddbench.errors import UsageError, did_you_mean
from ddbench.problem.starts import Teaching
from ddbench.train.fit import Recipe, Schedule
from ddbench.train.precision import Trained

Selects = Literal["validation", "test", "last"]


@dataclass(frozen=True)
class Protocol:
    """How students learn a set, and on which data (checkpoint, student lr) are selected.

    ``steps`` is N: the optimiser steps that *every* scheduler gets, N/P for each of its P phases. With
    ``epochs`` instead, every phase takes that many passes over what it sees (published PDD). ``lrs`` are
    tried besides the set's own lr, for every method alike; empty trusts the set's own.

    ``selects`` says which data decide: ``validation``; ``test``, as much published code does, which every
    table then says; or ``last``: nothing is selected, the last checkpoint counts. With ``looks`` students are
    looked at every so many epochs, and the best look counts instead of the last step: a selection on test data.
    No matcher sees test data under any protocol.
    """

    name: Annotated[str, "protocol"] = "default"
    version: Annotated[int, Ge(1), "of the rules under this name; numbers of two versions do not compare"] = 1
    selects: Annotated[Selects, "data that checkpoint and student lr are selected on"] = "validation"
    looks: Annotated[int | None, Ge(1), "epochs between looks at test data, of which the best counts"] = None
    looks_after: Annotated[float, Ge(0), Lt(1), "fraction of a student's training before the first look"] = 0.0
    steps: Annotated[int | None, Ge(1), "optimiser steps N of a student; none for 1000 ceil(n / batch)"] = None
    most_steps: Annotated[int | None, Ge(1), "N is no more than this where it follows from the images"] = None
    epochs: Annotated[int | None, Ge(1), "passes per phase, instead of N"] = None
    start_epochs: Annotated[int | None, Ge(1), "passes per phase when teaching start networks, if other"] = None
    start_afresh: Annotated[bool, "start networks get a fresh optimiser in every phase"] = False
    batch: Annotated[int, Ge(1), "student batch size"] = 256
    lr: Annotated[float, Gt(0), "student lr of sets that bring none"] = 0.01
    lrs: Annotated[tuple[float, ...], "student learning rates tried on validation"] = (0.003, 0.01, 0.03, 0.1)
    optimizer: Annotated[Literal["sgd", "adam", "adamw"], "the students' optimiser"] = "sgd"
    schedule: Annotated[Schedule, "schedule"] = "step-restart"
    momentum: Annotated[float, Ge(0), "momentum of SGD"] = 0.9
    weight_decay: Annotated[float, Ge(0), "weight decay"] = 5e-4
    decay: Annotated[Literal["all", "weights"], "what decays; weights: no biases, no scales of norms"] = "all"
    augment: Annotated[str, "DSA strategy; 'dataset' for the dataset's own"] = "dataset"
    carry: Annotated[bool, "keep momentum from phase to phase"] = False
    mixing: Annotated[Literal["none", "cutmix", "mixup"], "mixing of augmented images and their labels"] = "none"
    mix_probability: Annotated[float, Ge(0), Le(1), "probability that a batch is mixed"] = 0.5
    mix_alpha: Annotated[float, Gt(0), "images keep a share of themselves from Beta(alpha, alpha)"] = 1.0
    online: Annotated[bool, "the set's teacher labels every batch, instead of the stored labels"] = False
    temperature: Annotated[float, Gt(0), "of online labels"] = 1.0
    loss: Annotated[Literal["ce", "logits"], "what is learned of online labels: distributions or logits"] = "ce"
    truth: Annotated[float, Ge(0), "weight of the cross entropy with the set's labels beside that (loss=logits)"] = 0.0
    unmixed: Annotated[bool, "online labels are of images before they are mixed"] = False
    precision: Annotated[
        Trained, "of convolutions and matrix products in training; device: as torch has them there"
    ] = "device"
    checks: Annotated[int, Ge(1), "checkpoints per stage that are compared on validation"] = 2
    judges: Annotated[int, Ge(1), "students per comparison"] = 2
    ceiling_epochs: Annotated[int, Ge(1), "passes over the training set for the ceiling; at least N steps"] = 30

    def __post_init__(self) -> None:
        if self.looks is not None and (self.epochs is None or self.selects != "test"):
            raise ValueError(
                "looks count epochs and select on test data: set protocol.epochs and protocol.selects=test"
            )
        if self.loss == "logits" and not self.online:
            raise ValueError("logits come from a teacher that labels every batch: set protocol.online=true")

    @property
    def digest(self) -> str:
        """What makes two evaluations comparable: the rules to the last option."""
        return digest(changed(self))

    def recipe(self, epochs: int | None = None) -> Recipe:
        """The recipe of one phase; :class:`Teaching` fills in its share of the steps."""
        return Recipe(
            epochs=epochs,
            batch=self.batch,
            lr=self.lr,
            schedule=self.schedule,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            decay=self.decay,
            augment=self.augment,
            carry=self.carry,
            mixing=self.mixing,
            mix_probability=self.mix_probability,
            mix_alpha=self.mix_alpha,
            optimizer=self.optimizer,
            online=self.online,
            temperature=self.temperature,
            loss=self.loss,
            truth=self.truth,
            unmixed=self.unmixed,
            precision=self.precision,
        )

    def budget(self, images: int) -> int | None:
        """N for a budget of ``images`` synthetic images; None where phases count epochs."""
        if self.epochs is not None:
            return None
        usual = 1000 * math.ceil(images / self.batch)
        return self.steps or min(usual, self.most_steps or usual)

    def evaluation(self, images: int, phases: int) -> Teaching:
        """How evaluated students learn."""
        return Teaching(self.recipe(self.epochs), self.budget(images), phases)

    def starting(self, images: int, phases: int) -> Teaching:
        """How start networks learn the earlier sets: as evaluated students, unless the protocol differs."""
        recipe = self.recipe(self.start_epochs or self.epochs)
        return Teaching(replace(recipe, carry=recipe.carry and not self.start_afresh), self.budget(images), phases)


_ALL = (
    Protocol(),
    # For anybody's images on a CPU, where the selection and the students of the default take longer than distilling.
    Protocol(name="quick", most_steps=1000, lrs=(0.01, 0.03, 0.1), checks=1, judges=1, ceiling_epochs=10),
    # Cazenavette et al.'s released evaluation (CVPR 2022), also TESLA's and FTD's: 1001 epochs at the set's learned lr,
    # the best of some fifty checkpoints by the test accuracy of five networks.
    Protocol(name="mtt-paper", selects="test", epochs=1001, lrs=(), checks=50, judges=5),
    # Guo et al.'s released evaluation (ICLR 2024): as MTT's, in batches of 128, on one network at every 500th of 10,000
    # iterations.
    Protocol(name="datm-paper", selects="test", epochs=1001, batch=128, lrs=(), checks=20, judges=1),
    # Chen et al.'s released evaluation (ICLR 2024): 501 epochs per phase at each set's own lr, momentum carried over;
    # starts are taught 1001 epochs, each lesson with an optimiser of its own. More optimiser steps than one stage gets,
    # hence its own name.
    Protocol(
        name="pdd-paper", version=3, selects="test", epochs=501, start_epochs=1001, start_afresh=True, lrs=(),
        schedule="step", carry=True, checks=50, judges=5,
    ),
    # Du et al.'s released evaluation (NeurIPS 2023): MTT's on all sets so far, stage after stage.
    Protocol(name="seqmatch-paper", selects="test", epochs=1001, lrs=(), checks=50, judges=5),
    # Zhao et al.'s released evaluations (ICLR and ICML 2021, WACV 2023): the last iterate, 300 epochs without
    # augmentation for DC; 1000 with it for DSA and DM.
    Protocol(name="dc-paper", selects="last", epochs=300, lrs=(), augment="", checks=1),
    Protocol(name="dsa-paper", selects="last", epochs=1000, lrs=(), checks=1),
    # Kim et al.'s released evaluation (ICML 2022): 1000 epochs, CutMix on half the batches, the best test accuracy
    # over epochs. Looked at every 10, which bounds the cost and can only lower the published maximum.
    Protocol(
        name="idc-paper", selects="test", looks=10, epochs=1000, batch=64, lrs=(), schedule="multistep",
        augment="diffaug:color_crop_flip_scale_rotate", mixing="cutmix", checks=1,
    ),
    # Wang et al.'s released evaluation (CVPR 2025): AdamW with torch's own weight decay, its rate halved after every
    # fifth, CutMix on half the batches, and the best test accuracy of looks every 100 epochs.
    Protocol(
        name="ncfm-paper", selects="test", looks=100, epochs=2000, batch=128, lr=0.001, lrs=(), optimizer="adamw",
        weight_decay=0.01, schedule="fifths", augment="diffaug:color_crop_flip_scale_rotate", mixing="cutmix", checks=1,
    ),
    # Sun et al.'s released evaluation (CVPR 2024): AdamW, CutMix on every batch, and a teacher that labels what comes
    # out; the best test accuracy of the last fifth. Batches of 50 are those of ipc 10 (10 at ipc 1, 100 at ipc 50: set
    # protocol.batch). Its random resized crops show at least 1/f of the area: for f = 1, as on CIFAR, all of it (for
    # f = 2 set protocol.augment=diffaug:rrc50_flip).
    Protocol(
        name="rded-paper", version=3, selects="test", looks=10, looks_after=0.8, epochs=300, batch=50, lr=0.001,
        lrs=(), optimizer="adamw", weight_decay=0.01, decay="weights", schedule="cosine-half", augment="diffaug:flip",
        mixing="cutmix", mix_probability=1.0, online=True, temperature=20.0, checks=1,
    ),
    # Yin et al.'s released evaluation on CIFAR (NeurIPS 2023): crops and flips, MixUp, and labels at temperature 30.
    Protocol(
        name="sre2l-paper", version=3, selects="last", epochs=400, batch=128, lr=0.001, lrs=(), optimizer="adamw",
        weight_decay=0.01, schedule="cosine", augment="diffaug:crop_flip", mixing="mixup", mix_probability=1.0,
        mix_alpha=0.8, online=True, temperature=30.0, checks=1,
    ),
    # Shao et al.'s released evaluation on CIFAR (CVPR 2024): AdamW, crops of 8 % of the area and more, CutMix on every
    # batch, and the mean logits of all teachers for the images before they are mixed, learned by squared error, beside
    # the cross entropy with the labels of the set; the best test accuracy of looks every 10 epochs.
    Protocol(
        name="gvbsm-paper", selects="test", looks=10, epochs=1000, batch=100, lr=0.001, lrs=(), optimizer="adamw",
        weight_decay=0.0, schedule="cosine", augment="diffaug:rrc8_flip", mixing="cutmix", mix_probability=1.0,
        online=True, loss="logits", truth=0.15, unmixed=True, checks=1,
    ),
    # Shao et al.'s released evaluation on CIFAR (NeurIPS 2024): batches of 10, the mean logits of all teachers for what
    # CutMix made, and a cosine of twice the length ("smoothing"); its average of students' weights is left out.
    Protocol(
        name="edc-paper", selects="test", looks=10, looks_after=0.8, epochs=1000, batch=10, lr=0.001, lrs=(),
        optimizer="adamw", weight_decay=0.01, decay="weights", schedule="cosine-half", augment="diffaug:rrc8_flip",
        mixing="cutmix", mix_probability=1.0, online=True, loss="logits", truth=0.025, checks=1,
    ),
    # Qin et al.'s released evaluation of random images with an expert's labels (NeurIPS 2024) on CIFAR: MTT's students
    # for 3000 epochs, x 0.3 after every quarter, and the best test accuracy of looks every 200.
    Protocol(name="label-paper", selects="test", looks=200, epochs=3000, lrs=(), schedule="quarters", checks=1),
    # DD-Ranking 0.2 for matching methods (Li et al., 2025): five learning rates and the best of the looks, both by test
    # accuracy, for every set alike.
    Protocol(
        name="ddranking", selects="test", looks=20, epochs=1000, lrs=(0.001, 0.005, 0.01, 0.05, 0.1),
        schedule="step", checks=1, judges=1,
    ),
)  # fmt: skip
PROTOCOLS = {protocol.name: protocol for protocol in _ALL}
# What published code does on one dataset alone: DC augments MNIST, and then students take 1000 epochs.
ON_DATASETS = {
    ("dc-paper", "mnist"): replace(PROTOCOLS["dc-paper"], version=2, epochs=1000, augment="crop_scale_rotate"),
}


def altered(base: Protocol, flags: dict[str, Any]) -> Protocol:
    """The protocol with other options, and another name: other rules must not pass under the same one."""
    if not flags:
        return base
    root = base.name.partition("-custom-")[0]
    made = make(Protocol, options(base) | flags, "protocol")
    if replace(made, name=base.name) == base and made.name in (base.name, root):
        return base  # what is said again changes nothing
    return replace(made, name=f"{root}-custom-{digest(changed(replace(made, name=root)))[:6]}")


def named(name: str, dataset: str = "") -> Protocol:
    """The protocol of this name, as it is on a dataset. Raises UsageError where there is none."""
    if name not in PROTOCOLS:
        hint = did_you_mean(name, PROTOCOLS)
        raise UsageError(f"no protocol called {name!r}{hint} (valid ones: {', '.join(PROTOCOLS)})")
    return ON_DATASETS.get((name, dataset), PROTOCOLS[name])
