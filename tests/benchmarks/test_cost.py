"""The cost model's rates and table follow from its records, and a fit finds rates that were planted."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import cost as bench
from benchmarks.gpu_records import PAGE
from ddbench.run.cost import FILE


def row(calls: float, flops: float, numbers: float, rates: tuple[float, float, float], times: float) -> bench.Row:
    amount = [calls, flops, numbers]
    seconds = float(np.dot(amount, rates))
    about = {
        "device": "d",
        "file": "f",
        "matcher": "m",
        "scheduler": "single",
        "dataset": "x",
        "network": "n",
        "ipc": 1,
    }
    parts = {"experts": {"amount": amount, "seconds": seconds}}
    parts["distilling"] = {"amount": amount, "seconds": times * seconds}
    return about | {"parts": parts}


def test_a_fit_finds_the_rates_and_factors_that_records_were_made_with():
    draw, rates = np.random.default_rng(0), (2e-4, 1e-12, 3e-10)
    rows = [row(*(10 ** draw.uniform(low, low + 3, 1)[0] for low in (3, 11, 9)), rates, 1.7) for _ in range(30)]
    found = bench.fitted(rows)
    assert found == pytest.approx(rates, rel=1e-3)
    assert bench.factors(rows, found) == {"m": pytest.approx(1.7, rel=1e-3)}
    for ratios in bench.predicted(rows):
        assert ratios == {"experts": pytest.approx(1, rel=1e-3), "distilling": pytest.approx(1, rel=1e-3)}


def test_lessons_of_what_an_iteration_draws_are_no_factor_of_the_matcher():
    rates = (0.0, 1.0, 0.0)
    one = row(1.0, 2.0, 1.0, rates, 3.0)
    one["parts"]["distilling"] |= {"lessons": [0.0, 5.0, 0.0], "seconds": 11.0}
    assert bench.factors([one], rates) == {"m": 3.0}


def test_a_run_is_predicted_from_others_alone():
    rows = [row(1e4, 1e12, 1e9, (0, 1e-12, 0), 1.0), row(1e4, 2e12, 2e9, (0, 1e-12, 0), 1.0)]
    for part in rows[1]["parts"].values():
        part["seconds"] *= 10  # an outlier does not predict itself
    assert bench.predicted(rows)[1]["experts"] < 0.2


def test_experts_that_a_run_shares_with_one_that_wanted_more_are_left_out():
    rows = [row(1.0, flops, 1.0, (0, 1.0, 0), 1.0) for flops in (5.0, 20.0, 20.0)]
    for one in rows:
        one["parts"]["experts"]["seconds"] = 100.0
    assert ["experts" in one["parts"] for one in bench.unshared(rows)] == [False, True, True]


def test_the_rates_that_come_with_ddbench_are_those_of_the_records():
    held, made = json.loads(FILE.read_text()), bench.rates(bench.read())
    assert held["sheets"] == made["sheets"] == bench.SHEETS
    assert held["measured"].keys() == made["measured"].keys() == {"cpu", "h200"}
    for device, own in made["measured"].items():
        assert own["training"] == pytest.approx(held["measured"][device]["training"], rel=1e-3)
        assert own["matchers"] == pytest.approx(held["measured"][device]["matchers"], rel=1e-3)


def test_the_table_on_the_page_is_that_of_the_records():
    assert bench.page(PAGE.read_text(), bench.read()) == PAGE.read_text()


def test_what_is_counted_of_a_record_is_what_stands_in_the_file():
    kept = bench.read()
    found = {record[2]["run"]: record for record in bench.records() if record[1] == "digits-from-nothing.json"}
    one = next(record for record in found.values() if record[2]["matcher"] == "tesla")
    counted = bench.count(*one)
    assert counted is not None
    (same, *_) = [r for r in kept if r["file"] == one[1] and r["matcher"] == "tesla" and r["ipc"] == one[2]["ipc"]]
    for name, part in same["parts"].items():
        assert counted["parts"][name]["amount"] == pytest.approx(part["amount"])
