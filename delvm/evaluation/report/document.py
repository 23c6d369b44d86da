"""The frame of a report: one HTML page that needs no network and no other file."""

from collections.abc import Iterable
from html import escape
from importlib import resources

# The browser itself then refuses to fetch anything.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def document(title: str, parts: Iterable[str]) -> str:
    """The page around its parts; empty ones are left out.

    Args:
        title: As plain text.
        parts: As HTML.
    """
    css = (
        resources.files("delvm.evaluation.report")
        .joinpath("report.css")
        .read_text(encoding="utf-8")
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>\n{css}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in parts if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def guide(entries: Iterable[tuple[str, str]]) -> str:
    """The section that explains terms: (term, explanation) as plain text."""
    listed = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in entries)
    return f'<section id="guide"><h2>How to read the numbers</h2><dl>{listed}</dl></section>'
