"""The page: self-contained, escaped, complete."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from delvm.evaluation.report import tables
from delvm.evaluation.students import run

NASTY = '<img src=x onerror="alert(1)">'
VOID = {"meta", "img"}


class Reader(HTMLParser):
    """Collects every attribute and checks that tags close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def page(shards: Path, tokenizer: Any, students: dict[str, Any], tmp_path: Path) -> str:
    history = tmp_path / "metrics.csv"
    history.write_text("step,train/loss,val/loss\n0,5.0,\n10,3.0,\n10,,3.5\n")
    models = {"sage": students["sage"], NASTY: students["pupil"]}
    run(
        shards,
        tokenizer,
        models,
        output=tmp_path,
        queries=6,
        histories={"sage": history, "tokenizer": history},
        origins={"sage": "trained in this run", NASTY: "shipped <weights>"},
        title="A & B",
    )
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    assert not reader.open
    return reader


def test_refers_to_nothing_outside_itself(page: str) -> None:
    assert not re.search(r"https?:|@import|url\(|<script|<link", page)
    ids = {values.get("id") for _, values in read(page).tags}
    for tag, values in read(page).tags:
        if tag == "img":
            assert (values["src"] or "").startswith("data:image/png;base64,")
            assert values["alt"]
        assert "src" not in values or tag == "img"
        if "href" in values:
            assert (values["href"] or "").removeprefix("#") in ids


def test_names_are_escaped(page: str) -> None:
    assert NASTY not in page
    assert "onerror" not in {name for _, values in read(page).tags for name in values}
    assert "&lt;img src=x" in page
    assert "shipped &lt;weights&gt;" in page
    assert "<title>A &amp; B</title>" in page


def test_everything_has_its_place(page: str) -> None:
    for part in (
        "summary",
        "task-derain",
        "training",
        "held-out",
        "task-edges",
        "guide",
        "settings",
    ):
        assert page.count(f'id="{part}"') == 1
    assert page.index('id="held-out"') < page.index('id="task-edges"')
    assert page.index('id="task-derain"') < page.index('id="held-out"')
    assert page.count('class="lane ') == 2 * 3
    assert "trained in this run" in page
    # a chart for val/loss and train/loss of the student, and both again of the tokenizer
    assert page.count('class="chart"') == 4
    assert 'name="viewport"' in page
    assert "prefers-color-scheme: dark" in page


def test_numbers_as_people_write_them() -> None:
    assert tables.number("psnr", -1.239) == "−1.24"
    assert tables.number("ssim", -0.00001) == "0.000"
    assert tables.number("accuracy", 0.1234) == "12.3"
    assert tables.number("perplexity", 1234.56) == "1,234.6"
    assert tables.number("psnr", None) == "–"
    assert tables.percent(-0.001) == "0%"
    assert tables.percent(0.555) == "56%"


def test_best_of_a_group_is_marked_low_for_losses_high_for_scores() -> None:
    def interval(mean: float | None) -> dict[str, float | None]:
        return {"mean": mean, "low": None, "high": None}

    loss = {"loss": interval(2.0), "accuracy": interval(0.5), "perplexity": interval(7.4)}
    worse = {"loss": interval(3.0), "accuracy": interval(None), "perplexity": interval(20.0)}
    students = {
        "a": {"loss": {"all": worse, "answer": loss}},
        "b": {"loss": {"all": loss, "answer": worse}},
    }
    table = tables.losses({"students": students})
    bodies = table.split("<tbody>")[1:]
    assert [[row.count('class="best"') for row in b.split("<tr>")[1:]] for b in bodies] == [
        [0, 3],
        [3, 0],
    ]


def test_large_pictures_are_reduced() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (400, 200, 3), dtype=np.uint8)
    tag = tables.picture(Image.fromarray(noise), 'a "b"', 100)
    assert 'width="50" height="100"' in tag
    assert 'alt="a &quot;b&quot;"' in tag
    small = tables.picture(Image.new("RGB", (16, 16)), "x", 100)
    assert 'class="tiny"' in small
    assert 'width="16"' in small
