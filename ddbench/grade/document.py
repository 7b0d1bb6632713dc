"""The document inside ``distilled.safetensors``, checked: it may come from anybody.

Names are of a fixed alphabet, numbers have bounds, and the parts of the document agree with one another. Whether the
tensors beside it agree with it is ``distilled``'s to say.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from annotated_types import Gt, Lt
from pydantic import AfterValidator, Field, model_validator

from ddbench.base.schema import Count, Digest, Held, Name, Number, Seed, Text

FORMAT = 3  # 1 had neither decoders nor teachers, 2 one teacher at most
MOST = 10_000  # sets, or phases
MOST_THREADS = 1024
MOST_STEPS = 10_000_000  # of a student; the longest published training takes 120,000
MOST_OF_PROTOCOL = {"judges": 1000, "checks": MOST, "steps": MOST_STEPS, "epochs": 10**6, "ceiling_epochs": 10**6}

Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._+-]{0,63}$")]
ClassName = Annotated[str, Field(min_length=1, max_length=1000)]
Options = Annotated[dict[Name, Any], Field(default_factory=dict)]
Place = Annotated[int, Field(ge=0, lt=MOST)]


def _protocol(given: dict[str, Any]) -> dict[str, Any]:
    """Rules under which an evaluation ends within a lifetime."""
    for name, most in MOST_OF_PROTOCOL.items():
        if isinstance(given.get(name), (int, float)) and given[name] > most:
            raise ValueError(f"{name} should be at most {most:,}")
    if isinstance(given.get("lrs"), list) and len(given["lrs"]) > 100:
        raise ValueError("lrs should be at most 100")
    return given


class Plugged(Held):
    """A plugin by its name and its options."""

    name: Name
    options: Options


class SetNotes(Held):
    """What belongs to the images and labels of one set."""

    lr: Annotated[Number, Gt(0), Lt(1e6)] | None
    label_kind: Literal["probability", "logit", "real"]
    label_type: Word
    decoder: Options
    teacher: Plugged | None = None
    other_teachers: Annotated[list[Plugged], Field(default_factory=list, max_length=100)]


class Training(Held):
    """How students learn."""

    recipe: Options
    steps: Annotated[int, Field(ge=1, le=MOST_STEPS)] | None
    phases: Annotated[int, Field(ge=1, le=MOST)]


class Source(Held):
    """The dataset that the set was distilled from."""

    name: Text
    digest: Digest | None = None


class Spec(Held):
    """What a run was asked for, as far as evaluations need it."""

    dataset: Plugged
    matcher: Plugged
    scheduler: Plugged
    network: Plugged
    ipc: Count
    seed: Seed
    protocol: Annotated[dict[Name, Any], AfterValidator(_protocol)]
    experts: Options
    decoder: Options
    threads: Annotated[int, Field(ge=1, le=MOST_THREADS)]
    device: Word | None = None
    dtype: Literal["float32"] = "float32"
    versions: Annotated[dict[Text, Text], Field(default_factory=dict)]


class About(Held):
    """Where the set came from."""

    dataset: Source
    selection: Literal["validation", "test", "last", "unknown"]
    spec: Spec | None


class Document(Held):
    """All that the file says beside its tensors."""

    format: Annotated[int, Field(ge=1, le=FORMAT)]
    sets: Annotated[list[SetNotes], Field(min_length=1, max_length=MOST)]
    phases: Annotated[list[list[Place]], Field(min_length=1, max_length=MOST)]
    classes: Annotated[list[ClassName], Field(min_length=1, max_length=100_000)]
    shape: Annotated[list[Annotated[int, Field(ge=1, le=65_536)]], Field(min_length=3, max_length=3)]
    preprocessing: Literal["meanstd", "zca"] = "meanstd"
    network: Plugged
    training: Training
    about: About
    sha256: Digest

    @model_validator(mode="after")
    def _agreeing(self) -> Self:
        """Phases name sets that there are, and no class stands twice."""
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("classes: two are called alike")
        if self.about.spec is not None and self.about.spec.network != self.network:
            raise ValueError("network: another one than the run's")
        if len(self.phases) > self.training.phases:
            raise ValueError(
                f"phases: {len(self.phases)}, where students are said to go through {self.training.phases}"
            )
        for phase in self.phases:
            if not phase or max(phase) >= len(self.sets) or len(set(phase)) < len(phase):
                raise ValueError(f"phases: one holds the sets {phase[:6]}, of {len(self.sets)} there are")
        return self

    def budget_fault(self, images: int) -> str | None:
        """What is wrong with the number of images in all, by the images per class that the run was asked for."""
        spec = self.about.spec
        if spec is None:
            return None
        budget, stages = spec.ipc * len(self.classes), spec.scheduler.options.get("stages")
        if self.about.selection == "unknown":  # of others, whose classes may differ in number
            fits = spec.ipc == max(1, images // len(self.classes))
        elif isinstance(stages, int) and stages > len(self.sets):  # what was good before a run diverged
            fits = images < budget
        else:
            fits = images == budget
        return (
            None
            if fits
            else f"it holds {images} images, but {spec.ipc} for each of {len(self.classes)} classes were asked for"
        )
