"""Pages in a real browser: sorting, filtering, colours, phones; and that whatever a name holds stays text."""

from __future__ import annotations

import json
import re
import shutil
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from boardkit import HOSTILE, board, made, packed, pictured, posted
from browser import Visit, chromium

from ddbench.base.cache import read_json, write_json
from ddbench.boards import charts, figures, links, site_data
from ddbench.boards import site as pages
from ddbench.boards.entry import Entry, EntryRun, shown
from ddbench.boards.ranking import Place, standings
from ddbench.boards.report import report
from ddbench.errors import DataError, UsageError
from ddbench.results.aggregate import Line
from ddbench.run.row import Row

FIVE = list(range(5))
LOW = [0.50, 0.51, 0.49, 0.52, 0.53]
HIGH = [0.60, 0.62, 0.58, 0.63, 0.61]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return made(tmp_path_factory.mktemp("runs"), "dm", seeds=(0,), scheduler="pdd", ipc=2, matcher__steps=4)[0]


@pytest.fixture(scope="module")
def site(tmp_path_factory, run) -> Path:
    root = tmp_path_factory.mktemp("boards")
    toys = board(root, run, seeds=FIVE, title="Toys & <textures>")
    seen = pictured(toys, run)
    for name, means, about in (
        ("random", LOW, {"matcher": "random"}),
        ("dm", HIGH, {"matcher": "dm"}),
        ("dm-two", HIGH, {"matcher": "dm", "ipc": 2}),
        ("gone", [None] * 5, {"matcher": "tesla"}),
    ):
        entry = posted(toys, run, name, means, picture=seen, **about)
        if name == "dm":
            _also(entry, "vgg11")
            write_json(toys.folder / "entries" / f"{name}.json", entry)
    out = tmp_path_factory.mktemp("site")
    pages.write(pages.site([standings(toys)]), out)
    return out


def _also(entry: dict[str, Any], network: str) -> None:
    """An evaluation on another network beside that on the board's."""
    for part in entry["runs"]:
        part["evaluations"].append(part["evaluations"][0] | {"network": network})


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


# --------------------------------------------------------------------------------- without a browser


def test_a_page_forbids_what_it_does_not_bring(site):
    text = (site / "toys.html").read_text()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    assert "default-src &#39;none&#39;" in policy
    assert policy.count("sha256-") == 2
    assert "unsafe" not in policy
    assert not re.findall(r"""\sstyle=|\son\w+=["']|javascript:|https?://(?!www\.w3\.org)""", text)


def test_pages_are_the_same_for_the_same_entries(site, run, tmp_path):
    toys = board(tmp_path, run, seeds=FIVE)
    posted(toys, run, "one", LOW)
    assert pages.site([standings(toys)]) == pages.site([standings(toys)])


def test_every_number_that_is_drawn_is_in_a_table(site):
    text = (site / "toys.html").read_text()
    tables = re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL)
    for words in ("51.0 ± 1.6", "60.8 ± 1.9", "Accuracies on other networks"):
        assert words in tables, words
    entry = re.sub(r"<svg.*?</svg>", "", (site / "toys" / "dm.html").read_text(), flags=re.DOTALL)
    for words in ("Losses", "Selection checks", "Students, as fractions"):
        assert words in entry, words


def place(
    name: str, mean: float | None, *, seeds: tuple[int, ...] = (0,), total: int | None = None, **row: Any
) -> Place:
    """An entry with these numbers, of a machine called ``device``."""
    entry = Entry(format=1, method=name, command="", runs=[], file=Path(f"{name}.json"))
    averaged = Row(**{"ipc": 1, "accuracy_mean": mean, "n": len(seeds)} | row)
    scores = {} if mean is None else dict.fromkeys(seeds, mean)
    bounds = None if mean is None else (mean - 0.05, mean + 0.05)
    return Place(entry, Line([averaged], averaged, scores, total_bytes=total, bounds=bounds), name)


def on_front(costs: dict[str, Any], title: str) -> list[str]:
    """The methods that the table of costs names as beaten by none in the column with this title."""
    (at,) = [i for i, column in enumerate(costs["columns"]) if column["title"].startswith(title)]
    return [row[0]["text"] for row in costs["rows"] if row[at]["text"] == "yes"]


