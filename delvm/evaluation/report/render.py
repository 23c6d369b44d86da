"""Jinja2 templates of the reports: one HTML page each, which needs no other file and no network."""

import base64
import io
import math
from functools import lru_cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from delvm.evaluation.report import tables
from delvm.evaluation.report.plots import color_index


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("delvm.evaluation.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "spaced": spaced,
        "metric_label": tables.metric_label,
        "score_of": lambda value, metric: tables.format_value(
            metric, None if math.isnan(value) else value
        ),
        "percent": tables.format_percent,
        "parameter_count": tables.format_parameters,
        "png_uri": png_uri,
        "svg_uri": svg_uri,
        "color_class": lambda model: f"m{color_index(model)}",
    }
    environment.globals["shrink"] = shrink
    return environment


def render(template: str, **values: Any) -> str:
    """Render a template of this package; all values are escaped.

    Args:
        template: File name in templates/.
        values: The template's variables.
    """
    return _environment().get_template(template).render(values)


def spaced(name: str) -> str:
    """An identifier as readable text: spaces for underscores."""
    return name.replace("_", " ")


def shrink(image: Image.Image, size: int) -> Image.Image:
    """The image, scaled down if a side exceeds `size` pixels, which keeps a report small."""
    if max(image.size) > size:
        image = image.copy()
        image.thumbnail((size, size), Image.Resampling.LANCZOS)
    return image


def png_uri(image: Image.Image) -> str:
    """An image as a data URI."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def svg_uri(svg: str) -> str:
    """A plot as a data URI, which keeps its ids and styles apart from the page's."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode('ascii')}"
