"""Published accuracies, to stand beside reproduced ones: never averaged, ranked or tested with them.

``published.csv`` is the table, in percent. Under which names a method or scheduler stands there, it says itself (see
:class:`ddbench.Published`); which published name a dataset has, is said below. What has no name has no published value.
Sources that disagree are all shown.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from ddbench.base.options import make
from ddbench.errors import UsageError
from ddbench.run.defaults import NETWORK
from ddbench.run.row import Cells, Row

COLUMNS = ("method", "scheduler", "dataset", "model", "ipc", "accuracy_mean", "accuracy_std", "source")
_NETWORKS = {"ConvNetD3-IN-w128": 3, "ConvNetD4-IN-w128": 4, "ConvNetD5": 5}

# Name of a dataset here -> its published name and the network that its published numbers are of.
DATASETS = {
    "cifar10": ("CIFAR10", "ConvNetD3-IN-w128"),
    "cifar100": ("CIFAR100", "ConvNetD3-IN-w128"),
    "mnist": ("MNIST", "ConvNetD3-IN-w128"),
    "fashionmnist": ("FashionMNIST", "ConvNetD3-IN-w128"),
    "svhn": ("SVHN", "ConvNetD3-IN-w128"),
    "tinyimagenet": ("TinyImageNet", "ConvNetD4-IN-w128"),
    "imagenet": ("ImageNet1K-64", "ConvNetD4-IN-w128"),
    "imagenet-nette": ("ImageNette-128", "ConvNetD5"),
    "imagenet-woof": ("ImageWoof-128", "ConvNetD5"),
}
# (classes, training images) of what was published on. One whose images a plugin of another name loaded, or of which
# there are more or fewer, is another dataset that happens to be called so.
_CONTENT = {
    "cifar10": (10, 50_000),
    "cifar100": (100, 50_000),
    "mnist": (10, 60_000),
    "fashionmnist": (10, 60_000),
    "svhn": (10, 73_257),
    "tinyimagenet": (200, 100_000),
    "imagenet": (1000, 1_281_167),
    "imagenet-nette": (10, None),
    "imagenet-woof": (10, None),
}
_SIZES = {"imagenet": 64, "imagenet-nette": 128, "imagenet-woof": 128}  # those that are made at several
# What leaves a dataset whole; anything else is another dataset under the same name.
_WHOLE = {
    "dataset.limit": (None,),
    "dataset.classes": (None, []),
    "dataset.imbalance": (1.0, 1),
    "dataset.noise": (0.0, 0),
}


@dataclass(frozen=True)
class Reported:
    """One published accuracy, in percent; ``ipc`` is None for the whole training set."""

    method: str
    scheduler: str
    dataset: str
    model: str
    ipc: int | None
    mean: float
    std: float | None
    source: str

    @property
    def short(self) -> str:
        """The source in a few words."""
        if table := re.search(r"\(([^)]*Table[^)]*)\)", self.source):
            return table[1]
        return re.split(r" \(|[;,]", self.source.removeprefix("secondary: "))[0]

    @property
    def cells(self) -> Cells:
        """As a row of results: fractions, not percent."""
        fraction = {"accuracy_mean": self.mean, "accuracy_std": self.std}
        return {
            **{name: getattr(self, name) for name in COLUMNS[:4]},
            "ipc": "full" if self.ipc is None else self.ipc,
            **{name: None if v is None else round(v / 100, 6) for name, v in fraction.items()},
            "source": self.source,
        }


@cache
def everything() -> tuple[Reported, ...]:
    """All published values, in the order of the file."""
    text = files("ddbench.results").joinpath("published.csv").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return tuple(_read(row) for row in csv.DictReader(lines))


def _read(row: dict[str, str]) -> Reported:
    ipc = None if row["ipc"] == "full" else int(row["ipc"])
    std = float(row["accuracy_std"]) if row["accuracy_std"] else None
    names = (row["method"], row["scheduler"], row["dataset"], row["model"])
    return Reported(*names, ipc, float(row["accuracy_mean"]), std, row["source"])


def beside(row: Row) -> list[Reported]:
    """The published values of a row's own setting: the whole dataset, distilled and tested on the same network."""
    options = row.options or {}
    size = _SIZES.get(str(row.dataset))
    if size is not None and options.get("dataset.size") != size:
        return []
    if any(name in options and options[name] not in whole for name, whole in _WHOLE.items()) or not _is_whole(row):
        return []
    if (row.distil_network, row.distil_digest) != (row.network, row.dataset_digest):
        return []
    return lookup(row)


