"""``ddbench eval``: a run, a file that describes itself, or a foreign set, graded on test data.

In the order of the work: the set that a target means, what is done with it, where its numbers go.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ddbench.base.cache import digest, file_digest, home, write_json
from ddbench.base.machine import pick_device
from ddbench.base.options import label, make
from ddbench.base.progress import Say
from ddbench.base.tensors import is_safetensors
from ddbench.errors import DataError, UsageError
from ddbench.files.asked import EvalOptions
from ddbench.files.class_order import NAME as ORDER
from ddbench.files.class_order import Reordered, misordered
from ddbench.grade.distilled import Distilled
from ddbench.grade.evaluation import Evaluation, evaluate
from ddbench.grade.modest import require_modest
from ddbench.grade.protocol import Protocol, altered
from ddbench.hookspecs import DatasetSource
from ddbench.plugins import downloads, loaded, main_option, missing, registry, remote
from ddbench.run.defaults import BASELINE, NETWORK
from ddbench.run.folder import find_run, finished
from ddbench.run.record import EvaluationRecord, RunRecord
from ddbench.run.row import Row
from ddbench.run.spec import Request, resolve, split_dataset, split_flags


def evaluated(
    target: str, out: Path, options: EvalOptions, say: Say = lambda _: None, lost: list[str] | None = None
) -> list[Row]:
    """Grade a set on each of the networks named, and return its rows: of a run, all that it has by now.

    Networks that cannot take the images are put into ``lost``, if there is one and another network can.
    """
    done = grades(target, out, options, say, lost)
    rows = [row for folder in dict.fromkeys(one.folder for one in done) for row in RunRecord.read(folder).rows()]
    if done[0].of_run:
        return rows
    keys = [one.key for one in done]
    return sorted((row for row in rows if row.evaluation in keys), key=lambda row: keys.index(row.evaluation))


@dataclass(frozen=True)
class Graded:
    """An evaluation: where it is, its key, and whether the set is that of a run or lies in a file."""

    folder: Path
    key: str | None
    of_run: bool

    def row(self) -> Row:
        """It, as a row of a table."""
        return next(row for row in RunRecord.read(self.folder).rows() if row.evaluation == self.key)


def grades(
    target: str, out: Path, options: EvalOptions, say: Say = lambda _: None, lost: list[str] | None = None
) -> list[Graded]:
    """Grade a set on each of the networks named; those that cannot take its images see ``evaluated``."""
    sources, plans, refused = [], [], []
    for each in options.per_network():
        source = opened(target, out, each)
        plan = planned(source.distilled, each)
        try:
            _ = plan.evaluation.distilled.build_network("cpu").parameters  # before any trains
        except UsageError as error:
            if lost is None:
                raise
            refused.append(error)
            lost.append(f"--network {each.network} is left out: {error}")
            continue
        sources.append(source)
        plans.append(plan)
    if not plans:
        raise refused[0]
    for note in (*sources[0].notes, *_doubts(plans[0].evaluation)):
        say(note)
    folders = [source.folder or adopted(source, out) for source in sources]
    done: list[Graded] = []
    for plan, folder, source in zip(plans, folders, sources, strict=True):
        record = graded(plan, folder / "evaluations")
        if warning := misordered(record):
            say(f"warning: {warning}")
        done.append(Graded(folder, record.key, source.folder is not None))
    return done


def opened(target: str, out: Path, options: EvalOptions) -> Opened:
    """The set of a run (by folder or name in ``out``), of a file that describes itself, or of a foreign one."""
    path = Path(target)
    try:
        path.exists()
    except (OSError, ValueError) as error:  # a name that is too long, or that no file can have
        raise UsageError(f"{target[:60]!r}... is not a name of a file or a run ({error})") from error
    foreign = path.exists() and not (path / "spec.json").exists() and not is_safetensors(path)
    usual = {"pixels": "auto", "labels": "auto", "experiment": 0}
    told = [name for name, value in usual.items() if getattr(options, name) != value]
    if told and not foreign:
        raise UsageError(f"--{told[0]} is for sets of other tools; {target} says itself what its numbers mean")
    if is_safetensors(path):
        return Opened(Distilled.load(path), path)
    if not path.exists() or (path / "spec.json").exists():
        folder = find_run(target, out)
        path = folder / "distilled.safetensors"
        if not path.exists():
            result = finished(folder)
            if result and result.error is not None:
                raise UsageError(f"{folder} holds no distilled set, because it {result.status}: {result.error}")
            raise UsageError(f"{folder} holds no distilled set yet; finish it with `ddbench run --resume {folder}`")
        return Opened(Distilled.load(path), path, folder)
    if options.dataset is None:
        raise UsageError(
            f"{path} is neither a run nor a file of ddbench, so it does not say what it was distilled from; name the "
            "dataset with --dataset (and -o dataset.root=... where its data are)"
        )
    request = Request(
        dataset=options.dataset,
        matcher=BASELINE,
        network=options.network or NETWORK,
        protocol=options.protocol,
        device=options.device,
        flags=options.plain_flags(),
    )
    from ddbench.files.importer import imported

    distilled, notes = imported(
        path, request, pixels=options.pixels, labels=options.labels, experiment=options.experiment
    )
    return Opened(distilled, path, None, tuple(notes))


@dataclass(frozen=True, eq=False)
class Opened:
    """A set to evaluate: where it was found, in which run folder if in one, and what there is to say about it."""

    distilled: Distilled
    path: Path
    folder: Path | None = None
    notes: tuple[str, ...] = ()


def planned(distilled: Distilled, options: EvalOptions) -> Planned:
    """The evaluation that the file describes, with what the options change.

    The student lr is selected anew wherever it was selected for something else: by others, for another network, by
    other rules. A set that ddbench selected under these rules brings its own.
    """
    spec = distilled.about["spec"]
    if spec is None:
        raise DataError("the file does not say what it was distilled under; import it again with `ddbench import`")
    chosen, main = split_dataset(options.dataset) if options.dataset else (None, ())
    given = split_flags((*main, *options.plain_flags()))
    if wrong := set(given) - {"dataset", "network", "protocol"}:
        raise UsageError(
            f"eval takes options of dataset, network, protocol and metric, not of {', '.join(sorted(wrong))}"
        )
    dataset = loaded(_dataset(spec["dataset"], chosen, given, options))
    network = distilled.network
    if options.network or "network" in given:
        network = _plugin("network", spec["network"], options.network, given)
    elif options.network is None:
        require_modest(distilled.build_network("cpu"), "the network of the file")
    with _of_the_file("protocol"):
        recorded = make(Protocol, spec["protocol"], "protocol")
    protocol = recorded
    if options.protocol or "protocol" in given:
        protocol = _rules(spec, options.protocol, recorded, given.get("protocol", {}))
        images = sum(len(s) for s in distilled.curriculum.sets)
        teaching = protocol.evaluation(images, len(distilled.curriculum.phases))
        distilled = replace(distilled, teaching=teaching.on(dataset.augment))
    foreign = distilled.about["selection"] == "unknown"
    metrics = options.chosen_metrics() | ({ORDER: Reordered()} if foreign else {})
    evaluation = Evaluation(
        replace(distilled, network=network),
        dataset,
        protocol,
        options.students,
        pick_device(options.device),
        tune=bool(protocol.lrs) and (foreign or network != distilled.network or protocol != recorded),
        metrics=metrics,
        together=options.together,
        transfer=options.transfer,
    )
    seed = spec["seed"] if options.seed is None else options.seed
    return Planned(evaluation, seed, spec["threads"])


def _rules(spec: dict[str, Any], name: str | None, recorded: Protocol, flags: dict[str, str]) -> Protocol:
    """The recorded protocol or one by name, with options; a name means what it means to a run on this dataset."""
    if name is None:
        return altered(recorded, flags)
    request = Request(
        dataset=spec["dataset"]["name"],
        matcher=BASELINE,
        network=spec["network"]["name"],
        ipc=spec["ipc"],
        protocol=name,
        flags=tuple((f"protocol.{option}", value) for option, value in flags.items()),
    )
    found = resolve(request).spec.protocol
    return recorded if replace(found, name=recorded.name) == recorded else found


def _dataset(
    recorded: dict[str, Any], name: str | None, given: dict[str, dict[str, str]], options: EvalOptions
) -> DatasetSource:
    """The dataset to test on. One that may be anywhere on the network is the user's to name, not the file's."""
    source = _plugin("dataset", recorded, name, given)
    plugin = registry().get("dataset", source.name)
    where = main_option(plugin)
    if remote(plugin) and where not in given.get("dataset", {}) and not options.fetch:
        place = str(getattr(source, where or "", ""))
        raise UsageError(
            f"the file names data that may be asked for on the network: {source.name}:{place[:200]}; say yourself "
            f"where they are, with --dataset {source.name}:NAME_OR_FOLDER, or --fetch, to ask for what the file names"
        )
    if name is None and downloads(plugin) and not options.fetch and (lacks := missing(source)) is not None:
        raise UsageError(
            f"the file names the dataset {source.name!r}, which is not here ({lacks[:300]}) and would be downloaded; "
            f"say so yourself, with --dataset {source.name}, `ddbench prepare {source.name}`, or --fetch"
        )
    return source


def _plugin(kind: str, recorded: dict[str, Any], name: str | None, given: dict[str, dict[str, str]]) -> Any:
    """The recorded dataset or network, or another by name, with the options given."""
    if name is not None and name != recorded["name"]:
        return make(registry().get(kind, name).cls, given.get(kind, {}), kind)
    with _of_the_file(kind):
        make(registry().get(kind, recorded["name"]).cls, recorded["options"], kind)
    return make(registry().get(kind, recorded["name"]).cls, recorded["options"] | given.get(kind, {}), kind)


@contextmanager
def _of_the_file(kind: str) -> Iterator[None]:
    """What is wrong with a file's own words is the file's fault, not of what was typed."""
    try:
        yield
    except UsageError as error:
        raise DataError(
            f"the file names a {kind} that cannot be made here: {error}; get its plugin or its version of ddbench"
            f"{'' if kind == 'protocol' else f', or say another one with --{kind}'}"
        ) from error


@dataclass(frozen=True, eq=False)
class Planned:
    """An evaluation, and what it is carried out with."""

    evaluation: Evaluation
    seed: int
    threads: int


def _doubts(plan: Evaluation) -> list[str]:
    """What the reader of the numbers should know about the data."""
    made_from = plan.distilled.about.get("dataset", {})
    if made_from.get("digest") in (None, plan.dataset.digest):
        return []
    return [
        f"note: dataset {plan.dataset.name!r} is not bit for bit what the set was distilled from "
        f"({made_from['name']!r} with other options or files)"
    ]


def adopted(source: Opened, out: Path) -> Path:
    """The folder in ``out`` where a set of others stands like a run, so that tables can compare it.

    A file that ddbench wrote was a run of somebody's; evaluating it elsewhere leaves its folder in the cache.
    """
    distilled = source.distilled
    spec, sets = distilled.about["spec"], distilled.curriculum.sets
    identity = [
        distilled.about.get("source"),
        [s.digest for s in sets],
        distilled.curriculum.phases,
        distilled.preprocessing.digest,
    ]
    # what a file says, and what it is called, never leads elsewhere, and is no longer than names may be
    words = (spec["dataset"]["name"], spec["matcher"]["name"], re.sub(r"[^\w.]+", "_", source.path.stem)[:40])
    name = re.sub(r"[^\w.-]+", "_", "-".join(words)).encode()[:180].decode(errors="ignore")
    base = out if distilled.about["selection"] == "unknown" else home() / "files"
    folder = base / f"{name}-ipc{spec['ipc']:d}-seed{spec['seed']:d}-{digest(identity)[:12]}"
    if not (folder / "result.json").exists():
        distilled.save(folder / "distilled.safetensors")
        write_json(folder / "spec.json", spec)
        result = {
            "status": "ok",
            "dataset": distilled.about["dataset"],
            "selection": distilled.about["selection"],
            "label_type": sets[0].label_type,
            "images": sum(len(s) for s in sets),
            "image_bytes": sum(s.image_bytes for s in sets),
            "label_bytes": sum(s.label_bytes for s in sets),
            "network": label(distilled.network),
            "source": distilled.about.get("source"),
            "sha256": {"distilled.safetensors": file_digest(folder / "distilled.safetensors")},
        }
        write_json(folder / "result.json", result)
    return folder


def graded(plan: Planned, folder: Path) -> EvaluationRecord:
    """Train and test the students; the record of the evaluation, stored in ``folder``."""
    made = evaluate(plan.evaluation, folder, threads=plan.threads, seed=plan.seed)
    return EvaluationRecord.checked(
        made, f"an evaluation in {folder} is damaged ({{}}); delete it to have it made again"
    )
