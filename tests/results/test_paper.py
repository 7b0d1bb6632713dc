"""The table of a paper: methods by images per class, bold only where a test says so, and TeX that compiles."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Any

import pytest

from ddbench.errors import UsageError
from ddbench.results import compare
from ddbench.results.compare import Ask
from ddbench.results.paper import paper
from ddbench.results.tables import latex_text, render
from ddbench.run.row import Row

RANDOM = [0.50, 0.51, 0.49, 0.52, 0.53]
BETTER = [0.60, 0.62, 0.58, 0.63, 0.61]
CLOSE = [0.61, 0.60, 0.60, 0.62, 0.60]


def runs(matcher: str, scores: list[float], **more: Any) -> list[Row]:
    base = {"dataset": "toy_5%", "dataset_digest": "d" * 8, "scheduler": "single", "network": "convnet(width=8)"}
    base |= {"ipc": 1, "protocol": "default", "protocol_digest": "aaaaaaaabbbb", "label_type": "hard", "n": 2}
    base |= {"status": "ok", "selection": "validation", "accuracy_std": 0.1, "options": {}}
    return [
        Row(**base | {"matcher": matcher, "seed": seed, "accuracy_mean": score, "run": f"{matcher}-{seed}"} | more)
        for seed, score in enumerate(scores)
    ]


def table(rows: list[Row], **ask: Any) -> str:
    return paper(compare.compared(rows, Ask(**ask))[0])


def cells(text: str) -> dict[str, list[str]]:
    """The cells of each method."""
    lines = [line.removesuffix(r" \\").split(" & ") for line in text.splitlines() if line.endswith(r" \\")]
    return {line[0]: line[1:] for line in lines}


MANY = [*runs("random", RANDOM), *runs("tesla", BETTER, scheduler="pdd"), *runs("tesla", [0.7], ipc=10)]


def test_methods_stand_by_budgets_with_mean_and_deviation_over_seeds():
    found = cells(table(MANY))
    assert found["Images per class"] == ["1", "10"]
    assert found["random"] == [r"$51.0 \pm 1.6$", "--"]
    assert found["tesla pdd"] == [r"$\mathbf{60.8} \pm 1.9$", "--"]
    assert found["tesla"] == ["--", "$70.0$"]
    assert r"\multicolumn" not in table(MANY)
    assert r"toy\_5\%, convnet(width=8), default." in table(MANY)


def test_bold_is_what_differs_significantly_and_nothing_else():
    assert r"\mathbf{60.8}" in table(MANY)
    assert "Bold: differs significantly" in table(MANY)
    tied = table([*runs("random", RANDOM), *runs("tesla", BETTER), *runs("dm", CLOSE)])
    few = table([*runs("random", RANDOM[:2]), *runs("tesla", BETTER[:2])])
    for text in (tied, few):
        assert r"\mathbf" not in text
        assert "Bold" not in text


def test_data_networks_and_protocols_are_blocks_of_their_own():
    other = runs("dm", BETTER, dataset="digits", dataset_digest="e" * 8)
    text = table([*MANY, *other])
    assert text.count(r"\midrule") == 2
    assert r"\multicolumn{3}{l}{digits, convnet(width=8), default} \\" in text


def test_marks_stand_raised_with_a_legend():
    text = table([*runs("random", RANDOM), *runs("dm", [s - 0.2 for s in RANDOM], selection="test")])
    assert cells(text)["dm"] == [r"$31.0 \pm 1.6^{\dagger\ddagger}$"]
    assert r"$\dagger$: selected on test data." in text
    assert r"$\ddagger$: not above random images" in text


@pytest.mark.parametrize("ask", [{"per_run": True}, {}])
def test_what_has_no_means_over_seeds_is_refused(ask):
    with pytest.raises(UsageError, match="means over seeds"):
        table(MANY if ask else [], **ask)


def test_several_lines_of_one_method_in_one_cell_are_refused():
    twice = [*runs("dm", BETTER), *runs("dm", RANDOM, dataset_digest="f" * 8)]
    with pytest.raises(UsageError, match="dm has several lines at ipc 1"):
        table(twice)


def test_minus_signs_are_minus_signs_and_hyphens_are_hyphens():
    assert latex_text("-4.3") == "$-$4.3"
    assert latex_text("[-1.0, +2.0]") == "{[}$-$1.0, +2.0{]}"
    assert latex_text("k-means rrc-50 2024-01-02") == "k-means rrc-50 2024-01-02"
    chosen = compare.compared([*runs("random", BETTER), *runs("dm", RANDOM)], Ask(columns=("method", "difference")))
    assert "dm & $-$9.8" in render(chosen[0], "latex")


@pytest.mark.parametrize("text", [table(MANY), table([*MANY, *runs("dm", BETTER, dataset="a_b", protocol="x#~^")])])
def test_the_table_compiles_where_there_is_a_tex_and_is_balanced_where_there_is_none(text, tmp_path):
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 1
    assert text.count("{") == text.count("}")
    assert text.count("$") % 2 == 0
    columns = len(re.search(r"\\begin\{tabular\}\{(\w+)\}", text)[1])
    rows = [line for line in text.splitlines() if line.endswith(r" \\") and "multicolumn" not in line]
    assert {line.count(" & ") + 1 for line in rows} == {columns}
    if tex := shutil.which("pdflatex"):
        document = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n" + text + "\\end{document}\n"
        (tmp_path / "table.tex").write_text(document)
        made = subprocess.run([tex, "-halt-on-error", "table.tex"], cwd=tmp_path, capture_output=True, check=False)
        assert made.returncode == 0, made.stdout.decode()[-2000:]