def lookup(row: Row) -> list[Reported]:
    """What is published for a row's method on a whole dataset with the field's ConvNet; all sources, or nothing."""
    published, model = _named(row)
    if not published or row.ipc is None or not _is_network(row.network, model):
        return []
    rule, names = _scheduler(row), _methods(row)
    return [
        r
        for r in everything()
        if (r.dataset, r.model, r.ipc, r.scheduler) == (published, model, row.ipc, rule) and r.method in names
    ]


def elsewhere(row: Row) -> list[Reported]:
    """What is published for the row's method, dataset and ipc in other settings: networks, schedulers, variants."""
    published = _named(row)[0]
    names, same = _methods(row, variants=True), set(beside(row))
    found = (r for r in everything() if (r.dataset, r.ipc) == (published, row.ipc) and r.method in names)
    return [r for r in found if r not in same]


def _named(row: Row) -> tuple[str, str]:
    """The published name of a row's dataset, and its network; empty for what another plugin loaded under that name."""
    name = str(row.dataset)
    return DATASETS.get(name, ("", "")) if row.data_source == name.partition("-")[0] else ("", "")


def _is_whole(row: Row) -> bool:
    """Whether it has as many classes and training images as what was published on, as far as that is recorded."""
    classes, images = _CONTENT.get(str(row.dataset), (None, None))
    if classes is None or row.classes not in (None, classes):
        return False
    if images is None or row.train_images is None:
        return True
    given = (row.options or {}).get("dataset.validation")
    held_out = given if isinstance(given, float) else 0
    return abs(row.train_images - images * (1 - held_out)) <= classes  # every class is divided by itself


def _methods(row: Row, *, variants: bool = False) -> set[str]:
    """The published names of a row's method with labels of its kind; what is packed has names of its own."""
    from ddbench.plugins import published_names, registry  # which tables without published numbers do without

    plugin = registry().plugins.get(("matcher", str(row.matcher)))
    kind, factor = "hard" if row.label_type in (None, "hard") else "soft", (row.options or {}).get("decoder.factor", 1)
    named = published_names(plugin) if plugin else ()
    fitting = [n for n in named if n.labels in (None, kind) and n.factor == factor]
    return {n.name for n in fitting if variants or not n.variant}


def _scheduler(row: Row) -> str | None:
    """The published name of a schedule; None for stages that are not the published ones."""
    from ddbench.plugins import published_schedule, registry

    plugin = registry().plugins.get(("scheduler", str(row.scheduler)))
    given = {n.removeprefix("scheduler."): v for n, v in (row.options or {}).items() if n.startswith("scheduler.")}
    try:
        return published_schedule(make(plugin.cls, given, "scheduler")) if plugin else None
    except UsageError:  # options of another version
        return None


def _is_network(label: str | None, model: str) -> bool:
    """Whether a network's label is the published ConvNet: by default it is as deep as the dataset's images ask for."""
    return label in (NETWORK, f"{NETWORK}(depth={_NETWORKS.get(model)})")


def footnotes(found: Iterable[Reported]) -> dict[str, int]:
    """Numbers for the sources, in the order in which they are first met."""
    return {source: number for number, source in enumerate(dict.fromkeys(r.source for r in found), start=1)}
