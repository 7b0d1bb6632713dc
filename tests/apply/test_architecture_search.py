"""Ranking architectures: correlations worked out by hand, grids, and what every kind of data gets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from unittest.mock import patch

import numpy as np
import pytest
from click.testing import CliRunner
from scipy.stats import spearmanr
from tiny import run, spec

from ddbench import Network, Seed, Student, fit
from ddbench.apply import architecture_search as ranking
from ddbench.apply.architecture_search import (
    DISTILLED,
    EARLY,
    RANDOM,
    WHOLE,
    architecture_search,
    architectures,
    correlation,
    fitting,
)
from ddbench.apply.continual import Record, Target
from ddbench.base.cache import read_json
from ddbench.base.options import label
from ddbench.base.progress import Event, listening
from ddbench.cli.apply import apply
from ddbench.errors import InterruptedRun, UsageError
from ddbench.files.asked import EvalOptions
from ddbench.grade.student import accuracy
from ddbench.plugins import registry
from ddbench.problem.starts import teach

GRID = {"depth": ("1", "2"), "width": ("2", "8"), "norm": ("instance",)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Iterator[Path]:
    base = tmp_path_factory.mktemp("ranking")
    with patch.dict("os.environ", {"DDBENCH_HOME": str(base / "home")}):
        yield run(base / "runs", spec("random", ipc=2), students=1)


@pytest.fixture(scope="module")
def found(folder) -> Target:
    return Target.open(str(folder), folder.parent, EvalOptions(students=2, device="cpu"))


@pytest.fixture(scope="module")
def report(found) -> ranking.Report:
    return architecture_search(found, GRID)


# --------------------------------------------------------------------------------- correlation


def ranks(values: list[float]) -> list[float]:
    """Mean place among equals, by counting."""
    return [sum(o < v for o in values) + (sum(o == v for o in values) + 1) / 2 for v in values]


def by_hand(x: list[float], y: list[float]) -> float:
    a, b = ranks(x), ranks(y)
    ma, mb = mean(a), mean(b)
    top = sum((p - ma) * (q - mb) for p, q in zip(a, b, strict=True))
    return top / (sum((p - ma) ** 2 for p in a) * sum((q - mb) ** 2 for q in b)) ** 0.5


TIED = [0.3, 0.5, 0.5, 0.2, 0.9, 0.9, 0.9, 0.1, 0.4]
OTHER = [0.1, 0.6, 0.2, 0.2, 0.7, 0.3, 0.9, 0.2, 0.5]


def test_correlation_is_that_of_ranks_with_ties_shared():
    made = correlation(TIED, OTHER, Seed(0))
    assert made.value == pytest.approx(by_hand(TIED, OTHER))
    assert made.n == 9
    assert made.low < made.value < made.high


def test_equal_and_opposite_rankings_are_the_ends():
    values = [0.1, 0.4, 0.2, 0.8]
    assert correlation(values, [10 * v + 3 for v in values], Seed(0)).value == pytest.approx(1)
    assert correlation(values, [-v for v in values], Seed(0)).value == pytest.approx(-1)


def test_the_interval_holds_95_percent_of_correlations_of_architectures_drawn_anew():
    made = correlation(TIED, OTHER, Seed(5))
    with Seed(5).scope():
        draws = np.random.randint(9, size=(ranking.DRAWS, 9))
    x, y = np.array(TIED), np.array(OTHER)
    several = [row for row in draws if np.ptp(x[row]) and np.ptp(y[row])]
    values = [spearmanr(x[row], y[row]).statistic for row in several]
    assert (made.low, made.high) == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])), abs=1e-9)


@pytest.mark.parametrize(("x", "y"), [([0.5] * 5, [1, 2, 3, 4, 5]), ([1, 2, 3], [0.2] * 3), ([1, 2], [1, 2])])
def test_what_has_no_ranking_has_no_correlation(x, y):
    made = correlation(x, y, Seed(0))
    assert made.value is None
    assert str(made) == "none"


def test_the_top_half_is_the_better_half_of_the_reference_rounded_up():
    assert ranking.top_half([0.1, 0.9, 0.5, 0.7, 0.3]) == [1, 2, 3]
    assert ranking.top_half([0.5, 0.5, 0.5, 0.1]) == [0, 1]


# --------------------------------------------------------------------------------- grids


def convnet(**options):
    return registry().get("network", "convnet").cls(**options)


def test_a_grid_is_every_combination_on_top_of_the_network_of_the_set():
    made, unfit = architectures(convnet(activation="swish", width=99), {"width": ("4", "8")})
    assert not unfit
    assert {(s.depth, s.width, s.norm) for s in made} == {
        (d, w, n) for d in (1, 2, 3) for w in (4, 8) for n in ("none", "instance", "batch")
    }
    assert {s.activation for s in made} == {"swish"}
    assert len(made) == 18


def test_architectures_that_cannot_be_are_listed_with_the_reason():
    made, unfit = architectures(convnet(), {"width": ("6", "8"), "norm": ("group",), "depth": ("1",)})
    assert [s.width for s in made] == [8]
    assert list(unfit) == ["depth=1, width=6, norm=group"]
    assert "multiple of 4" in unfit["depth=1, width=6, norm=group"]


def test_architectures_too_deep_for_the_images_are_listed_with_the_reason():
    sources = [convnet(depth=d) for d in (1, 3, 4)]
    kept, unfit = fitting(sources, (1, 8, 8), 3)
    assert [s.depth for s in kept] == [1, 3]
    assert "use a depth of at most 3" in unfit["convnet(depth=4)"]


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("convnet", {"heads": ("2",)}, "has no option 'heads'"),
        ("convnet", {"width": ("wide",)}, "grid.width"),
        ("mlp", {}, "there is no grid for network 'mlp'"),
    ],
)
def test_a_grid_with_a_mistake_is_refused(name, given, said):
    with pytest.raises(UsageError, match=said):
        architectures(registry().get("network", name).cls(), given)


def test_fewer_than_three_architectures_are_not_ranked(found):
    with pytest.raises(UsageError, match="2 architectures cannot be ranked"):
        architecture_search(found, {"depth": ("1",), "width": ("2", "4"), "norm": ("none",)})


# --------------------------------------------------------------------------------- the whole search


def test_every_architecture_is_trained_on_each_kind_of_data(found, report):
    results = report.record["results"]
    names = [label(convnet(depth=d, width=w)) for d in (1, 2) for w in (2, 8)]
    trained = {f"{kind}/{name}" for kind in (DISTILLED, RANDOM, EARLY, WHOLE) for name in names}
    assert {name for name in results if not name.startswith("lr/")} == trained
    assert all(len(results[name]["accuracies"]) == 2 for name in trained)


def test_proxies_are_judged_on_validation_data_and_the_reference_on_test_data(found, report):
    source = convnet(depth=2, width=8)
    work = found.evaluation
    network = Network(source, found.network.shape, found.network.classes)
    seed = Seed(found.seed) / "architecture" / 1
    held, teaching = work.distilled.curriculum, work.distilled.teaching
    vector = teach(network, Student(network.init(seed / "init")), held, teaching, seed).vector
    judged = report.record["results"][f"{DISTILLED}/{label(source)}"]["accuracies"][1]
    assert judged == accuracy(network, vector, work.dataset.validation)
    recipe, lr = ranking.real_recipes(found)[WHOLE], report.record["results"][f"lr/{WHOLE}"]
    vector = fit(network, Student(network.init(seed / "init")), work.dataset.train, recipe, seed, lr=lr).vector
    reference = report.record["results"][f"{WHOLE}/{label(source)}"]["accuracies"][1]
    assert reference == accuracy(network, vector, work.dataset.test)


def test_early_stopping_takes_the_steps_of_the_distilled_set_and_the_reference_a_ceilings(found):
    recipes = ranking.real_recipes(found)
    assert (recipes[EARLY].steps, recipes[EARLY].epochs) == (12, None)
    # 54 images in one batch per epoch: one epoch asked for, but no fewer steps than N = 12
    assert (recipes[WHOLE].steps, recipes[WHOLE].epochs) == (None, 12)


def test_learning_rates_belong_to_the_data_and_are_selected_on_validation(found, tmp_path):
    """Of two learning rates, one of which learns nothing, the other is taken."""
    given = EvalOptions(students=1, device="cpu", flags=(("protocol.lrs", "0.0000001,0.03"),))
    target = Target.open(str(found.folder.parent), tmp_path, given)
    record = Record.open(tmp_path, "lrs", target.identity, {})
    ranking.trainers(target, record)
    assert record.results[f"lr/{EARLY}"] == 0.03
    assert record.results[f"lr/{WHOLE}"] == 0.03
    assert record.results["lr/random"] == "0.03"


def test_rows_compare_each_proxy_with_the_reference(report):
    made = report.record["architectures"]
    reference = [a[WHOLE] for a in made]
    rows = {row["data"]: row for row in report.rows}
    for name in (DISTILLED, RANDOM, EARLY):
        scores = [a[name] for a in made]
        if len(set(scores)) > 1 and len(set(reference)) > 1:
            assert rows[name]["spearman_all"] == pytest.approx(by_hand(scores, reference))
        best = [r for s, r in zip(scores, reference, strict=True) if s == max(scores)]
        assert rows[name]["chosen"] == pytest.approx(mean(best))
        assert rows[name]["seconds"] == pytest.approx(sum(a[f"{name} seconds"] for a in made))
    assert rows[WHOLE]["chosen"] == rows[WHOLE]["best"] == max(reference)
    assert rows[DISTILLED]["top_half_n"] == 2


def test_an_interrupted_search_goes_on_with_what_is_stored(found, report):
    path = next(found.folder.glob("architecture-search-*.json"))
    whole = read_json(path)
    path.unlink()

    def stop(event: Event) -> None:
        if event.what == "architectures" and event.done == 5:
            raise InterruptedRun("stopped")

    with pytest.raises(InterruptedRun), listening(stop):
        architecture_search(found, GRID)
    stored = read_json(path)
    done = [name for name in stored["results"] if not name.startswith("lr/")]
    assert (len(done), stored["complete"]) == (5, False)
    again = architecture_search(found, GRID).record
    scores = lambda record: {n: r["accuracies"] for n, r in record["results"].items() if not n.startswith("lr/")}
    assert scores(again) == scores(whole)
    assert [again["results"][name] for name in done] == [stored["results"][name] for name in done]


def test_the_command_shows_both_tables_and_what_was_left_out(folder, report):
    words = ["architecture-search", str(folder), "--students", "1", "--device", "cpu", "--quiet", "--format", "md"]
    grids = [
        w
        for name, values in (GRID | {"depth": ("1", "2", "4")}).items()
        for w in ("--grid", f"{name}={','.join(values)}")
    ]
    answer = CliRunner().invoke(apply, [*words, *grids])
    assert answer.exit_code == 0, answer.output
    assert answer.stdout.count("| ---") == 5 + 6
    assert "use a depth of at most 3" in answer.stdout
    assert answer.stdout.count("convnet(") >= 4


def test_a_malformed_grid_says_what_it_should_look_like(folder):
    answer = CliRunner().invoke(apply, ["architecture-search", str(folder), "--grid", "width"])
    assert isinstance(answer.exception, UsageError)
    assert "OPTION=VALUE,VALUE" in str(answer.exception)
