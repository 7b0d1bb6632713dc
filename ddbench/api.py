"""What a notebook calls: distil, load, compare. One code path with the command line, and the same folders.

result = ddbench.distil("digits", matcher="tesla", scheduler="pdd", ipc=10)
result.accuracy, result.evaluate(network="mlp").accuracy
loader = torch.utils.data.DataLoader(result.dataset(), batch_size=32, shuffle=True)
"""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ddbench.cli import console
from ddbench.errors import DataError, DivergedError, UsageError, did_you_mean
from ddbench.files import pixelspace
from ddbench.files.asked import EvalOptions, Options, flags_of
from ddbench.files.exporter import export
from ddbench.files.target import Opened, grades, opened, planned
from ddbench.files.torch_dataset import DistilledDataset, RealImages
from ddbench.grade.distilled import Distilled
from ddbench.grade.preview import preview
from ddbench.problem.synthetic import targets
from ddbench.results.compare import Ask, compared, tabular
from ddbench.run import below
from ddbench.run.defaults import BASELINE, DATASET, MATCHER, NETWORK, SCHEDULER
from ddbench.run.folder import find_run, readable, run_folders
from ddbench.run.folder import rows as rows_of
from ddbench.run.place import folder_of
from ddbench.run.record import RunRecord
from ddbench.run.row import Row
from ddbench.run.run import Settings
from ddbench.run.runs import carry_out
from ddbench.run.spec import Request, resolve

if TYPE_CHECKING:
    import pandas as pd

AGAIN = "{}; the same call goes on".format  # what is said of an interrupted call
Space = Literal["pixels", "network"]


def distil(
    dataset: str = DATASET,
    *,
    matcher: str = MATCHER,
    scheduler: str = SCHEDULER,
    ipc: int = 1,
    network: str = NETWORK,
    protocol: str | None = None,
    recipe: str | None = None,
    seed: int = 0,
    device: str = "auto",
    students: int = 5,
    out: str | Path = "runs",
    random: bool = True,
    ceiling: bool = True,
    fresh: bool = False,
    quiet: bool = False,
    **options: Options,
) -> Result:
    """Distil a dataset and grade the set: what ``ddbench run`` does, in the same folder; see its ``--help``.

    A call that was made before returns what is there, and one that was interrupted goes on. ``dataset`` is a plugin's
    name, ``images:FOLDER_OR_ARCHIVE`` or ``hf:NAME``; ``ipc`` counts images per class, in all; ``protocol`` is
    ``default``, or ``quick`` for your own images on a CPU, if none is named; ``recipe`` is ``fast``, ``paper`` or
    ``DATASET:IPC``. ``random`` images of the same budget and the whole training set (``ceiling``) are graded beside.
    ``fresh`` makes a run anew that is there. ``options`` are those of ``-o``: ``network_options={"width": 32}``.

    Raises UsageError for names and values that are none, DataError for data that cannot be read, DivergedError where
    the run left the numbers, and InterruptedRun after SIGINT or SIGTERM, after which the same call goes on.
    """
    flags = flags_of(options)
    request = Request(dataset, matcher, scheduler, network, ipc, seed, protocol, device, flags, recipe)
    settings = Settings(Path(out), students, renew="always" if fresh else "changed")
    return _distilled(request, settings, (random, ceiling), quiet=quiet)


def _distilled(request: Request, settings: Settings, beside: tuple[bool, bool], *, quiet: bool) -> Result:
    failed: list[str] = []
    say, (with_random, with_ceiling) = _silent if quiet else console.say, beside
    with console.working(quiet, AGAIN):
        resolved = resolve(request)
        if resolved.warning is not None:
            say(f"warning: {resolved.warning}")
        spec = resolved.spec
        rows, _ = carry_out(
            [spec], settings, with_random=with_random, with_ceiling=with_ceiling, say=say, fail=failed.append
        )
    if failed:
        raise DivergedError(failed[0])
    return Result(opened(str(folder_of(spec, settings.out)), settings.out, EvalOptions()), tuple(rows))


def load(path: str | Path, *, dataset: str | None = None, out: str | Path = "runs", **options: Options) -> Result:
    """A distilled set: of a run (its folder, or its name in ``out``), of a file, or of another tool.

    Args:
        path: A run, a ``distilled.safetensors``, or a file or folder that another tool wrote.
        dataset: What a set of another tool was distilled from, which it does not say itself.
        out: The folder that run folders stand in.
        **options: ``dataset_options={"root": "cifar10.zip"}`` where the data are not in their usual place.

    Raises:
        UsageError: Where a set of another tool comes without a dataset, or no run is called so.
        DataError: For files that are damaged.
    """
    asked = EvalOptions(dataset=dataset, flags=flags_of(options))
    found = opened(str(path), Path(out), asked)
    return Result(found, tuple(RunRecord.read(found.folder).rows()) if found.folder else (), asked)


