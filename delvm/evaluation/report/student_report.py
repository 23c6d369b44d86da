"""The report of an evaluation of students, as one HTML page."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from delvm.evaluation.report import plots as charts
from delvm.evaluation.report import tables
from delvm.evaluation.report.document import document, guide
from delvm.evaluation.scoring import Example
from delvm.evaluation.training_curves import History, thinned

GUIDE = (
    (
        "The range",
        "Every answer is drawn by the tokenizer. So the truth, encoded and decoded, is about the "
        "best that any model can draw: that is the ceiling, 100%. An answer that needs no model is "
        "what a model must beat: the best of three, after the same round trip through the "
        "tokenizer and by the task's primary metric (★), is 0%. A model's share is (answer − "
        "baseline) / (ceiling − baseline), of the means.",
    ),
    (
        "The baselines",
        "Copy query: the query itself. Nearest target: the target of the example whose input is "
        "nearest to the query, pixel by pixel. Mean target: the mean of the targets that examples "
        "are drawn from. As they are, they did not pass the tokenizer, and may score above the "
        "ceiling without saying anything about a model.",
    ),
    (
        "The intervals",
        "95% percentile bootstrap over queries. Differences and shares resample all methods "
        "together. They tell how far a number depends on which queries were asked, not how far it "
        "depends on the seed of the training. In tables, bold is the best of its group.",
    ),
    (
        "The metrics",
        "PSNR (in dB) and SSIM compare pixels. mIoU matches predicted to true instances and takes "
        "the mean of their overlaps. PCK is the share of true keypoints that were found within a "
        "tenth of the picture's side. Pictures whose truth holds nothing to find are left out.",
    ),
    (
        "Next-token numbers",
        "Loss, accuracy and perplexity are teacher-forced: each token of a true sentence (pairs, "
        "query, truth) is predicted from the true tokens before it. Perplexity is e to the mean "
        "loss. Over all tokens they are what the DeLVM paper reports. They depend on the "
        "tokenizer, so compare them only between models that share one.",
    ),
)


def page(
    metrics: Mapping[str, Any],
    examples: Mapping[str, Sequence[Example]],
    histories: Mapping[str, History],
) -> str:
    """The whole report.

    Args:
        metrics: What metrics.json holds.
        examples: Of each task.
        histories: Name of a model -> the curves of its training.
    """
    trained = [name for name, result in metrics["tasks"].items() if result["trained"]]
    held_out = [name for name in metrics["tasks"] if name not in trained]
    parts = [
        _header(metrics),
        _summary(metrics, trained, held_out),
        *(_task(name, metrics["tasks"][name], examples[name]) for name in trained),
        _training(metrics, histories),
        _held_out(metrics, held_out, examples),
        guide(GUIDE),
        settings(metrics),
    ]
    return document(metrics["title"], parts)


def _header(metrics: Mapping[str, Any]) -> str:
    s, links = metrics["settings"], []
    for name in metrics["tasks"]:
        links.append(f'<a href="#task-{escape(name, quote=True)}">{tables.plain(name)}</a>')
    return (
        f"<header><h1>{escape(metrics['title'])}</h1>"
        f'<p class="lede">{s["queries"]} held-out queries a task, each answered from '
        f"{s['pairs']} example pairs of its own.</p>"
        f'<nav aria-label="Tasks">{"".join(links)}</nav></header>'
    )


def _summary(metrics: Mapping[str, Any], trained: list[str], held_out: list[str]) -> str:
    results = metrics["tasks"]
    shares = [one["closed"] for result in results.values() for one in result["students"].values()]
    span = charts.Span.around(shares)
    models = "".join(
        _standing(name, place, facts)
        for place, (name, facts) in enumerate(metrics["students"].items())
    )
    parts = [f'<section id="summary"><h2>In short</h2><ul class="models">{models}</ul>']
    for title, names in (("Trained tasks", trained), ("Held out of training", held_out)):
        if names:
            ranges = "".join(_range(name, results[name], span) for name in names)
            parts.append(f'<h3>{title}</h3><div class="ranges">{ranges}</div>')
    parts.append(
        '<p class="quiet">Left: the best baseline after the tokenizer’s round trip. Right: the '
        "ceiling, the truth after the same. Bars are 95% intervals; the dashed line is half "
        "way.</p>"
    )
    return "".join(parts) + "</section>"


def _standing(name: str, place: int, facts: Mapping[str, Any]) -> str:
    """One sentence on a model: where it comes from and how it stands."""
    s = facts["standing"]
    text = ""
    if s["trained_tasks"]:
        text = (
            f" It beats the best baseline on {s['beat_baseline']} of {s['trained_tasks']} trained "
            f"tasks (with the whole interval on {s['clearly_beat']}), and closes half or more of "
            f"the distance to the ceiling on {s['closed_half']}."
        )
    return f"<li><strong>{tables.model_name(name, place)}</strong> {provenance(facts)}.{text}</li>"


def provenance(facts: Mapping[str, Any]) -> str:
    """Where a model comes from and how large it is."""
    origin = f'<span class="tag">{escape(facts["origin"])}</span>'
    return f"{origin} {_count(facts['parameters'])} parameters"


def _count(number: int) -> str:
    """A number of parameters in two or three digits."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)


