"""The document of a distilled file: every value has a type and bounds, and its parts agree."""

from __future__ import annotations

import json
from typing import Any

import pytest
from refusals import refused

from ddbench.base.tensors import load_tensors
from ddbench.grade.document import MOST_STEPS, Document
from ddbench.testing.hostile import sound_set


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("sound") / "set.safetensors"
    sound_set().save(path)
    return json.loads(load_tensors(path)[1]["ddbench"])


def changed(sound: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    copy = json.loads(json.dumps(sound))
    at: Any = copy
    *before, last = place.split("/")
    for name in before:
        at = at[int(name) if name.isdigit() else name]
    at[int(last) if last.isdigit() else last] = value
    return copy


def test_a_sound_document_is_kept_as_it_is(sound):
    assert Document.checked(sound, "{}").json_value() == sound


def test_what_a_newer_version_adds_is_left_alone(sound):
    more = changed(sound, "about/spec/extra", {"a": [1]}) | {"more": 1}
    assert Document.checked(more, "{}").budget_fault(6) is None


@pytest.mark.parametrize(
    ("place", "value"),
    [
        *(("phases", v) for v in ([], [[]], [[-1]], [[1]], [[0, 0]], [["0"]], "ab", [[0]] * 2, [[0]] * 20_000, None)),
        *(("about/spec/seed", v) for v in ("zero", None, 0.5, True, 2**63, [0])),
        *(("about/spec/threads", v) for v in (0, -1, 10**9, "many", None, 1.5)),
        *(("about/spec/matcher/name", v) for v in ("../x", "", "a\0", "\x1b", None, ["x"], "x" * 200)),
        *(("classes", v) for v in ("012", [0, 1, 2], [], ["a", "a", "b"], ["a" * 2000, "b", "c"])),
        *(("shape", v) for v in ([1, 8], [-1, 8, 8], ["1", "8", "8"], [1, 8, 8, 8], [1, 0, 8])),
        *(("sets/0/lr", v) for v in (0, -1, "0.1", 1e300, True, [0.1])),
        *(("sets/0/label_kind", v) for v in ("odd", ["probability"], None)),
        *(("sets/0/label_type", v) for v in ({}, "", "a/b", "x" * 100)),
        *(("training/steps", v) for v in (0, -5, "20", MOST_STEPS + 1, 2.5)),
        ("training/phases", 0),
        ("about", None),
        ("about", []),
        ("about/spec", "x"),
        ("about/selection", "<b>"),
        ("about/dataset", "x"),
        ("about/spec/protocol", None),
        ("about/spec/protocol/judges", 10**9),
        ("about/spec/protocol/lrs", [0.1] * 1000),
        ("network/name", ["x"]),
        ("format", 0),
        ("format", "2"),
        ("preprocessing", "other"),
        ("sha256", 3),
        ("sha256", None),
        ("sets", []),
        ("network/options", [1]),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_its_place(sound, place, value):
    text = refused(lambda: Document.checked(changed(sound, place, value), "the file is wrong: {}"))
    assert place.split("/")[0] in text
    assert len(text) < 400


def test_the_network_is_that_of_the_run(sound):
    assert "another one" in refused(lambda: Document.checked(changed(sound, "network/options/width", 9), "{}"))


@pytest.mark.parametrize(("images", "fits"), [(6, True), (5, False), (7, False), (1020, False), (0, False)])
def test_images_are_as_many_as_the_run_was_asked_for(sound, images, fits):
    assert (Document.checked(sound, "{}").budget_fault(images) is None) is fits


@pytest.mark.parametrize(
    ("option", "most"), [("epochs", 10**6), ("ceiling_epochs", 10**6), ("judges", 1000), ("checks", 10_000)]
)
def test_rules_may_ask_for_as_much_as_anybody_does_and_no_more(sound, option, most):
    place = f"about/spec/protocol/{option}"
    for value in (1, most):
        assert Document.checked(changed(sound, place, value), "{}").about.spec.protocol[option] == value
    assert "should be at most" in refused(lambda: Document.checked(changed(sound, place, most + 1), "{}"))


@pytest.mark.parametrize(("count", "good"), [(0, True), (5, True), (100, True), (101, False)])
def test_a_hundred_learning_rates_may_be_tried(sound, count, good):
    made = changed(sound, "about/spec/protocol/lrs", [0.1] * count)
    if good:
        Document.checked(made, "{}")
    else:
        assert "lrs should be at most 100" in refused(lambda: Document.checked(made, "{}"))


@pytest.mark.parametrize("place", [1, 2, 9])
def test_phases_name_no_set_that_is_not_there(sound, place):
    for phase in ([place], [0, place]):
        assert "of 1 there are" in refused(
            lambda phase=phase: Document.checked(changed(sound, "phases", [phase]), "{}")
        )


@pytest.mark.parametrize(
    ("stages", "images", "fits"),
    [(1, 6, True), (1, 3, False), (2, 6, True), (2, 3, False), (3, 3, True), (3, 5, True), (3, 6, False)],
)
def test_fewer_images_than_asked_for_are_what_fewer_sets_than_stages_hold(sound, stages, images, fits):
    two = changed(sound, "sets", sound["sets"] * 2)
    made = Document.checked(changed(two, "about/spec/scheduler/options", {"stages": stages}), "{}")
    assert (made.budget_fault(images) is None) is fits


@pytest.mark.parametrize(("images", "ipc"), [(1, 1), (2, 1), (3, 1), (5, 1), (6, 2), (7, 2)])
def test_sets_of_others_have_as_many_per_class_as_their_images_allow_and_one_at_least(sound, images, ipc):
    unknown = changed(sound, "about/selection", "unknown")
    for asked in (1, 2, 3):
        fault = Document.checked(changed(unknown, "about/spec/ipc", asked), "{}").budget_fault(images)
        assert (fault is None) is (asked == ipc)
