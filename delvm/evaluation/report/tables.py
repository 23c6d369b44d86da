"""Tables and picture strips of a report, as HTML."""

import base64
import io
from collections.abc import Callable
from html import escape
from typing import Any

from PIL import Image

from delvm.evaluation.report.plots import colour
from delvm.evaluation.scoring import Example

LABELS = {"psnr": "PSNR, dB", "ssim": "SSIM", "ms_ssim": "MS-SSIM", "miou": "mIoU", "pck": "PCK"}
LOWER_IS_BETTER = ("loss", "perplexity")
_DIGITS = {"psnr": 2, "loss": 3, "perplexity": 1}
_SMALL = 96  # pictures up to this side are shown pixel by pixel
_LARGE = 160  # larger ones are reduced to this side, which keeps a report light

Interval = dict[str, Any]


def label(metric: str) -> str:
    """A metric as people write it, with its unit."""
    return LABELS.get(metric, metric)


def number(metric: str, value: float | None) -> str:
    """A value with the digits that suit its metric; a dash where there is none."""
    if value is None:
        return "–"
    if metric == "accuracy":
        return f"{100 * value:.1f}"
    digits = _DIGITS.get(metric, 3)
    rounded = round(value, digits) + 0.0  # + 0.0 makes 0 of -0
    return f"{rounded:,.{digits}f}".replace("-", "−")


def percent(value: float | None) -> str:
    """A share as a whole percentage; a dash where there is none."""
    return "–" if value is None else f"{round(100 * value)}%".replace("-", "−")


def _cell(metric: str, interval: Interval, best: bool) -> str:
    """A table cell: the mean, and below it the interval."""
    mean, low, high = (number(metric, interval[key]) for key in ("mean", "low", "high"))
    around = "" if interval["low"] is None else f'<span class="ci">{low} to {high}</span>'
    return f'<td{_class("best" if best else "")}><span class="mean">{mean}</span>{around}</td>'


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


Row = tuple[str, dict[str, Interval]]  # head as HTML, metric -> interval


def group(title: str, metrics: list[str], rows: list[Row], kind: str = "") -> str:
    """Rows under a title; the best of each column is marked where there are several."""
    tops = {
        metric: _best(metric, [values[metric]["mean"] for _, values in rows]) for metric in metrics
    }
    lines = []
    if title:
        span = len(metrics) + 1
        lines.append(
            f'<tr class="group"><th colspan="{span}" scope="rowgroup">{escape(title)}</th></tr>'
        )
    for place, (head, values) in enumerate(rows):
        cells = "".join(_cell(m, values[m], len(rows) > 1 and tops[m] == place) for m in metrics)
        lines.append(f'<tr{_class(kind)}><th scope="row">{head}</th>{cells}</tr>')
    return f"<tbody>{''.join(lines)}</tbody>"


def _best(metric: str, means: list[float | None]) -> int | None:
    """The place of the best mean; None where there is no number at all."""
    known = {place: mean for place, mean in enumerate(means) if mean is not None}
    choose = min if metric in LOWER_IS_BETTER else max
    return choose(known, key=lambda place: known[place]) if known else None


def table(caption: str, head: list[str], body: list[str]) -> str:
    columns = "".join(f'<th scope="col">{escape(name)}</th>' for name in ["", *head])
    name = escape(caption, quote=True)
    return (
        f'<figure class="table"><figcaption>{name}</figcaption><div class="scroll" tabindex="0">'
        f'<table aria-label="{name}"><thead><tr>{columns}</tr></thead>{"".join(body)}</table>'
        "</div></figure>"
    )


def scores(result: dict[str, Any]) -> str:
    """Ceiling, students and baselines of a task by every metric."""
    metrics, forms = result["metrics"], result["baselines"]
    mark = {result["best_baseline"]: ' <span class="tag">best</span>'}
    body = [
        group("", metrics, [("Ceiling", result["ceiling"])]),
        group("Models", metrics, _students(result, lambda one: one["scores"])),
        group(
            "Baselines after the tokenizer’s round trip",
            metrics,
            [(plain(n) + mark.get(n, ""), form["round_trip"]) for n, form in forms.items()],
        ),
        group(
            "Baselines as they are",
            metrics,
            [(plain(n), f["raw"]) for n, f in forms.items()],
            "raw",
        ),
    ]
    head = [label(m) + (" ★" if m == result["primary"] else "") for m in metrics]
    known = result["ceiling"][result["primary"]]["n"]
    return table(f"Scores: mean over {known} queries, 95% interval; higher is better", head, body)


def losses(result: dict[str, Any]) -> str:
    """Loss, accuracy and perplexity of each student on true sentences."""
    figures = {"loss": "loss, nats", "accuracy": "accuracy, %", "perplexity": "perplexity"}
    body = []
    for span, title in (("all", "All tokens of the sentence"), ("answer", "Tokens of the answer")):
        rows = _students(result, lambda one, span=span: one["loss"][span])  # type: ignore[misc]
        body.append(group(title, list(figures), rows))
    return table("Next token, given the true tokens before it", list(figures.values()), body)


def _students(result: dict[str, Any], choose: Callable[[Any], dict[str, Interval]]) -> list[Row]:
    students = enumerate(result["students"].items())
    return [(model_name(name, place), choose(one)) for place, (name, one) in students]


def plain(name: str) -> str:
    """A name as it is shown: escaped, and with spaces."""
    return escape(name.replace("_", " "))


def model_name(name: str, place: int) -> str:
    """A model's name with its colour."""
    return f'<span class="{colour(place)}"><span class="swatch"></span>{escape(name)}</span>'


def strip(task: str, query: int, example: Example) -> str:
    """One query: its prompt's pairs, the query, every answer, the truth and its round trip."""
    what = f"{task}, query {query}"
    pairs = "".join(
        f'<div class="pair">{picture(one, f"{what}, example {i}: input", _SMALL)}'
        f"{picture(two, f'{what}, example {i}: target', _SMALL)}</div>"
        for i, (one, two) in enumerate(example.pairs, start=1)
    )
    shown = [_figure(example.query, "query", what, "query")]
    for i, (name, answer) in enumerate(example.answers.items()):
        shown.append(_figure(answer, name, f"{what}: answer of", f"answer {colour(i)}"))
    shown.append(_figure(example.truth, "truth", what, "truth"))
    shown.append(_figure(example.round_trip, "truth, round trip", what, "truth"))
    return (
        f'<div class="example"><div class="prompt">{pairs}</div>'
        f'<div class="answers">{"".join(shown)}</div></div>'
    )


def _figure(image: Image.Image, caption: str, what: str, kind: str) -> str:
    return (
        f'<figure class="{kind}">{picture(image, f"{what} {caption}", _LARGE)}'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def picture(image: Image.Image, alt: str, limit: int) -> str:
    """A picture inside the page, reduced to `limit` pixels a side if it is larger."""
    if max(image.size) > limit:
        image = image.copy()
        image.thumbnail((limit, limit), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    width, height = image.size
    kind = ' class="tiny"' if max(image.size) <= _SMALL else ""
    return (
        f'<img{kind} src="data:image/png;base64,{data}" width="{width}" height="{height}" '
        f'alt="{escape(alt, quote=True)}">'
    )
