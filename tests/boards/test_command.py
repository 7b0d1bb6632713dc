"""What the commands of entries say is what ``-o`` reads, whatever a value holds; else nothing is told."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from ddbench_datasets import Images
from hypothesis import example, given
from hypothesis import strategies as st

from ddbench.base.options import label, make, option_text
from ddbench.boards import command
from ddbench.boards.command import LONGEST, command_of, flags_text, is_command
from ddbench.cli.options import pairs
from ddbench.run.record import SpecRecord
from ddbench.run.spec import Request, RunSpec, resolve

AWKWARD = [
    ("a, b", "c", "d"),
    ('say "x"', "'single'", '"quoted"', '"', '",'),
    (" before", "after ", "two  inside"),
    ("none",),
    ("none", "null"),
    ("a=b", "-o", "--out=/x", "$(id)", "`id`", "a;b", "a\\b", "#", "*"),
    ("1e5", "0010", "true"),
    (",", ",,", " "),
]


def spec(**options: Any) -> RunSpec:
    request = Request("images:DATA", "random", device="cpu")
    dataset = make(Images, {"root": "DATA"} | options, "dataset")
    return RunSpec(**vars(resolve(request).spec) | {"dataset": dataset})


def told(made: RunSpec) -> str:
    return command_of([SpecRecord.model_validate(made.record())], 2)


def read(text: str) -> dict[str, tuple[tuple[str, str], ...]]:
    """The flags of a command and its dataset, taken apart as a shell and the command line do."""
    words = shlex.split(text)
    words = words[words.index("run") + 1 :]
    given = list(zip(words[::2], words[1::2], strict=True))
    flags = pairs(None, None, tuple(value for name, value in given if name == "-o"))  # type: ignore[arg-type]
    return {"flags": flags, "dataset": dict(given)["--dataset"]}  # type: ignore[dict-item]


@pytest.mark.parametrize("classes", AWKWARD)
def test_a_command_gives_the_classes_back(monkeypatch, classes):
    monkeypatch.setenv("DDBENCH_THREADS", "1")
    made = spec(classes=classes)
    again: Any = resolve(Request(matcher="random", device="cpu", **read(told(made)))).spec.dataset  # type: ignore[arg-type]
    assert again.classes == classes
    assert again == made.dataset


@given(st.lists(st.text(min_size=1), min_size=1).map(tuple))
@example(("none",))
@example(('"a"', "b,"))
def test_any_names_are_read_as_they_were_written(names):
    assert make(Images, {"classes": option_text(names).strip()}, "dataset").classes == names


@pytest.mark.parametrize("values", [(0.003, 1e-05, 1e22), (1, 2), (), None])
def test_numbers_in_lists_are_read_as_they_were_written(values):
    @dataclass(frozen=True)
    class Held:
        values: tuple[float, ...] | None = None

    assert make(Held, {"values": option_text(values)}, "held").values == values


@pytest.mark.parametrize(
    "options",
    [
        {"classes": ("a", "")},
        {"classes": ("a\nb", "c")},
        {"classes": ("a\u202eb", "c")},
        {"classes": ("a\u200bb", "c")},
        {"within": " images"},
        {"within": "a\tb"},
        {"classes": ("x" * LONGEST, "c")},
    ],
)
def test_what_cannot_be_read_back_or_seen_is_not_told(options):
    assert told(spec(**options)) == ""
    assert told(spec()) != ""


def test_flags_in_a_sentence_can_be_pasted_into_a_shell():
    text = flags_text("dataset", {"classes": ["a, b", "c"], "zca": True})
    assert shlex.split(text) == ["-o", 'dataset.classes="a, b",c', "-o", "dataset.zca=true"]


@dataclass(frozen=True)
class Wide:
    widths: tuple[int, ...] = (1,)
    act: str = "relu"
    depth: int | None = 3

    name = "wide"


@pytest.mark.parametrize(
    "network", [Wide(), Wide((32, 64)), Wide((32,), "a,b"), Wide((), "x=y, z", None), Wide(act="f(x)")]
)
def test_networks_with_lists_are_told_by_their_labels(monkeypatch, network):
    plugin = SimpleNamespace(get=lambda kind, name: SimpleNamespace(cls=Wide))
    monkeypatch.setattr(command, "registry", lambda: plugin)
    line = shlex.join(command._again(label(network), 2))
    assert is_command(line)
    flags = (word.removeprefix("network.").split("=", 1) for word in shlex.split(line) if word.startswith("network."))
    assert make(Wide, dict(flags), "network") == network
    assert command._again(label(network) + "x", 2) == []