def test_each_ranking_is_drawn_with_its_intervals_and_seeds():
    rows = [place("dm", 0.6), place("random", 0.5)]
    gone = place("gone", None)
    drawn = figures.ranked_view([*rows, gone])["svg"]
    assert [name for name in ("dm", "random", "gone") if f"{name}</text>" in drawn] == ["dm", "random"]
    assert figures.ranked_view([rows[0], gone]) is None, "one method is not a ranking"


def test_seconds_are_judged_within_an_ipc_and_what_takes_no_time_as_one_second():
    costs = [
        ("random", 1, 0.002, 0.5),
        ("again", 1, 0.9, 0.4),
        ("dm", 1, 9.0, 0.6),
        ("mtt", 1, 9.5, 0.55),
        ("slow", 10, 99.0, 0.7),
    ]
    places = [
        place(name, mean, total=ipc * 100, ipc=ipc, distil_seconds=seconds, expert_seconds=0.0, accuracy_std=0.01)
        for name, ipc, seconds, mean in costs
    ]
    drawn, table = figures.figures(places)
    assert on_front(table, "Pareto: seconds") == ["dm", "random", "slow"]
    assert on_front(table, "Pareto: bytes") == ["dm", "slow"]
    assert [figure["caption"].partition(". ")[0] for figure in drawn] == [
        "Accuracy against bytes stored",
        "Accuracy against seconds, 1 per class",
        "Accuracy against seconds, 10 per class",
    ]


def test_a_cost_that_nobody_knows_is_not_drawn_as_none():
    drawn, table = figures.figures([place("a", 0.5, total=100, distil_seconds=3.0)])
    assert [figure["caption"].partition(".")[0] for figure in drawn] == ["Accuracy against bytes stored"]
    assert not any(column["title"].startswith("Pareto: seconds") for column in table["columns"])


def test_seconds_of_different_machines_are_not_drawn_together():
    places = [
        place(name, mean, total=100, distil_seconds=s, expert_seconds=0.0, device=machine)
        for name, s, machine, mean in (("a", 3.0, "GPU", 0.6), ("b", 30.0, "CPU", 0.5))
    ]
    drawn, table = figures.figures(places)
    assert on_front(table, "Pareto: seconds") == ["a", "b"]
    assert sum("1 per class, on " in figure["caption"] for figure in drawn) == 2


def test_another_network_is_shown_where_all_seeds_were_tested_on_it():
    row = place("a", 0.5, seeds=(0, 1))
    whole, part = (place("a", 0.4, seeds=s, network=n) for n, s in (("mlp", (0, 1)), ("vgg11", (1,))))
    table = figures.transfers([row], {"a": [whole, part]}, "convnet")["table"]
    assert [column["title"] for column in table["columns"]] == ["method", "ipc", "convnet %", "mlp %"]
    assert figures.transfers([row], {"a": [part]}, "convnet") is None


def test_the_report_tells_the_numbers_that_count(run):
    """An evaluation under other rules, by other seeds or by fewer students is not the accuracy of a run."""
    own = packed(run)
    first = own["evaluations"][0]
    wrong = first | {"students": [{"accuracy": 0.99, "ece": 0.0}], "n": 1}
    odd = [wrong | {"protocol_digest": "0" * 12}, wrong | {"seed": 7}, wrong, wrong | {"network": "mlp"}]
    expected = pytest.approx(100 * sum(s["accuracy"] for s in first["students"]) / len(first["students"]), abs=0.01)
    for evaluations in ([first, *odd], [*odd, first]):
        assert site_data._run(EntryRun.model_validate(own | {"evaluations": evaluations}))["accuracy"] == expected
    lost = first | {"students": [*first["students"], {"accuracy": 0.1, "ece": 0.0, "diverged": 1.0}]}
    assert site_data._run(EntryRun.model_validate(own | {"evaluations": [lost]}))["status"] == "diverged"


def test_checks_on_test_images_are_called_so(run):
    own = packed(run)
    for selection in ("validation", "test"):
        part = EntryRun.model_validate(own | {"result": own["result"] | {"selection": selection}})
        figure, _ = site_data._checks("dm", [part])
        assert f"on {selection} images" in figure["svg"]
        assert ("†" in figure["caption"]) == (selection == "test")


