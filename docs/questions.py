"""Write the pages of ``questions/``: what an accuracy is due to, whether coresets do as well, and so on.

All figures come from ``results/questions-*.json`` (``python benchmarks/questions.py`` makes these); a test compares the
pages with what ``python docs/questions.py`` would write. With fewer than five seeds no finding is stated.
"""

from __future__ import annotations

from pathlib import Path

from question_coresets import coresets_page, larger_page
from question_images import images_page
from question_labels import labels_page
from question_stages import stages_page
from question_tables import records

PAGES = Path(__file__).with_name("questions")


def pages() -> dict[Path, str]:
    """All pages, by their files."""
    made = {
        "labels": labels_page,
        "coresets": coresets_page,
        "larger": larger_page,
        "images": images_page,
        "stages": stages_page,
    }
    return {PAGES / f"{name}.md": write(records(name)) for name, write in made.items()}


if __name__ == "__main__":
    PAGES.mkdir(exist_ok=True)
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