def compare(
    runs: str | Path | Sequence[str | Path] = "runs",
    *,
    where: str | Sequence[str] = (),
    per_run: bool = False,
    group_by: Sequence[str] = (),
    baseline: str | None = None,
    allow_mixed: bool = False,
    sort: str | None = None,
) -> pd.DataFrame:
    """Runs beside each other, as ``ddbench compare`` shows them: a row for each method, means over seeds.

    Args:
        runs: The folder that run folders stand in, or folders of runs.
        where: Rows to keep: ``"matcher=tesla,ipc>=10"``.
        per_run: A row for each evaluation instead.
        group_by: Average over all but these columns.
        baseline: What differences are to; random images by default.
        allow_mixed: Show different protocols together; nothing is tested across them.
        sort: Columns, such as ``"dataset,-accuracy"``; minus is falling.

    Accuracies are fractions, costs seconds and bytes.
    """
    one = isinstance(runs, str | Path)
    folders = run_folders(Path(runs)) if one else [find_run(str(run), Path("runs")) for run in runs]
    ask = Ask(
        where=(where,) if isinstance(where, str) else tuple(where),
        group_by=tuple(group_by),
        per_run=per_run,
        baseline=baseline,
        allow_mixed=allow_mixed,
        sort=sort,
    )
    return tabular(compared(rows_of(readable(folders)), ask)[0].rows)


@dataclass(frozen=True)
class Grade:
    """What students of a set reached on test data: fractions, their mean and deviation over ``students``."""

    accuracy: float
    accuracy_std: float | None
    students: int
    network: str
    protocol: str
    metrics: dict[str, float]

    @classmethod
    def of(cls, row: Row) -> Grade:
        """The grade that a row of a table holds."""
        if row.accuracy_mean is None:
            raise DataError(f"{row.run} is not graded: it is {row.status}")
        network, protocol = row.network or "", row.protocol or ""
        return cls(row.accuracy_mean, row.accuracy_std, row.n, network, protocol, dict(row.metrics))

    def __str__(self) -> str:
        spread = "" if self.accuracy_std is None else f" ± {100 * self.accuracy_std:.1f}"
        return f"{100 * self.accuracy:.1f}{spread} % ({self.network}, {self.students} students)"


