"""Plots of a report, rendered by matplotlib as SVG.

They stand in a page that may be light or dark, so the background is transparent and the colors
are readable on both.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# One color per model, repeated after the last; report.css defines the same.
COLORS = (
    "#12908a", "#d9622b", "#7c6ee6", "#cf4a8c", "#8a9a1c", "#2f8ad0", "#a9772f", "#77828f",
)  # fmt: skip
TEXT, GRID = "#7d848c", "#7d848c55"
_MARGIN = 0.03  # of the width of an interval bar, so that a dot at the edge is fully visible

Point = tuple[float, float]
IntervalDict = Mapping[str, float | None]  # "mean", "low", "high", as metrics.json has them


def color_index(model: int) -> int:
    """Index in `COLORS` of the model with this index."""
    return model % len(COLORS)


@dataclass(frozen=True)
class AxisRange:
    """The range of the axis from the best baseline (0) to the ceiling (1)."""

    low: float
    high: float

    @classmethod
    def around(cls, intervals: Sequence[IntervalDict]) -> "AxisRange":
        """A range that covers 0 to 1, the means and, unless they are very wide, the intervals."""
        values = [0.0, 1.0, *(interval["mean"] for interval in intervals)]
        for bound in (interval[name] for interval in intervals for name in ("low", "high")):
            values.append(None if bound is None else max(-0.5, min(1.25, bound)))
        known = [value for value in values if value is not None]
        low, high = max(-1.0, min(known)), min(1.5, max(known))
        margin = 0.04 * (high - low)
        return cls(low - margin, high + margin)

    def clip(self, value: float) -> float:
        """The value, or the nearer end of the range."""
        return min(self.high, max(self.low, value))


@contextmanager
def _style() -> Iterator[None]:
    with rc_context(
        {
            "svg.fonttype": "none",  # text stays text
            "svg.hashsalt": "delvm",  # the same data gives the same file
            "text.parse_math": False,  # names of models may contain a $
            "font.size": 9,
            "figure.constrained_layout.w_pad": 0.12,  # inches, for wider fonts in a browser
            "text.color": TEXT,
            "axes.edgecolor": TEXT,
            "axes.labelcolor": TEXT,
            "xtick.color": TEXT,
            "ytick.color": TEXT,
            "grid.color": GRID,
        }
    ):
        yield


def _to_svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(
        buffer,
        format="svg",
        transparent=True,
        metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")),
    )
    return buffer.getvalue()


def interval_bar(axis_range: AxisRange, model: int, gap_closed: IntervalDict) -> str:
    """One model between baseline and ceiling: a dot for the mean, a bar for its interval.

    A hollow dot at the edge stands for a mean outside the range.

    Args:
        model: Index of the model, for its color.
        gap_closed: Fraction of the gap between baseline and ceiling.

    Returns:
        SVG. Groups have the ids "range", "interval" and "mean"; the last two are left out where
        the value is undefined.
    """
    mean, low, high = (gap_closed[key] for key in ("mean", "low", "high"))
    color = COLORS[color_index(model)]
    with _style():
        figure = Figure(figsize=(2.4, 0.3))
        axes = figure.add_axes((_MARGIN, 0, 1 - 2 * _MARGIN, 1))
        axes.set_axis_off()
        axes.set_xlim(axis_range.low, axis_range.high)
        axes.set_ylim(-1, 1)
        axes.hlines(0, 0, 1, color=GRID, linewidth=1.5, gid="range")
        axes.vlines([0, 1], -1, 1, color=TEXT, linewidth=0.8, clip_on=False)
        axes.vlines(0.5, -1, 1, color=TEXT, linewidth=0.8, linestyle=":", clip_on=False)
        if low is not None and high is not None:
            ends = axis_range.clip(low), axis_range.clip(high)
            axes.plot(
                ends, (0, 0), color=color, alpha=0.4, linewidth=4, clip_on=False, gid="interval"
            )
        if mean is not None:
            inside = axis_range.low <= mean <= axis_range.high
            axes.plot(
                axis_range.clip(mean),
                0,
                "o",
                color=color,
                fillstyle="full" if inside else "none",
                markersize=5.5,
                clip_on=False,
                gid="mean",
            )
        return _to_svg(figure)


@dataclass(frozen=True)
class Curve:
    """A line of a plot: name, index of its color, and points (x, y) sorted by x."""

    name: str
    model: int
    points: Sequence[Point]


def curve_plot(curves: Sequence[Curve], x_label: str) -> str:
    """Curves over a common x axis that begins at 0, as SVG.

    Args:
        curves: At least one, each with at least one point. Their lines have the ids "curve0", ...
    """
    with _style():
        figure = Figure(figsize=(5.6, 2.6), layout="constrained")
        axes = figure.add_subplot()
        for index, curve in enumerate(curves):
            xs, ys = zip(*curve.points, strict=True)
            axes.plot(
                xs, ys, color=COLORS[color_index(curve.model)], clip_on=False, gid=f"curve{index}"
            )
        axes.set_xlim(left=0)
        axes.set_xlabel(x_label)
        axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.grid(axis="y")
        axes.spines[["top", "left", "right"]].set_visible(False)
        axes.tick_params(left=False)
        return _to_svg(figure)