def _range(name: str, result: Mapping[str, Any], span: charts.Span) -> str:
    """A task's models between the best baseline and the ceiling."""
    metric, best = result["primary"], result["best_baseline"]
    floor = tables.number(metric, result["baselines"][best]["round_trip"][metric]["mean"])
    ceiling = tables.number(metric, result["ceiling"][metric]["mean"])
    lanes = []
    for place, (model, one) in enumerate(result["students"].items()):
        value = tables.number(metric, one["scores"][metric]["mean"])
        share = tables.percent(one["closed"]["mean"])
        text = f"{model}: {tables.label(metric)} {value}, {share} of the way to the ceiling"
        lanes.append(
            f'<div class="who">{tables.model_name(model, place)}</div>'
            f"{charts.lane(span, place, one['closed'], text)}"
            f'<div class="value"><b>{share}</b> {value}</div>'
        )
    note = ""
    if all(one["closed"]["mean"] is None for one in result["students"].values()):
        note = '<p class="quiet">The ceiling is not above the baseline: there is no range.</p>'
    return (
        f'<article class="range"><h4><a href="#task-{escape(name, quote=True)}">'
        f'{tables.plain(name)}</a> <span class="quiet">{escape(tables.label(metric))}</span></h4>'
        f'<div class="ends"><span>0% {tables.plain(best)} {floor}</span>'
        f"<span>100% ceiling {ceiling}</span>"
        f'</div><div class="lanes">{"".join(lanes)}</div>{note}</article>'
    )


def _task(name: str, result: Mapping[str, Any], examples: Sequence[Example], level: int = 2) -> str:
    """All on one task."""
    strips = "".join(tables.strip(name, i, one) for i, one in enumerate(examples, start=1))
    return (
        f'<section class="task" id="task-{escape(name, quote=True)}">'
        f"<h{level}>{tables.plain(name)}</h{level}><p>{escape(result['description'])}</p>"
        f'<p class="quiet">The first {len(examples)} queries: the example pairs, each input above '
        "its target; the query; the answers; the truth.</p>"
        f'<div class="examples">{strips}</div><div class="tables">{tables.scores(dict(result))}'
        f"{tables.losses(dict(result))}</div></section>"
    )


def _training(metrics: Mapping[str, Any], histories: Mapping[str, History]) -> str:
    """Loss curves: the students' together, those of other models each in a chart of its own."""
    students = list(metrics["students"])
    figures = []
    for column, title in (
        ("val/loss", "Validation loss, all tokens"),
        ("val/target_loss", "Validation loss, tokens of targets"),
        ("train/loss", "Training loss"),
    ):
        lines = [
            charts.Curve(name, students.index(name), thinned(histories[name][column]))
            for name in students
            if histories.get(name, {}).get(column)
        ]
        if lines:
            figures.append(charts.curves(title, "nats per token", "steps", lines))
    for name, history in histories.items():
        if name in students:
            continue
        for column in ("train/loss", "val/psnr", "val/loss"):
            if history.get(column):
                line = charts.Curve(column, len(students), thinned(history[column]))
                figures.append(charts.curves(f"{name}: {column}", "", "steps", [line]))
    if not figures:
        return ""
    return (
        '<section id="training"><h2>Loss curves</h2><p class="quiet">As logged in training; long '
        "curves are averaged over neighbouring points. A training loss may weigh tokens, and then "
        "compares only with runs that weigh them alike.</p>"
        f'<div class="charts">{"".join(figures)}</div></section>'
    )


def _held_out(
    metrics: Mapping[str, Any], names: list[str], examples: Mapping[str, Sequence[Example]]
) -> str:
    if not names:
        return ""
    inner = "".join(_task(name, metrics["tasks"][name], examples[name], 3) for name in names)
    return (
        '<section id="held-out"><h2>Tasks held out of training</h2><p>No model was trained on '
        "these: what they are is told by the example pairs alone.</p>" + inner + "</section>"
    )


def settings(metrics: Mapping[str, Any]) -> str:
    """What was asked for, and which numbers come from which weights."""
    tokenizer = metrics["tokenizer"]
    mark = f", fingerprint <code>{escape(tokenizer['fingerprint'])}</code>"
    rows = [("tokenizer", provenance(tokenizer) + mark)]
    rows += [
        (escape(name), provenance(facts)) for name, facts in metrics.get("students", {}).items()
    ]
    for key, value in metrics["settings"].items():
        shown = "none" if value is None else str(value)
        rows.append((tables.plain(key), f"<code>{escape(shown)}</code>"))
    entries = "".join(f"<dt>{key}</dt><dd>{value}</dd>" for key, value in rows)
    return (
        f'<section id="settings"><h2>Settings</h2><dl class="settings">{entries}</dl>'
        '<p class="quiet">All numbers are in metrics.json and scores.csv beside this page.</p>'
        "</section>"
    )
