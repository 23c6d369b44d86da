"""Charts as inline SVG, without scripts.

Places are given in percent of the width, so that a chart stretches to the page while its text
keeps its size; colours come from the style sheet (classes m0 ... m7, one a model).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

COLOURS = 8

Point = tuple[float, float]
Share = Mapping[str, float | None]  # interval of the closed share, as metrics.json holds it


def colour(number: int) -> str:
    """The class that colours the model of that number."""
    return f"m{number % COLOURS}"


@dataclass(frozen=True)
class Span:
    """The part of the way from baseline (0) to ceiling (1) that lanes show."""

    low: float
    high: float

    @classmethod
    def around(cls, shares: Sequence[Share]) -> "Span":
        """Wide enough for 0 to 1, the means and most intervals; never so wide that these drown."""
        values = [0.0, 1.0, *(share["mean"] for share in shares)]
        for end in (share[name] for share in shares for name in ("low", "high")):
            values.append(None if end is None else max(-0.5, min(1.25, end)))
        known = [value for value in values if value is not None]
        low, high = max(-1.0, min(known)), min(1.5, max(known))
        air = 0.04 * (high - low)
        return cls(low - air, high + air)

    def percent(self, value: float) -> float:
        """Where a value stands, in percent of the width; those outside stand at the edge."""
        share = (value - self.low) / (self.high - self.low)
        return round(100 * min(1.0, max(0.0, share)), 2)


def lane(span: Span, number: int, closed: Share, label: str) -> str:
    """One model between baseline and ceiling: a dot, and its interval as a bar.

    Args:
        number: Of the model, for its colour.
        closed: Share of the way that it goes.
        label: What the picture says, for those who cannot see it.
    """
    mean, low, high = closed["mean"], closed["low"], closed["high"]
    start, half, end = (span.percent(value) for value in (0.0, 0.5, 1.0))
    parts = [
        f'<line class="track" x1="{start}%" x2="{end}%" y1="50%" y2="50%"/>',
        *(f'<line class="end" x1="{x}%" x2="{x}%" y1="0" y2="100%"/>' for x in (start, end)),
        f'<line class="half" x1="{half}%" x2="{half}%" y1="0" y2="100%"/>',
    ]
    if low is not None and high is not None:
        left, right = span.percent(low), span.percent(high)
        parts.append(f'<line class="bar" x1="{left}%" x2="{right}%" y1="50%" y2="50%"/>')
    if mean is not None:
        # beyond the edge a hollow dot says that the place is not exact
        outside = " outside" if not span.low <= mean <= span.high else ""
        x = span.percent(mean)
        parts.append(f'<circle class="dot{outside}" cx="{x}%" cy="50%" r="5"/>')
    name = escape(label, quote=True)
    return (
        f'<svg class="lane {colour(number)}" width="100%" height="24" role="img" '
        f'aria-label="{name}"><title>{name}</title>{"".join(parts)}</svg>'
    )


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers within [low, high]."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 10) for number in range(first, last + 1)]


@dataclass(frozen=True)
class Curve:
    """A line of a chart: a name, the number of its colour, points (x, y) by x."""

    name: str
    number: int
    points: Sequence[Point]


HEIGHT, TOP, BOTTOM = 250, 10, 34  # of a chart and of its margins, in pixels


def curves(title: str, unit: str, x_unit: str, lines: Sequence[Curve]) -> str:
    """Lines over a common x, with legend, round ticks and named axes, as a figure.

    Args:
        title, unit: Of the y axis.
        x_unit: Of the x axis.
        lines: At least one, with at least one point each.
    """
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    x0, x1 = min(0.0, *xs), max(max(xs), min(xs) + 1e-9)
    air = 0.04 * (max(ys) - min(ys)) or 0.5
    y0, y1 = min(ys) - air, max(ys) + air

    def left(x: float) -> float:
        return round(100 * (x - x0) / (x1 - x0), 2)

    def top(y: float) -> float:
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (y1 - y) / (y1 - y0), 1)

    levels = ticks(y0, y1, 6)
    labels = [f'<text x="38" y="{top(y) + 4}" class="end">{y:g}</text>' for y in levels]
    grid = [f'<line class="grid" x1="0" x2="100%" y1="{top(y)}" y2="{top(y)}"/>' for y in levels]
    plot = [*grid, *_x_axis(ticks(x0, x1, 5), left, x_unit), _lines(lines, (x0, x1), (y0, y1))]
    legend = "".join(
        f'<li class="{colour(line.number)}"><span class="swatch"></span>{escape(line.name)}</li>'
        for line in lines
    )
    name = escape(f"{title} over {x_unit}: {', '.join(line.name for line in lines)}", quote=True)
    return (
        f'<figure class="chart"><figcaption>{escape(title)} <span class="quiet">{escape(unit)}'
        f'</span></figcaption><ul class="legend">{legend}</ul><div class="plot">'
        f'<svg width="44" height="{HEIGHT}" aria-hidden="true">{"".join(labels)}</svg>'
        f'<svg class="area" width="100%" height="{HEIGHT}" role="img" aria-label="{name}">'
        f"{''.join(plot)}</svg></div></figure>"
    )


def _x_axis(values: list[float], left: Callable[[float], float], unit: str) -> list[str]:
    base = HEIGHT - BOTTOM
    parts = [f'<line class="axis" x1="0" x2="100%" y1="{base}" y2="{base}"/>']
    for value in values:
        x = left(value)
        side = "start" if x < 4 else "end" if x > 94 else "middle"
        parts.append(f'<line class="axis" x1="{x}%" x2="{x}%" y1="{base}" y2="{base + 4}"/>')
        parts.append(f'<text x="{x}%" y="{base + 17}" class="{side}">{value:,g}</text>')
    parts.append(f'<text x="100%" y="{HEIGHT - 3}" class="end">{escape(unit)}</text>')
    return parts


def _lines(lines: Sequence[Curve], xs: Point, ys: Point) -> str:
    """The lines, drawn on a plane of 1000 x 1000 that is stretched over the plot."""
    parts = []
    for line in lines:
        places = " ".join(
            f"{1000 * (x - xs[0]) / (xs[1] - xs[0]):.1f},{1000 * (ys[1] - y) / (ys[1] - ys[0]):.1f}"
            for x, y in line.points
        )
        parts.append(f'<polyline class="line {colour(line.number)}" points="{places}"/>')
    return (
        f'<svg x="0" y="{TOP}" width="100%" height="{HEIGHT - TOP - BOTTOM}" '
        f'viewBox="0 0 1000 1000" preserveAspectRatio="none">{"".join(parts)}</svg>'
    )
