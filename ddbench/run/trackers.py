"""Trackers: the numbers of a run sent to TensorBoard, Weights & Biases or MLflow while it works.

They listen to the events that the progress display shows. None is required, none asks for an account, and one that
fails is switched off with a warning: a tracker never fails a run. What a run leaves behind does not depend on them.
Beside the runs they write through no links, which whoever prepared that folder could point anywhere.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ddbench.base.guard import guarded, told
from ddbench.base.opening import refuse_links
from ddbench.base.progress import Event, listening_too
from ddbench.errors import DataError, DDBenchError, InterruptedRun, PluginError, UsageError, did_you_mean
from ddbench.run.looks import file, points
from ddbench.run.record import RunRecord

if TYPE_CHECKING:
    from ddbench.run.run import Run

Numbers = dict[str, float]


class Tracker(Protocol):
    """Where numbers and pictures go.

    ``config`` is flat; ``step`` counts the iterations of the stage that a name begins with.
    """

    def start(self, name: str, config: dict[str, Any]) -> None: ...
    def log(self, numbers: Numbers, step: int) -> None: ...
    def show(self, name: str, picture: Path, step: int) -> None: ...
    def finish(self, status: str, summary: Numbers) -> None: ...


class TensorBoard:
    """Event files in ``place``/<run>; by default in ``tensorboard`` beside the runs."""

    def __init__(self, place: str, folder: Path) -> None:
        self._folder = (Path(place) if place else _beside(folder, "tensorboard")) / folder.name

    def start(self, name: str, config: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter  # type: ignore[import-not-found]

        self._writer = SummaryWriter(str(self._folder))
        lines = "\n".join(f"    {option}: {value}" for option, value in config.items())
        self._writer.add_text("run", f"{name}\n\n{lines}")

    def log(self, numbers: Numbers, step: int) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def show(self, name: str, picture: Path, step: int) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(picture) as image:
            self._writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def finish(self, status: str, summary: Numbers) -> None:
        self._writer.add_text("status", status)
        self.log(summary, 0)
        self._writer.close()


class WeightsAndBiases:
    """A run of the project ``place``: files in ``wandb`` beside the runs, unless WANDB_MODE or an API key is set."""

    def __init__(self, place: str, folder: Path) -> None:
        self._project, self._folder = place or "ddbench", _beside(folder, "wandb").parent

    def start(self, name: str, config: dict[str, Any]) -> None:
        import wandb  # type: ignore[import-not-found]

        chosen = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
        self._folder.mkdir(parents=True, exist_ok=True)  # wandb writes elsewhere when it is not there
        self._run = wandb.init(
            project=self._project,
            name=name,
            config=config,
            dir=str(self._folder),
            mode=chosen,
            settings=wandb.Settings(silent=True, console="off"),
        )

    def log(self, numbers: Numbers, step: int) -> None:
        # wandb's own steps may only grow, and stages begin anew: the step is a number like the others
        stage = next(iter(numbers)).partition("/")[0]
        self._run.log({**numbers, f"{stage}/step": step})

    def show(self, name: str, picture: Path, step: int) -> None:
        import wandb  # type: ignore[import-not-found]

        self._run.log({name: wandb.Image(str(picture)), f"{name.partition('/')[0]}/step": step})

    def finish(self, status: str, summary: Numbers) -> None:
        self._run.summary.update({**summary, "status": status})
        self._run.finish(exit_code=0 if status == "ok" else 1)


class MLflow:
    """A run of the experiment ``ddbench`` in the store ``place``: MLFLOW_TRACKING_URI's, or files beside the runs."""

    def __init__(self, place: str, folder: Path) -> None:
        self._store = place or os.environ.get("MLFLOW_TRACKING_URI") or _whole(_beside(folder, "mlruns")).as_uri()

    def start(self, name: str, config: dict[str, Any]) -> None:
        if self._store.startswith("file:"):  # newer versions ask for a yes before they write plain files
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        import mlflow  # type: ignore[import-not-found]

        self._mlflow = mlflow
        mlflow.set_tracking_uri(self._store)
        mlflow.set_experiment("ddbench")
        mlflow.start_run(run_name=name)
        mlflow.log_params({option: str(value)[:500] for option, value in config.items()})

    def log(self, numbers: Numbers, step: int) -> None:
        self._mlflow.log_metrics(numbers, step=step)

    def show(self, name: str, picture: Path, step: int) -> None:  # noqa: ARG002 - the picture's name tells it
        self._mlflow.log_artifact(str(picture), name)

    def finish(self, status: str, summary: Numbers) -> None:
        self._mlflow.log_metrics(summary)
        self._mlflow.set_tag("status", status)
        ends = {"ok": "FINISHED", "interrupted": "KILLED"}
        self._mlflow.end_run(status=ends.get(status, "FAILED"))


TRACKERS: dict[str, tuple[type, str]] = {  # name -> (tracker, the module that it needs)
    "tensorboard": (TensorBoard, "tensorboard"),
    "wandb": (WeightsAndBiases, "wandb"),
    "mlflow": (MLflow, "mlflow"),
}


def _beside(folder: Path, name: str) -> Path:
    """A folder beside a run's, which is no link."""
    place = folder.parent / name
    refuse_links(place)
    return place


