"""The report: self-contained, escaped, complete."""

import base64
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from delvm.evaluation import evaluate_students
from delvm.evaluation.report import tables
from delvm.evaluation.report.render import _environment

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
    models = {"oracle": students["oracle"], NASTY: students["half"]}
    evaluate_students(
        shards,
        tokenizer,
        models,
        output_dir=tmp_path,
        num_queries=6,
        histories={"oracle": history, "tokenizer": history},
        origins={"oracle": "trained in this run", NASTY: "shipped <weights>"},
        title="A & B",
    )
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    assert not reader.open
    return reader


def test_report_is_self_contained(page: str) -> None:
    assert not re.search(r"https?:|@import|url\(|<script|<link", page)
    ids = {values.get("id") for _, values in read(page).tags}
    for tag, values in read(page).tags:
        if tag == "img":
            assert (values["src"] or "").startswith(
                ("data:image/png;base64,", "data:image/svg+xml;base64,")
            )
            assert values["alt"]
            if "svg" in (values["src"] or ""):
                svg = base64.b64decode((values["src"] or "").partition(",")[2]).decode()
                assert not re.search(r"<script|@import|href=[\"'](?!#)|url\((?!#)", svg)
        assert "src" not in values or tag == "img"
        if "href" in values:
            assert (values["href"] or "").removeprefix("#") in ids


@pytest.mark.slow
def test_report_escapes_names(page: str) -> None:
    assert NASTY not in page
    assert "onerror" not in {name for _, values in read(page).tags for name in values}
    assert "&lt;img src=x" in page
    assert "shipped &lt;weights&gt;" in page
    assert "<title>A &amp; B</title>" in page


@pytest.mark.slow
def test_report_has_all_sections(page: str) -> None:
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
    assert page.count('class="lane"') == 2 * 3
    assert "trained in this run" in page
    # val/loss and train/loss, each of the students and of the tokenizer
    assert page.count('class="chart"') == 4
    assert 'name="viewport"' in page
    assert "prefers-color-scheme: dark" in page


def _macros() -> Any:
    return _environment().get_template("macros.html.j2").module


def test_number_formats() -> None:
    assert tables.format_value("psnr", -1.239) == "−1.24"
    assert tables.format_value("ssim", -0.00001) == "0.000"
    assert tables.format_value("accuracy", 0.1234) == "12.3"
    assert tables.format_value("accuracy", -0.005) == "−0.5"
    assert tables.format_value("perplexity", 1234.56) == "1,234.6"
    assert tables.format_value("psnr", None) == "–"
    assert tables.format_percent(-0.001) == "0%"
    assert tables.format_percent(0.555) == "56%"


def test_best_of_a_group_is_lowest_loss_and_highest_accuracy() -> None:
    def interval(mean: float | None) -> dict[str, float | None]:
        return {"mean": mean, "low": None, "high": None}

    loss = {"loss": interval(2.0), "accuracy": interval(0.5), "perplexity": interval(7.4)}
    worse = {"loss": interval(3.0), "accuracy": interval(None), "perplexity": interval(20.0)}
    students = {
        "a": {"loss": {"all": worse, "answer": loss}},
        "b": {"loss": {"all": loss, "answer": worse}},
    }
    groups = tables.loss_table({"students": students}).groups
    best = [[sum(cell.best for cell in row.cells) for row in group.rows] for group in groups]
    assert best == [[0, 3], [3, 0]]
    html = str(_macros().data_table(tables.loss_table({"students": students})))
    bodies = html.split("<tbody>")[1:]
    rows = [body.split("<tr>")[1:] for body in bodies]
    assert [[row.count('class="best"') for row in body] for body in rows] == best


def test_large_images_are_reduced() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (400, 200, 3), dtype=np.uint8)
    tag = _macros().img(Image.fromarray(noise), 'a "b"', 100)
    assert 'width="50" height="100"' in tag
    assert "a &#34;b&#34;" in tag
    small = _macros().img(Image.new("RGB", (16, 16)), "x", 100)
    assert 'class="tiny"' in small
    assert 'width="16"' in small
