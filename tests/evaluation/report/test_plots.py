"""Positions of the data in plots, read from the SVG."""

import re
from xml.etree import ElementTree

import pytest

from delvm.evaluation.report.plots import (
    _MARGIN,
    COLORS,
    AxisRange,
    Curve,
    curve_plot,
    interval_bar,
)
from delvm.evaluation.report.render import _environment

HALF = {"mean": 0.5, "low": 0.25, "high": 0.75, "n": 10}
UNDEFINED = {"mean": None, "low": None, "high": None}
SVG = "{http://www.w3.org/2000/svg}"


def groups(svg: str) -> dict[str, ElementTree.Element]:
    """The elements with an id, by id; the whole image is "figure"."""
    root = ElementTree.fromstring(svg)
    return {"figure": root} | {e.get("id", ""): e for e in root.iter(f"{SVG}g")}


def path_points(group: ElementTree.Element) -> list[tuple[float, float]]:
    """The points of the paths below an element that is not a marker."""
    paths = [e.get("d", "") for e in group.findall(f"{SVG}path")]
    numbers = [float(n) for path in paths for n in re.findall(r"-?[\d.]+", path)]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def marker_x(group: ElementTree.Element) -> float:
    (use,) = group.iter(f"{SVG}use")
    return float(use.get("x", "nan"))


def x_of(fraction: float, svg: str) -> float:
    """The position of a fraction of the range in an interval bar."""
    width = float(groups(svg)["figure"].get("viewBox", "").split()[2])
    return width * (_MARGIN + fraction * (1 - 2 * _MARGIN))


def test_axis_range_covers_the_gap_and_is_bounded() -> None:
    assert AxisRange.around([HALF]) == AxisRange(-0.04, 1.04)
    wide = AxisRange.around([{"mean": -7.0, "low": -9.0, "high": 3.0}])
    assert -1.2 < wide.low < -1.0
    assert wide.clip(-7.0) == wide.low
    assert AxisRange.around([UNDEFINED]).clip(0.5) == 0.5


def test_interval_bar_shows_mean_and_interval() -> None:
    svg = interval_bar(AxisRange(0.0, 1.0), 9, HALF)
    parts = groups(svg)
    assert marker_x(parts["mean"]) == pytest.approx(x_of(0.5, svg))
    ends = [x for x, _ in path_points(parts["interval"])]
    assert ends == pytest.approx([x_of(0.25, svg), x_of(0.75, svg)])
    assert COLORS[1] in svg and COLORS[0] not in svg


def test_interval_bar_of_undefined_and_outside_values() -> None:
    undefined = groups(interval_bar(AxisRange(0.0, 1.0), 0, UNDEFINED))
    assert "mean" not in undefined and "interval" not in undefined
    svg = interval_bar(AxisRange(0.0, 1.0), 0, {"mean": 2.0, "low": None, "high": None})
    parts = groups(svg)
    assert marker_x(parts["mean"]) == pytest.approx(x_of(1.0, svg))
    (use,) = parts["mean"].iter(f"{SVG}use")
    assert "fill" not in use.get("style", "").replace("fill-opacity: 0", "")  # a hollow dot
    assert "interval" not in parts


def test_curve_plot_is_well_formed_and_inside_its_axes() -> None:
    curves = [Curve("a & $b", 0, [(0, 3.0), (10, 1.0)]), Curve("c", 1, [(5, 2.0)])]
    svg = curve_plot(curves, "steps & <more>")
    parts = groups(svg)
    _, _, right, bottom = map(float, parts["figure"].get("viewBox", "").split())
    first, second = (path_points(parts[f"curve{i}"]) for i in range(2))
    assert len(first) == 2 and len(second) == 1
    assert all(0 <= x <= right and 0 <= y <= bottom for x, y in first + second)
    (x0, high), (x1, low) = first
    assert x0 < second[0][0] < x1 and high < second[0][1] < low
    assert "steps & <more>" in "".join(parts["figure"].itertext())


def test_same_data_gives_the_same_svg() -> None:
    curve = Curve("a", 0, [(0, 1.0), (5, 2.0)])
    assert curve_plot([curve], "x") == curve_plot([curve], "x")


def test_style_sheet_has_the_colors_of_the_plots() -> None:
    css = _environment().get_template("report.css").render()
    assert re.findall(r"--c\d: (#\w+);", css) == list(COLORS)
