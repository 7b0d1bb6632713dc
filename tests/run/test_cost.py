"""What runs cost on a device: amounts counted by hand, and devices measured, scaled, or unknown."""

from __future__ import annotations

import json
from dataclasses import replace

import pictures
import pytest
import torch
from problems import task_of
from tiny import ddbench, spec, words
from torch import nn

from ddbench.errors import UsageError
from ddbench.run import cost as module
from ddbench.run.cost import Amount, amount, cost, counted, device_of, devices, priced, rates
from ddbench.run.spec import Request, resolve
from ddbench.train.compile import forward_flops


def test_amounts_are_calls_of_modules_flops_and_outputs():
    """Counted again on a real network with real numbers, one image."""
    task = task_of(spec("random"))
    network, sizes = task.network, []
    built = network.source.build(network.shape, network.classes)
    for part in built.modules():
        if not list(part.children()):
            part.register_forward_hook(lambda _module, _given, made: sizes.append(made.numel()))
    built.eval()(torch.randn(1, *network.shape))
    found = amount(network, passes=120.0, batch=30.0)
    assert found.calls == 4 * len(sizes)
    assert found.numbers == 3 * 120 * sum(sizes)
    assert found.flops == 3 * 120 * forward_flops(network)
    first = next(part for part in built.modules() if isinstance(part, nn.Conv2d))
    pixels = network.shape[1] * network.shape[2]
    assert forward_flops(network) > 2 * first.weight.numel() * pixels


def test_the_parts_of_a_run_are_counted_in_steps_and_passes():
    made = spec("tesla", ipc=2)
    task = task_of(made)
    found, one = counted(made, task, students=5), amount(task.network, 1.0, 1.0)
    assert found["experts"] == amount(task.network, 2 * 2 * len(task.real), 9)
    assert found["distilling"] is not None
    assert found["distilling"].calls == pytest.approx(4 * 3 * one.calls)  # iterations, student steps
    assert found["distilling"].flops == pytest.approx(4 * 3 * 2.5 * 6 * one.flops)
    assert counted(spec("ncfm"), task, 5)["distilling"] is None


def test_seconds_are_the_sum_over_amounts_and_a_factor_of_the_matcher(monkeypatch):
    known = module.Rates("x", "", (1.0, 10.0, 100.0), {"tesla": 2.0}, None)
    work = {
        "experts": Amount(1, 2, 3),
        "distilling": Amount(1, 0, 0),
        "lessons": Amount(0, 1, 0),
        "grading": Amount(0, 0, 1),
    }
    found = priced("tesla", work, known)
    assert (found.experts, found.distilling, found.grading) == (321.0, 2.0 + 10.0, 100.0)
    assert found.known == 433.0
    monkeypatch.setattr(module, "table", lambda: {"measured": {"y": {"matchers": {"dm": 3.0}}}})
    assert priced("dm", work, known).distilling == 3.0 + 10.0  # as where it was measured
    unmeasured = priced("mine", work, known)
    assert (unmeasured.distilling, unmeasured.guessed) == (11.0, True)
    assert priced("mine", work | {"distilling": None}, known).distilling is None


def test_a_device_that_nobody_measured_is_scaled_from_data_sheets_and_says_so():
    base, scaled = rates("h200"), rates("a100")
    slower = 494.5 / 156  # more than memory's 4800 / 2039
    assert scaled.training == pytest.approx((base.training[0], slower * base.training[1], slower * base.training[2]))
    assert "nobody measured it: scaled from H200 by 3.17" in scaled.about
    assert "NVIDIA A100 datasheet" in scaled.about
    assert scaled.error is None
    assert base.error is not None
    assert base.error >= 1
    assert devices()[:2] == ["cpu", "h200"]
    with pytest.raises(UsageError, match="no rates of a device called 'h20'; did you mean 'h200'"):
        rates("h20")
    assert device_of("cpu") == "cpu"
    assert device_of("cuda", "a100") == "a100"


def test_the_command_tells_hours_of_a_run_and_what_they_rest_on(tmp_path):
    made = spec("tesla", ipc=2)
    said = ddbench("cost", *words("tesla", ipc=2), "--device", "rtx4090", "--json", home=tmp_path)
    assert said.code == 0, said.err
    told, own = json.loads(said.out), cost(made, made.dataset.load(), 5, "rtx4090")
    assert told["hours"] == pytest.approx(own.known / 3600)
    assert told["runs"][0]["distilling"] == pytest.approx((own.distilling or 0) / 3600)
    assert "data sheets" in told["about"]
    shown = ddbench("cost", *words("tesla", ipc=2), home=tmp_path)
    assert "hours of one thread" in " ".join(shown.out.split())
    assert ddbench("cost", *words("tesla"), "--device", "h20", home=tmp_path).code == 2


def test_a_run_is_counted_by_the_recipe_and_rules_of_the_device_that_it_is_told_for(tmp_path):
    """On a CPU anybody's images are graded by ``quick``, on a GPU by ``default``, and their recipes differ."""
    place = pictures.folder(tmp_path / "cats", pictures.tree(train=30))
    asked = ("cost", "--dataset", f"images:{place}", "--matcher", "tesla", "--ipc", "10", "--json")
    for device, rules, others in (("cpu", "quick", "default"), ("h200", "default", "quick")):
        usual, own, other = (
            json.loads(ddbench(*asked, "--device", device, *more, home=tmp_path).out)["runs"][0]
            for more in ((), ("--protocol", rules), ("--protocol", others))
        )
        assert usual == own
        assert usual["grading"] != other["grading"]
    kind = {"dataset": f"images:{place}", "matcher": "tesla", "ipc": 10, "protocol": None, "here": False}
    made = resolve(Request(**kind, device="cuda")).spec
    assert usual["distilling"] == pytest.approx((cost(made, made.dataset.load(), 5, "h200").distilling or 0) / 3600)


def test_cells_that_share_experts_pay_for_them_once(tmp_path):
    path = tmp_path / "s.toml"
    own = words("tesla")
    flags = [word.partition("=") for word in own if "=" in word]
    options = "\n".join(f'"{name}" = "{value}"' for name, _, value in flags)
    path.write_text(f'dataset = "toy"\nseeds = [0, 1]\n[options]\n{options}\n[[matrix]]\nmatcher = "tesla"\nipc = 1\n')
    told = json.loads(ddbench("cost", path, "--json", home=tmp_path).out)["runs"]
    assert told[0]["experts"] > 0
    assert told[1]["experts"] == 0
    assert told[0]["distilling"] == told[1]["distilling"]
    refused = ddbench("cost", path, "--matcher", "dm", home=tmp_path)
    assert refused.code == 2
    assert "leave --matcher out" in " ".join(refused.err.split())


def test_judges_of_coresets_and_of_later_stages_count_as_they_work():
    """A coreset: one check, no lr of its own. Two stages of pdd: each judges the half of the steps that is new."""
    random = spec("random", ipc=2, protocol__judges=2, protocol__lrs="0.01,0.1")
    task = task_of(random)
    one = counted(random, task, 0)["grading"]
    assert one == amount(task.network, 12 * 6 * 2 * 2, 6)
    staged = counted(replace(random, scheduler=spec("random", "pdd", ipc=2).scheduler), task, 0)["grading"]
    assert staged == one  # two stages of half a lesson each
