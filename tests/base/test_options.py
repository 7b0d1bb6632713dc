"""Options from text or JSON into frozen dataclasses, with errors that show the way out."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass, field
from typing import Annotated, ClassVar, Literal

import pytest
from annotated_types import Ge, Gt, Le
from ddbench_networks import ConvNet

from ddbench import Recipe, UsageError
from ddbench.base.options import Removed, describe, label, make, options


@dataclass(frozen=True)
class Inner:
    depth: int = 1


@dataclass(frozen=True)
class Method:
    name = "method"
    steps: Annotated[int, Ge(0), "how many"] = 10
    lr: Annotated[float, Gt(0), Le(1)] = 0.1
    window: Annotated[int | None, Ge(1)] = None
    kind: Literal["exact", "zero", "none"] = "exact"
    layers: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    flag: bool = False
    note: str = ""
    remark: Annotated[str, "shown in the listed tuples"] = ""
    inner: Inner = field(default_factory=Inner)

    def __post_init__(self) -> None:
        if self.window is not None and self.window > self.steps:
            raise UsageError(f"window {self.window} is longer than the {self.steps} steps")


@dataclass(frozen=True)
class NoOptions:
    name = "plain"


def test_text_becomes_the_types_of_the_fields():
    made = make(Method, {"steps": "7", "lr": "0.5", "window": "3", "kind": "zero", "flag": "true", "note": "hi"}, "m")
    assert made == Method(steps=7, lr=0.5, window=3, kind="zero", flag=True, note="hi")
    assert type(made.steps) is int


def test_json_values_are_taken_as_they_are():
    made = make(Method, {"steps": 7, "lr": 1, "layers": [1, 2], "inner": {"depth": 4}}, "m")
    assert made == Method(steps=7, lr=1.0, layers=(1, 2), inner=Inner(4))


def test_no_values_give_the_defaults_and_the_result_is_frozen():
    made = make(Method, {}, "m")
    assert made == Method()
    with pytest.raises(FrozenInstanceError):
        made.steps = 1


@pytest.mark.parametrize("text", ["none", "None", "null"])
def test_the_word_none_is_no_value(text):
    assert make(Method, {"window": text}, "m").window is None


def test_the_word_none_stays_a_word_where_words_are_meant():
    assert make(Method, {"kind": "none"}, "m").kind == "none"
    assert make(ConvNet, {"norm": "none"}, "network").norm == "none"


def test_commas_make_a_list():
    assert make(Method, {"layers": "1,2, 3", "names": "a,b"}, "m") == Method(layers=(1, 2, 3), names=("a", "b"))


def test_one_value_is_a_list_of_one():
    assert make(Method, {"layers": "5"}, "m").layers == (5,)


def test_comma_stays_a_comma_where_text_is_meant():
    assert make(Method, {"note": "a, b"}, "m").note == "a, b"


def test_words_of_a_description_do_not_change_how_text_is_read():
    assert make(Method, {"remark": "a, b"}, "m").remark == "a, b"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": "-1"}, r"m\.steps: Input should be greater than or equal to 0, got '-1'"),
        ({"lr": 0.0}, r"m\.lr: Input should be greater than 0, got 0\.0"),
        ({"lr": "1.5"}, r"m\.lr: Input should be less than or equal to 1, got '1\.5'"),
        ({"steps": "many"}, r"m\.steps: Input should be a valid integer.*got 'many'"),
        ({"steps": 1.5}, r"m\.steps: Input should be a valid integer.*got 1\.5"),
        ({"steps": "none"}, r"m\.steps: Input should be a valid integer"),
        ({"kind": "exactly"}, r"m\.kind: Input should be 'exact', 'zero' or 'none', got 'exactly'"),
        ({"window": "0"}, r"m\.window.*greater than or equal to 1, got '0'"),
        ({"layers": "1,x"}, r"m\.layers\.1: Input should be a valid integer.*got 'x'"),
        ({"inner": {"depth": "deep"}}, r"m\.inner\.depth: .*got 'deep'"),
    ],
)
def test_value_of_the_wrong_type_or_out_of_bounds_is_refused_by_name(values, message):
    with pytest.raises(UsageError, match=message):
        make(Method, values, "m")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), "nan", "inf", "-inf", "NaN"])
def test_not_a_number_is_refused(value):
    with pytest.raises(UsageError, match=r"m\.lr.*finite number"):
        make(Method, {"lr": value}, "m")


def test_unknown_name_is_refused_with_the_nearest_and_all_valid_ones():
    with pytest.raises(
        UsageError, match=r"matcher has no option 'stepz'; did you mean 'steps'\? \(valid options: steps, lr,"
    ):
        make(Method, {"stepz": 1}, "matcher")


def test_unknown_name_like_none_of_the_valid_ones_gets_no_suggestion():
    with pytest.raises(UsageError, match=r"^matcher has no option 'qqq' \(valid options: steps,"):
        make(Method, {"qqq": 1}, "matcher")


def test_record_without_options_says_so():
    assert make(NoOptions, {}, "scheduler") == NoOptions()
    with pytest.raises(UsageError, match=r"scheduler has no option 'x' \(valid options: none\)"):
        make(NoOptions, {"x": 1}, "scheduler")


def test_class_attribute_without_annotation_is_no_option():
    with pytest.raises(UsageError, match="no option 'name'"):
        make(Method, {"name": "other"}, "m")


def test_records_own_check_is_reported_as_a_whole_sentence():
    with pytest.raises(UsageError, match=r"^m: window 20 is longer than the 10 steps$"):
        make(Method, {"window": 20}, "m")


def test_options_are_json_and_come_back_as_the_same_record():
    record = Method(steps=3, window=2, layers=(4, 5), inner=Inner(9))
    values = options(record)
    assert values["layers"] == [4, 5]
    assert values["inner"] == {"depth": 9}
    assert make(Method, values, "m") == record
    assert describe(record) == {"name": "method", "options": values}


def test_every_recipe_comes_back_from_its_options():
    recipe = Recipe(optimizer="adamw", steps=5, schedule="cosine", augment="", carry=True)
    assert make(Recipe, options(recipe), "recipe") == recipe


def test_validation_does_not_change_how_the_class_itself_is_used():
    make(Method, {}, "m")
    assert Method(lr=5.0).lr == 5.0  # plain construction stays plain


def test_the_label_names_the_options_that_differ_from_their_defaults():
    assert label(Schedule()) == "steps"
    assert label(Schedule(gamma=0.5, at=(2, 30))) == "steps(gamma=0.5,at=(2, 30))"
    equal = Schedule(kind="".join(["ex", "act"]), gamma=float("0.1"), at=tuple(range(2, 4)))  # not the same objects
    assert label(equal) == "steps"


@dataclass(frozen=True)
class Schedule:
    name = "steps"
    kind: str = "exact"
    gamma: float = 0.1
    at: tuple[int, ...] = (2, 3)


@dataclass(frozen=True)
class Newer:
    removed_options: ClassVar[dict[str, Removed]] = {
        "parts": Removed(4, "more iterations gain as much"),
        "kind=odd": Removed("exact", "it gained nothing"),
    }
    kind: str = "exact"


@pytest.mark.parametrize("value", [4, "4"])
def test_a_removed_option_at_its_default_is_read_as_if_it_were_not_there(value):
    assert make(Newer, {"parts": value}, "matcher") == Newer()


@pytest.mark.parametrize(("name", "value"), [("parts", 3), ("parts", 5), ("parts", "none"), ("kind", "odd")])
def test_a_removed_option_or_value_is_refused_with_the_last_version_that_had_it(name, value):
    with pytest.raises(
        UsageError, match=rf"^matcher.{name}={value} is no longer there \(.*\); ddbench 0.1.0 \(7925e25a9d\)"
    ):
        make(Newer, {name: value}, "matcher")
