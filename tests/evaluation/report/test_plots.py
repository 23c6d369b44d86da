"""Where charts put things."""

import re
from xml.etree import ElementTree

import pytest

from delvm.evaluation.report.plots import Curve, Span, curves, lane, ticks

HALF = {"mean": 0.5, "low": 0.25, "high": 0.75, "n": 10}


def test_span_covers_the_way_and_is_bounded() -> None:
    assert Span.around([HALF]) == Span(-0.04, 1.04)
    far = Span.around([{"mean": -7.0, "low": -9.0, "high": 3.0}])
    assert -1.2 < far.low < -1.0
    assert far.percent(-7.0) == 0.0
    unknown = Span.around([{"mean": None, "low": None, "high": None}])
    assert unknown.percent(0.5) == 50.0


def test_lane_places_dot_and_interval() -> None:
    svg = lane(Span(0.0, 1.0), 9, HALF, 'a <b> "c"')
    root = ElementTree.fromstring(svg)
    assert root.get("class") == "lane m1"
    assert root.get("aria-label") == 'a <b> "c"'
    circle = root.find("circle")
    assert circle is not None
    assert circle.get("cx") == "50.0%"
    bar = next(line for line in root.findall("line") if line.get("class") == "bar")
    assert (bar.get("x1"), bar.get("x2")) == ("25.0%", "75.0%")


def test_lane_without_numbers_and_beyond_the_edge() -> None:
    unknown = lane(Span(0.0, 1.0), 0, {"mean": None, "low": None, "high": None}, "x")
    assert "circle" not in unknown
    assert 'class="bar"' not in unknown
    outside = lane(Span(0.0, 1.0), 0, {"mean": 2.0, "low": None, "high": None}, "x")
    assert 'class="dot outside" cx="100.0%"' in outside


@pytest.mark.parametrize(
    ("low", "high", "count", "wanted"),
    [
        (0.0, 10.0, 5, [0, 2, 4, 6, 8, 10]),
        (2.3, 3.1, 4, [2.4, 2.6, 2.8, 3.0]),
        (0.0, 2990.0, 5, [0, 1000, 2000]),
        (1.0, 1.0, 5, [1.0]),
    ],
)
def test_ticks_are_round(low: float, high: float, count: int, wanted: list[float]) -> None:
    assert ticks(low, high, count) == wanted


def test_curves_are_well_formed_and_within_the_plot() -> None:
    lines = [Curve("a & b", 0, [(0, 3.0), (10, 1.0)]), Curve("c", 1, [(5, 2.0)])]
    root = ElementTree.fromstring(curves("Loss", "nats", "steps", lines))
    lost = [line.get("points", "") for line in root.iter("polyline")]
    assert len(lost) == 2
    places = [float(number) for points in lost for number in re.split("[ ,]", points)]
    assert all(0 <= place <= 1000 for place in places)
    assert lost[0].startswith("0.0,") and " 1000.0," in lost[0]
    assert "a & b" in "".join(root.itertext())