@dataclass(frozen=True, eq=False)
class Result:
    """A distilled set, and what is known of it. Tensors are on the CPU."""

    source: Opened
    rows: tuple[Row, ...] = ()  # of the run's evaluations, and of what stands beside it
    asked: EvalOptions = field(default_factory=EvalOptions)  # what a set of another tool does not say itself

    @property
    def folder(self) -> Path | None:
        """The run's folder; None for a file."""
        return self.source.folder

    @property
    def path(self) -> Path:
        """Where the set is."""
        return self.source.path

    @property
    def distilled(self) -> Distilled:
        """The set as files hold it, with all that a student needs to learn it."""
        return self.source.distilled

    @property
    def grade(self) -> Grade | None:
        """What the run's own students reached; None where there are none yet."""
        own = below.own([row for row in self.rows if self.folder is not None and row.run == self.folder.name])
        return None if own is None or own.accuracy_mean is None else Grade.of(own)

    @property
    def accuracy(self) -> float | None:
        """The mean test accuracy of its students, a fraction; None where it is not graded yet."""
        return self.grade.accuracy if self.grade else None

    @property
    def random(self) -> Grade | None:
        """Random images of the same budget with hard labels, graded alike; None where they were not asked for."""
        other = (row for row in self.rows if row.matcher == BASELINE and row.label_type == "hard" and row.finished)
        return next(map(Grade.of, other), None)

    @property
    def ceiling(self) -> Grade | None:
        """Students of the whole training set; None where they were not asked for."""
        return next((Grade.of(row) for row in self.rows if row.run is None and row.accuracy_mean is not None), None)

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names, in the order of the labels."""
        return self.distilled.classes

    @property
    def images(self) -> Tensor:
        """``(n, c, h, w)``, float32: as students see them, on the scale of pixels, where 0 is black and 1 white.

        What distillation moved beyond is kept. Sets of several stages follow one another.
        """
        step = self.distilled.preprocessing
        return pixelspace.undone(self._images(), step).float()

    @property
    def labels(self) -> Tensor:
        """``(n, k)``: the probabilities that students learn; real values where these are what a method learns."""
        sets = self.distilled.curriculum.sets
        told = [s.decoder.labels(s.labels) for s in sets]
        return torch.cat([targets(t, s.label_kind) for t, s in zip(told, sets, strict=True)])

    def dataset(self, transform: Callable[[Tensor], Any] | None = None, space: Space = "pixels") -> DistilledDataset:
        """For ``torch.utils.data.DataLoader``: pairs of an image ``(c, h, w)`` and its label.

        Args:
            transform: What each image goes through, such as ``torchvision.transforms.v2.RandomCrop(32, 4)``.
            space: ``pixels`` as in :attr:`images`, for networks with a normalisation of their own, or ``network``:
                normalised (or whitened) as ddbench's students take them.

        Labels are class numbers where every one is certain, else probabilities ``(k,)``, which
        ``torch.nn.functional.cross_entropy`` takes as well. Numbers are places in :attr:`classes`, 2 before 10;
        torchvision's ImageFolder sorts names as text, so go by ``class_to_idx`` of both.
        """
        shown = self.images if _in_pixels(space) else self._images()
        return DistilledDataset(shown, self.labels, self.classes, transform)

    def test(self, transform: Callable[[Tensor], Any] | None = None, space: Space = "pixels") -> RealImages:
        """The real images that the set is tested on, of its size and with its class numbers; as :meth:`dataset`.

        Of a folder without a ``test`` they are what ddbench held out."""
        real = planned(self.distilled, self.asked).evaluation.dataset.test
        return RealImages(real, self.classes, transform, prepared=not _in_pixels(space))

    def evaluate(
        self,
        network: str | None = None,
        *,
        students: int = 5,
        dataset: str | None = None,
        protocol: str | None = None,
        metrics: str | None = None,
        device: str = "auto",
        seed: int | None = None,
        transfer: bool = False,
        out: str | Path | None = None,
        quiet: bool = False,
        **options: Options,
    ) -> Grade:
        """Grade the set with fresh students, as ``ddbench eval`` does; what is graded already is not done again.

        ``network``, ``dataset`` and ``protocol`` are the file's own by default, ``seed`` the run's; ``metrics`` are
        names divided by commas, or ``all``; ``transfer`` tests on another dataset of the same classes. Sets of other
        tools are kept like runs in ``out``. ``options`` are ``network_options={"width": 32}``, likewise for dataset,
        protocol and metric.
        """
        if network is not None and "," in network:
            raise UsageError(f"network={network!r} names several; call evaluate for each of them")
        asked = EvalOptions(
            students=students,
            seed=seed,
            device=device,
            dataset=dataset or self.asked.dataset,
            network=network,
            protocol=protocol,
            metrics=metrics,
            transfer=transfer,
            flags=(*self.asked.flags, *flags_of(options, "metric")),
            quiet=quiet,
        )
        place = Path(out) if out is not None else self.folder.parent if self.folder else Path("runs")
        with console.working(quiet, AGAIN):
            (found,) = grades(str(self.folder or self.path), place, asked, _silent if quiet else console.say)
        return Grade.of(found.row())

    def export(self, out: str | Path, form: str = "folder", *, quiet: bool = False) -> Path:
        """Write the set at ``out``, which must not exist, as ``ddbench export`` does; returns the path.

        ``form`` is ``folder`` (pictures), ``datasets`` (parquet), ``webdataset``, ``npz`` or ``pt``. What a form cannot
        hold, such as pixels outside [0, 1] in pictures, is said on stderr. Raises UsageError for another form, or a
        path that exists.
        """
        for note in export(self.distilled, form, Path(out)):
            (_silent if quiet else console.say)(note)
        return Path(out)

    def _images(self) -> Tensor:
        return torch.cat([s.decoder(s.images) for s in self.distilled.curriculum.sets]).cpu()

    def _repr_html_(self) -> str:
        """The set's picture and its numbers, as a notebook shows it."""
        set_ = self.distilled
        png = base64.b64encode(preview(set_.curriculum, set_.preprocessing, len(self.classes))).decode()
        lines = [("accuracy", self.grade), ("random images", self.random), ("all training images", self.ceiling)]
        body = "".join(f"<tr><td>{name}</td><td>{html.escape(str(g))}</td></tr>" for name, g in lines if g)
        where = html.escape(str(self.folder or self.path))
        return (
            f'<img src="data:image/png;base64,{png}" alt="{len(self.images)} distilled images">'
            f"<table>{body}<tr><td>in</td><td>{where}</td></tr></table>"
        )

    def __repr__(self) -> str:
        grade = f", {self.grade}" if self.grade else ""
        return (
            f"<Result: {len(self.images)} images of {len(self.classes)} classes{grade}, in {self.folder or self.path}>"
        )


def _in_pixels(space: str) -> bool:
    """Whether images are asked for as pixels."""
    if space not in ("pixels", "network"):
        hint = did_you_mean(str(space), ["pixels", "network"])
        raise UsageError(f"space={space!r} is none{hint} (pixels, network)")
    return space == "pixels"


def _silent(_: str) -> None:
    """Where nothing is to be said."""
