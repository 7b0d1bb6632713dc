"""What makes pages worth linking to: images beside them, names on lines, ways on to paper, package and board."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from boardkit import board, made, pictured, posted
from browser import Visit, chromium
from PIL import Image

pytest.importorskip("jinja2", reason="the extra html is not installed")
pytest.importorskip("matplotlib", reason="the extra html is not installed")

from ddbench.base.cache import digest, read_json, write_json
from ddbench.boards import charts, figures, links, tiles
from ddbench.boards import site as pages
from ddbench.boards.command import entering
from ddbench.boards.ranking import CHANCE, board_text, overview, standings
from ddbench.boards.report import report
from ddbench.boards.site_data import table_view
from ddbench.errors import DataError
from ddbench.plugins import Plugin, paper, registry
from ddbench.results.tables import clean
from ddbench.run import below, looks
from ddbench.run.record import RandomRecord, WholeRecord
from ddbench.run.references import under_whole
from ddbench.run.row import Row

METHODS = ["random", "herding", "k-means", "dm", "dsa", "mtt", "datm", "tesla"]
AXE = os.environ.get("DDBENCH_AXE", "")  # axe.min.js of axe-core


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return made(tmp_path_factory.mktemp("runs"), "dm", seeds=(0,), scheduler="pdd", ipc=2, matcher__steps=4)[0]


@pytest.fixture(scope="module")
def toys(tmp_path_factory, run) -> Any:
    """A board of eight methods at 1 per class and three of them at 2; later ones are better."""
    found = board(tmp_path_factory.mktemp("boards"), run, dataset={"shape": [1, 8, 8], "classes": 3})
    seen = pictured(found, run)
    for i, (ipc, name) in enumerate([*((1, name) for name in METHODS), *((2, name) for name in METHODS[:3])]):
        scores = [0.3 + 0.02 * i, 0.301 + 0.02 * i]
        entry = posted(found, run, f"{name}-{ipc}", scores, matcher=name, ipc=ipc, picture=seen, author="An author")
        for part in entry["runs"]:
            part["spec"]["scheduler"] = {"name": "single", "options": {}}
        write_json(found.folder / "entries" / f"{name}-{ipc}.json", entry)
    return standings(found)


@pytest.fixture(scope="module")
def site(tmp_path_factory, toys) -> Path:
    out = tmp_path_factory.mktemp("site")
    pages.write(pages.site([toys]), out)
    return out


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


def test_pages_are_small_and_their_images_are_files_beside_them(site):
    texts = {path: path.read_text() for path in site.rglob("*.html")}
    assert len(texts) == 2 + 11
    assert max(len(text.encode()) for text in texts.values()) <= 300_000
    for path, text in texts.items():
        assert "data:image" not in text
        found = re.findall(r'<img src="([^"]+)"', text)
        assert found, path
        for name in found:
            data = (path.parent / name).read_bytes()
            assert Path(name).stem == digest(data)[:16]
    (gallery,) = re.findall(r'<ul class="entries">(.*?)</ul>', texts[site / "toys.html"], re.DOTALL)
    assert gallery.count("<img") == gallery.count('loading="lazy"') == 11
    assert len(gallery) < 11 * 700, "of 300 kB a hundred entries take a fifth"


def test_an_entrys_page_has_its_images_first_then_its_command_and_what_is_known_of_it(site):
    text = (site / "toys" / "tesla-1.html").read_text().partition("<main")[2]
    order = ["<img", "<h2>Command</h2>", "--matcher tesla", ">An author<", "https://arxiv.org/abs/2211.10586", "<svg"]
    places = [text.index(word) for word in order]
    assert places == sorted(places)
    assert ">Copy</button>" in text
    assert "rank 1 of 8" in text


def test_charts_name_at_most_as_many_methods_as_there_are_colours(toys):
    tone = figures.tones(toys.flat())
    told = {title: value for title, value in tone.items() if value is not None}
    assert sorted(told.values()) == [charts.BASE, 0, 1, 2, 3, 4]
    assert told["random"] == charts.BASE
    assert told.keys() == {"random", "k-means", "tesla", "herding", "datm", "mtt"}, "the first two of each ipc, then on"
    drawn = figures.budgets(toys.flat())
    assert {title for title in METHODS if f">{title}</text>" in drawn["svg"]} == told.keys()
    assert drawn["caption"].endswith("Grey: 2 other methods, in the tables")


def test_names_stand_as_near_to_their_lines_as_a_gap_between_them_allows():
    assert charts.spread([0.0, 0.5, 1.0], 0.1) == pytest.approx([0.0, 0.5, 1.0])
    assert charts.spread([0.5, 0.5, 0.5], 0.1) == pytest.approx([0.4, 0.5, 0.6])
    assert charts.spread([], 0.1) == []
    wanted = list(np.random.default_rng(0).random(6))
    found = charts.spread(wanted, 0.2)
    assert np.diff(np.sort(found)).min() >= 0.2 - 1e-12
    assert np.argsort(found).tolist() == np.argsort(wanted).tolist()
    # against a general solver of the same problem: least squares under the gaps
    from scipy.optimize import minimize

    ordered = np.sort(wanted)
    gaps = {"type": "ineq", "fun": lambda x: np.diff(x) - 0.2}
    best = minimize(lambda x: ((x - ordered) ** 2).sum(), ordered, constraints=gaps, method="SLSQP", tol=1e-14)
    np.testing.assert_allclose(np.sort(found), best.x, atol=1e-6)


@pytest.mark.parametrize("scale", [1, 6, 0.73])
def test_between_images_a_page_shows_through(scale):
    sheet = Image.new("RGB", (4 * 10, 2 * 12), "white")
    for i in range(2):
        for j in range(4):
            sheet.paste((200, 10, 10), (10 * j, 12 * i, 10 * j + 8, 12 * i + 10))
    sheet = sheet.resize((round(40 * scale), round(24 * scale)), Image.Resampling.NEAREST)
    seen = np.asarray(tiles.clear(sheet, 4, 2, (10, 8)))
    opaque = seen[..., 3] == 255
    assert set(np.unique(seen[..., 3])) == {0, 255}
    assert not (opaque & (seen[..., :3] == 255).all(2)).any()
    if scale >= 1:  # and of the images nothing is lost
        assert (opaque == (np.asarray(sheet)[..., 1] == 10)).all()


def test_images_whose_sides_nobody_knows_are_shown_as_they_are():
    sheet = Image.new("RGB", (40, 24), "white")
    assert tiles.clear(sheet, 4, 2, None) is sheet
    assert tiles.clear(sheet, 40, 2, (10, 8)) is sheet


def test_what_all_rows_agree_on_is_said_once():
    rows = [{"title": "a", "n": 5, "status": "ok"}, {"title": "b", "n": 3, "status": "ok"}]
    view = table_view("T", {"title": "method", "n": "seeds", "status": "status"}, rows, once=("n", "status"))
    assert [column["title"] for column in view["columns"]] == ["method", "seeds"]
    assert view["caption"] == "T. In all rows: status ok"
    assert table_view("T", {"status": "status"}, rows[:1], once=("status",))["caption"] == "T"


def test_every_method_with_a_paper_says_where_it_is():
    for kind in ("matcher", "scheduler"):
        for name in registry().names(kind):
            words, address = paper(registry().get(kind, name))
            assert bool(words) == bool(links.safe(address)), name


def _third(monkeypatch, package: str, **about: Any) -> Plugin:
    cls = type("Mine", (), {"paper": "A & B, 2026", "paper_url": "https://example.org/p"} | about)
    plugin = Plugin("matcher", "mine", cls, package, "1.2")
    monkeypatch.setitem(registry().plugins, ("matcher", "mine"), plugin)
    return plugin


def test_a_third_partys_method_is_installed_by_a_command_and_leads_to_its_package(monkeypatch):
    class Held(dict):
        def get_all(self, _name):
            return ["Documentation, https://example.org/docs", "Repository, https://example.org/code"]

        def __missing__(self, _name):
            return None

    _third(monkeypatch, "mine-dd")
    monkeypatch.setattr(links.metadata, "metadata", lambda _package: Held())
    spec = SimpleNamespace(matcher=SimpleNamespace(name="mine"), scheduler=SimpleNamespace(name="gone"))
    spec.versions = {"matcher mine": "mine-dd 1.2", "network convnet": "ddbench 0.1.0"}
    run = SimpleNamespace(spec=spec)
    assert links.about(run) == [
        ("paper of mine", "A & B, 2026", "https://example.org/p"),
        ("package of mine", "mine-dd 1.2", "https://example.org/code"),
    ]
    assert links.install([run]) == "pip install mine-dd==1.2"


@pytest.mark.parametrize("text", ["--index-url=x 1", "a;b 1", "a b", "a 1 2", "a $(x)", "ddbench 9", "", "a 1\n2"])
def test_only_what_is_plainly_a_package_and_a_version_is_told_to_be_installed(text):
    assert links.install([SimpleNamespace(spec=SimpleNamespace(versions={"matcher m": text}))]) == ""


def test_a_paper_that_leads_elsewhere_than_to_the_web_is_text(monkeypatch):
    _third(monkeypatch, "no-such-package-here", paper_url="javascript:alert(1)")
    spec = SimpleNamespace(matcher=SimpleNamespace(name="mine"), scheduler=SimpleNamespace(name="single"))
    found = links.about(SimpleNamespace(spec=spec))
    assert found == [("paper of mine", "A & B, 2026", None), ("package of mine", "no-such-package-here 1.2", None)]


def test_the_commands_that_enter_a_board_have_all_of_its_rules(toys, site):
    lines = entering(toys.board).splitlines()
    assert lines[0].startswith(
        "ddbench run --dataset toy --matcher YOURS --ipc 1 --network convnet --protocol default --seed 0 --repeats 2 "
        "--students 2 -o dataset.per_class=20 -o network.width=8 -o protocol."
    )
    assert "-o protocol.steps=12" in lines[0]
    assert lines[1:] == ["ddbench submit RUN... toys --author 'Your name' --link LINK", "ddbench leaderboard build"]
    assert "--matcher YOURS" in (site / "toys.html").read_text()


def test_readmes_show_who_is_first_and_warn_of_chance_as_the_site_does(toys, site):
    lead = toys.places[1][0]
    picture = f"entries/{lead.entry.picture_file.name}"
    for text, where in ((board_text(toys), picture), (overview([toys]), f"toys/{picture}")):
        assert f"![Images of {lead.title}, 1 per class]({where})" in text
        assert clean(text.replace("\\", "")).count(CHANCE) == 1
    for name in ("index.html", "toys.html"):
        assert CHANCE in (site / name).read_text()


def test_the_foot_of_every_page_says_what_made_it(site, monkeypatch):
    from ddbench.base.machine import code

    for path in site.rglob("*.html"):
        assert f"Made by ddbench {code()} from recorded runs" in path.read_text()


# --------------------------------------------------------------------------------- reports


def _beside(folder: Path) -> None:
    numbers = {"accuracy_mean": 0.309, "n": 5, "difference": -0.019, "low": -0.024, "high": -0.014, "above": False}
    below.store(folder, [RandomRecord.model_validate(numbers | {"label_type": "hard"})])
    under_whole(folder, [Row(run=None, matcher="all 54 training images", accuracy_mean=0.93, accuracy_std=0.01, n=3)])


def test_a_report_shows_random_images_the_whole_training_set_and_where_stages_begin(run, tmp_path):
    folder = Path(shutil.copytree(run, tmp_path / run.name))
    assert "whole training set" not in report(folder)
    _beside(folder)
    held = read_json(folder / "result.json")
    assert WholeRecord.model_validate(held["whole"]) == WholeRecord(accuracy_mean=0.93, accuracy_std=0.01, n=3)
    assert [r["accuracy_mean"] for r in held["random"]] == [0.309], "the one does not push out the other"
    text = report(folder)
    drawn = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    accuracies = [svg for svg in drawn if "random, hard labels" in svg]
    assert len(accuracies) == 2, "students and checkpoints are drawn beside them"
    assert all("whole training set" in svg for svg in accuracies)
    assert sum(">stage 1</text>" in svg for svg in drawn) == 2
    assert "93.0 %, mean of 3 students" in text


def test_a_report_shows_five_pictures_of_each_stage_on_its_way(run):
    text = report(run)
    strips = re.findall(r'<div class="steps">(.*?)</div>', text, re.DOTALL)
    assert len(strips) == 2
    for strip in strips:
        told = ["start", *(f"{k} iterations" for k in range(1, 5))]
        assert re.findall(r"<figcaption>(.*?)</figcaption>", strip) == told
        assert len(set(re.findall(r'src="data:image/webp;base64,([^"]+)"', strip))) == 5


def test_a_picture_that_is_gone_is_left_out_and_one_that_is_damaged_is_named(run, tmp_path):
    folder = Path(shutil.copytree(run, tmp_path / run.name))
    looks.file(folder / "stage-0", 1).unlink()
    assert report(folder).count("<figcaption>1 iterations</figcaption>") == 1
    path = looks.file(folder / "stage-1", 2)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"images-2\.png is damaged.*delete it"):
        report(folder)
    path.unlink()
    report(folder)


# --------------------------------------------------------------------------------- in a browser


def test_on_a_phone_accuracy_is_the_second_column_and_at_a_desk_nothing_is_cut(site, browser):
    phone = Visit(browser, site / "toys.html", width=390)
    seen = phone.page.locator("table").first.locator("thead th:visible").all_inner_texts()
    assert seen[:2] == ["method", "accuracy %"]
    box = phone.page.locator("table").first.locator("thead th:visible").nth(1).bounding_box()
    assert box["x"] + box["width"] <= 390, "it is in sight"
    for width in (1280, 1920):
        for name in ("index.html", "toys.html", "toys/tesla-1.html"):
            desk = Visit(browser, site / name, width=width)
            desk.unfold()
            cut = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).length"
            assert desk.look(cut) == 0, (name, width)


def test_a_click_copies_the_command(site, browser):
    visit = Visit(browser, site / "toys" / "tesla-1.html")
    command = visit.page.locator(".command code").inner_text()
    button = visit.page.locator(".command button")
    visit.page.evaluate("navigator.clipboard.writeText = text => { window.copied = text; return Promise.resolve(); }")
    button.click()
    visit.page.wait_for_function("document.querySelector('.command button').textContent === 'Copied'")
    assert visit.look("window.copied") == command
    assert visit.quiet()


@pytest.mark.skipif(not Path(AXE).is_file(), reason="DDBENCH_AXE names no axe.min.js of axe-core")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["index.html", "toys.html", "toys/tesla-1.html"])
def test_axe_finds_nothing_serious(site, browser, scheme, name):
    page = browser.new_page(color_scheme=scheme, viewport={"width": 390, "height": 800}, bypass_csp=True)
    page.goto((site / name).as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    page.evaluate(Path(AXE).read_text())
    found = page.evaluate("axe.run()")
    assert found["passes"], "it looked"
    assert [v["id"] for v in found["violations"] if v["impact"] in ("serious", "critical")] == []