def _whole(place: Path) -> Path:
    """A folder in which nothing is a link: files of known names are written there in place. As an absolute path."""
    for inside in place.rglob("*"):
        refuse_links(inside)
    return place.absolute()


def checked(names: Sequence[str]) -> list[tuple[str, str]]:
    """(kind, place) of each ``kind[=place]``. Raises where there is none, or its package is not installed."""
    found = []
    for given in names:
        kind, _, place = given.partition("=")
        if kind not in TRACKERS:
            raise UsageError(
                f"no tracker called {kind!r}{did_you_mean(kind, TRACKERS)} (valid ones: {', '.join(TRACKERS)})"
            )
        module = TRACKERS[kind][1]
        if module not in sys.modules and importlib.util.find_spec(module) is None:
            raise DataError(f"the tracker {kind!r} needs a package that is missing: pip install 'ddbench[{kind}]'")
        found.append((kind, place))
    return found


@contextmanager
def attached(names: Sequence[str], run: Run, say: Callable[[str], None]) -> Iterator[None]:
    """Send what ``run`` reports inside the block to these trackers; ``say`` gets the warning of one that fails."""
    posts = [_Post(kind, place, run.folder, say) for kind, place in checked(names)]
    if not posts:
        yield
        return
    config = dict(_flat(run.spec.record()))
    for post in posts:
        post("start", run.spec.folder, config)
    status, readings = "failed", _Readings("test" if run.spec.protocol.selects == "test" else "validation")
    summary: Numbers = {}

    album = _Album(run.folder)

    def listen(event: Event) -> None:
        numbers = readings.of(event)
        for post in posts:
            if numbers:
                post("log", numbers, readings.step)
        for picture, step in album.new(event, readings.stage):
            for post in posts:
                post("show", f"{readings.stage}/images", picture, step)

    try:
        with listening_too(listen):
            yield
        with suppress(DDBenchError):  # whoever reads the run next says what is wrong with it
            status, summary = _outcome(run.folder)
    except (InterruptedRun, KeyboardInterrupt):
        status = "interrupted"
        raise
    finally:
        for post in posts:
            post("finish", status, summary)


class _Post:
    """A tracker that is switched off by its first failure."""

    def __init__(self, kind: str, place: str, folder: Path, say: Callable[[str], None]) -> None:
        self._kind, self._say = kind, say
        self._works = True
        self._tracker: Tracker | None = None
        self._make = lambda: TRACKERS[kind][0](place, folder)

    def __call__(self, call: str, *given: Any) -> None:
        if not self._works:
            return
        try:
            with guarded(f"the tracker {self._kind!r}"):  # prints go to stderr, and an exit is no exit of ours
                self._tracker = self._tracker or self._make()
                getattr(self._tracker, call)(*given)
        except Exception as error:  # noqa: BLE001 - whatever it raises, the run goes on
            self._works = False
            reason = error.reason if isinstance(error, PluginError) else told(error)
            self._say(f"warning: the tracker {self._kind!r} is switched off, and the run goes on: {reason}")


class _Readings:
    """Numbers as trackers take them: named by their stage, at the iteration that they belong to."""

    def __init__(self, split: str) -> None:
        self._split = split  # that selection looks at
        self.stage, self.step, self._best = "stage 0", 0, 0.0

    def of(self, event: Event) -> Numbers:
        """The numbers of an event, if it has any: a step's metrics; the best accuracy when a selection ends."""
        plain = {name: float(value) for name, value in event.numbers.items() if isinstance(value, (int, float))}
        if event.what.endswith(" distilling"):
            self.stage, self.step = event.what.removesuffix(" distilling"), event.done
            return {f"{self.stage}/{name}": value for name, value in plain.items()}
        if event.what == "selection" and "accuracy" in plain:
            self._best = max(self._best if event.done > 1 else 0.0, plain["accuracy"])
            return {f"{self.stage}/{self._split} accuracy": self._best} if event.done == event.total else {}
        return {}


class _Album:
    """The pictures that a run takes of its images (:mod:`ddbench.run.looks`), each once, soon after it was taken."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._due: dict[str, frozenset[int]] = {}  # iterations, by stage

    def new(self, event: Event, stage: str) -> list[tuple[Path, int]]:
        """Those that are there since the last event."""
        if event.what == f"{stage} distilling":
            self._due.setdefault(stage, points(event.total))
        due, place = self._due.get(stage, frozenset()), self._folder / stage.replace(" ", "-")
        taken = {step for step in due if file(place, step).exists()}
        if taken:
            self._due[stage] = due - taken
        return [(file(place, step), step) for step in sorted(taken)]


def _outcome(folder: Path) -> tuple[str, Numbers]:
    """The status of a run that ended, and its test accuracy and costs."""
    row = RunRecord.read(folder).rows()[0]
    wanted = (
        "accuracy_mean",
        "accuracy_std",
        "distil_seconds",
        "selection_seconds",
        "expert_seconds",
        "peak_bytes",
        "image_bytes",
        "label_bytes",
    )
    known = {name: getattr(row, name) for name in wanted}
    return row.status, {f"result/{name}": float(value) for name, value in known.items() if value is not None}


def _flat(record: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in record.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