def test_a_chart_has_a_name_and_neither_styles_nor_scripts():
    drawn = charts.lines([charts.Series("a", [1, 10], [50, 60], [1, None])], "T <&", "About", "x", "y", log=True)
    root = ET.fromstring(drawn)
    assert root.get("role") == "img"
    named = {e.get("id"): e.text for e in root if e.tag.endswith(("title", "desc"))}
    assert list(named.values()) == ["T <&", "About"]
    assert root.get("aria-labelledby") == " ".join(named)
    assert "style" not in drawn
    assert "<script" not in drawn
    assert "currentColor" in drawn
    assert charts.NEUTRAL not in drawn


def test_charts_on_one_page_share_no_identifiers(site):
    text = (site / "toys.html").read_text()
    found = re.findall(r'\sid="([^"]+)"', text)
    assert len(found) == len(set(found))
    assert set(re.findall(r'href="#([^"]+)"', text)) <= set(found)


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_without_a_package_the_message_says_what_to_install(run, monkeypatch, package):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=rf"pages need {package} .*pip install {package}"):
        report(run)


def test_the_front_holds_what_nothing_beats_in_both():
    points = [(1, 50), (2, 40), (2, 60), (3, 60), (4, 80), (4, 70)]
    assert charts.pareto(points) == [(1, 50), (2, 60), (4, 80)]
    assert charts.pareto([]) == []


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_names_are_text_in_charts(kind):
    name = shown(HOSTILE[kind])
    drawn = charts.scatter([charts.Series(name, [1, 2], [3, 4])], [(1, 3), (2, 4)], name, name, "x")
    root = ET.fromstring(drawn)
    drawn_with = {"svg", "title", "desc", "g", "path", "text", "use", "defs", "clipPath", "rect", "tspan"}
    assert {e.tag.rpartition("}")[2] for e in root.iter()} <= drawn_with


def test_a_link_leads_to_the_web_or_nowhere():
    assert links.safe("https://example.org/a?b=c#d") == "https://example.org/a?b=c#d"
    for bad in (
        "javascript:alert(1)",
        "data:text/html,x",
        " https://x",
        "https://x y",
        'https://x"y',
        "//x",
        "file:///x",
    ):
        assert links.safe(bad) is None


def test_the_report_of_a_run_tells_all_about_it(run):
    write_json(
        run / "controls.json",
        {
            "matrix": [
                {
                    "images": "distilled",
                    "labels": "hard",
                    "augmentation": "on",
                    "accuracy_mean": 0.5,
                    "accuracy_std": 0.1,
                    "n": 2,
                    "student_lr": "own",
                    "selection": "validation",
                }
            ],
            "scores": {"IOR": 0.21},
            "formulas": {"IOR": "a - b"},
            "source": "S",
        },
    )
    text = report(run)
    for words in (
        "Stage 1 of 2",
        "Stage 2 of 2",
        "Losses",
        "Selection checks",
        "Students",
        "Controls",
        "IOR",
        "0.21",
        "ddbench run --dataset toy --matcher dm --scheduler pdd --ipc 2",
        "selected on",
    ):
        assert words in text, words
    for student in packed(run)["evaluations"][0]["students"]:
        assert f"{student['accuracy']:.4g}" in text


@pytest.mark.parametrize(
    "held",
    [[], {}, {"matrix": {}, "scores": {}}, {"matrix": [{}], "scores": {}}, {"matrix": [], "scores": {"IOR": "x"}}],
)
def test_controls_that_are_none_are_refused(run, tmp_path, held):
    folder = Path(shutil.copytree(run, tmp_path / run.name))
    write_json(folder / "controls.json", held)
    with pytest.raises(DataError, match=r"controls.json is damaged"):
        report(folder)


def test_the_report_says_how_a_run_compares_with_random_images(run, tmp_path):
    folder = Path(shutil.copytree(run, tmp_path / run.name))
    assert "beside random images" not in report(folder)
    numbers = {"accuracy_mean": 0.309, "n": 5, "difference": -0.019, "low": -0.024, "high": -0.014, "above": False}
    held = [
        numbers | {"label_type": "hard"},
        {"label_type": "teacher", "accuracy_mean": 0.4, "difference": 0.1, "n": 1},
    ]
    write_json(folder / "result.json", read_json(folder / "result.json") | {"random": held}, sealed=True)
    text = report(folder)
    assert "beside random images, hard labels" in text
    assert "not above (30.9 %, difference -1.9 points, 95 % interval [-2.4, -1.4])" in text
    assert "not known (40.0 %, difference +10.0 points)" in text


def test_the_report_shows_what_experts_reach_and_what_the_run_saw_of_itself(run, tmp_path):
    folder = Path(shutil.copytree(run, tmp_path / run.name))
    result = read_json(folder / "result.json")
    result["stages"][0]["experts"] = {"epochs": [0, 1, 7], "accuracies": [0.1, 0.7912, 0.958], "images": 1000}
    result["warnings"] = ["the student closes hardly any of the distance <script>"]
    write_json(folder / "result.json", result, sealed=True)
    text = report(folder)
    assert "Accuracy of the experts of" in text
    assert ">79.12<" in text
    assert "a set teaches no more than its targets know" in text
    assert "the student closes hardly any of the distance &lt;script&gt;" in text


def test_the_report_of_a_run_that_diverged_says_why(run, tmp_path):
    folder = Path(shutil.copytree(run, tmp_path / run.name))
    result = read_json(folder / "result.json")
    kept = {n: result[n] for n in ("dataset", "selection", "machine", "finished", "distil_seconds")}
    write_json(folder / "result.json", kept | {"status": "diverged", "error": "the loss exploded", "sha256": {}})
    shutil.rmtree(folder / "evaluations")
    text = report(folder)
    assert "the loss exploded" in text
    assert "<img" not in text


# --------------------------------------------------------------------------------- in a browser


def test_a_click_sorts_and_a_second_click_turns_round(site, browser):
    visit = Visit(browser, site / "toys.html")
    start = ["dm", "random", "tesla"]
    assert visit.column(1) == start
    head = visit.page.locator("table").first.locator("th[scope=col]")
    names = head.all_inner_texts()
    method, accuracy = names.index("method"), names.index("accuracy %")
    head.nth(accuracy).locator("button").click()
    assert head.nth(accuracy).get_attribute("aria-sort") == "descending"
    assert visit.column(1) == start
    head.nth(accuracy).locator("button").click()
    assert head.nth(accuracy).get_attribute("aria-sort") == "ascending"
    assert visit.column(1) == [start[1], start[0], start[2]]  # what is missing comes last either way
    head.nth(method).locator("button").focus()
    visit.page.keyboard.press("Enter")
    visit.page.keyboard.press("Space")
    assert visit.column(1) == sorted(start, reverse=True)
    assert visit.look("document.querySelectorAll('[aria-sort]').length") == 1
    assert visit.quiet()


def test_the_filter_hides_rows_and_says_how_many_are_left(site, browser):
    visit = Visit(browser, site / "toys.html")
    visit.page.get_by_label("Filter rows").fill("TESLA div")
    assert visit.column(1) == ["tesla"]
    assert visit.page.locator("[role=status]").inner_text() == "1 of 4 rows"
    visit.page.get_by_label("Filter rows").fill("")
    assert visit.page.locator("[role=status]").inner_text() == "4 of 4 rows"
    assert visit.quiet()


def test_a_method_leads_to_the_page_of_its_entry_and_an_old_address_to_its_card(site, browser):
    visit = Visit(browser, site / "toys.html#dm")
    assert visit.look("document.querySelector(':target').innerText").startswith("dm")
    visit.page.locator("tbody a", has_text="dm").first.click()
    assert visit.page.title() == "dm, 1 per class"
    assert visit.look("[...document.images].map(i => i.naturalWidth > 0)") == [True, True]
    visit.page.get_by_role("link", name="Toys & <textures>").click()
    assert visit.page.url.endswith("toys.html")
    assert visit.quiet()


def test_pages_link_to_each_other_without_a_network(site, browser):
    visit = Visit(browser, site / "index.html")
    visit.page.get_by_role("link", name="Toys & <textures>").first.click()
    assert visit.page.title() == "Toys & <textures>"
    visit.page.get_by_role("link", name="All leaderboards").click()
    assert visit.page.url.endswith("index.html")
    assert visit.quiet()


def test_the_skip_link_is_first_and_shows_when_focused(site, browser):
    visit = Visit(browser, site / "toys.html")
    visit.page.keyboard.press("Tab")
    assert visit.look("document.activeElement.className") == "skip"
    assert visit.look("document.activeElement.getBoundingClientRect().left") >= 0
    assert visit.look("getComputedStyle(document.activeElement).outlineStyle") == "solid"


@pytest.mark.parametrize("name", ["toys.html", "index.html"])
def test_a_phone_scrolls_tables_and_not_the_page(site, browser, name):
    visit = Visit(browser, site / name, width=360)
    visit.unfold()
    assert visit.look("document.documentElement.scrollWidth") <= 360
    heights = "[...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height)"
    assert visit.look(f"Math.min(99, ...{heights}.filter(Boolean))") >= 8


def contrast(visit: Visit, what: str) -> float:
    """The ratio of luminances of an element's colour and the page's (WCAG 2.2)."""

    def luminance(text: str) -> float:
        parts = [int(v) / 255 for v in re.findall(r"\d+", text)[:3]]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    ink, page = (
        luminance(visit.look(f"getComputedStyle(document.querySelector({json.dumps(where)})).{name}"))
        for where, name in ((what, "fill" if "svg" in what else "color"), ("body", "backgroundColor"))
    )
    return (max(ink, page) + 0.05) / (min(ink, page) + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible_in_light_and_dark(site, browser, scheme):
    visit = Visit(browser, site / "toys.html", scheme=scheme)
    dark = scheme == "dark"
    assert (visit.look("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)") != dark
    for what in ("body", ".soft", "a[href^='#e'], tbody a", "caption", "svg.chart text"):
        assert contrast(visit, what) >= 4.5, what
    for colour in charts.COLOURS:
        visit.look(
            f"document.body.insertAdjacentHTML('beforeend', '<b id=probe></b>');"
            f"document.getElementById('probe').style.color = '{colour}'"
        )
        assert contrast(visit, "#probe") >= 3, colour
        visit.look("document.getElementById('probe').remove()")


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_entries_stay_text(run, tmp_path, browser, kind):
    text = HOSTILE[kind]
    toys = board(tmp_path / "boards", run, seeds=FIVE)
    entry = posted(
        toys,
        run,
        "one",
        LOW,
        method=text,
        author=text,
        link=text,
        note=text,
        date=text,
        command=text,
        picture=pictured(toys, run) | {"classes": [text] * 3},
    )
    for part in entry["runs"]:
        part["result"]["machine"] = {"device": text, "torch": text, "ddbench": text}
        part["spec"]["versions"] = {text: text}
        part["evaluations"].append(part["evaluations"][0] | {"network": text})
        part["evaluations"][0]["students"][0][text] = 0.5
        part["evaluations"][0]["students"][1][text] = 0.5
    write_json(toys.folder / "entries" / "one.json", entry)
    pages.write(pages.site([standings(toys)]), tmp_path / "site")
    for name in ("index.html", "toys.html", "toys/one.html"):
        visit = Visit(browser, tmp_path / "site" / name, width=360)
        visit.unfold()
        assert visit.look("window.hacked") is None
        assert visit.look("document.querySelectorAll('script').length") == 1
        assert visit.look("document.documentElement.scrollWidth") <= 360
        assert visit.quiet()
        if name == "toys.html" and kind in ("script", "template", "markup"):
            assert text in visit.page.locator("main").inner_text()
        assert not re.search(
            r"[\x00-\x08\x0b-\x1f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]", visit.page.content()
        )


def test_the_report_of_a_run_is_quiet_in_a_browser(run, tmp_path, browser):
    (tmp_path / "report.html").write_text(report(run))
    visit = Visit(browser, tmp_path / "report.html", width=360, scheme="dark")
    visit.unfold()
    assert visit.look("document.documentElement.scrollWidth") <= 360
    assert visit.quiet()
