"""Images in a labeled grid."""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

BACKGROUND, TEXT, FRAME = (250, 250, 248), (40, 40, 44), (222, 222, 218)


def image_grid(
    rows: Sequence[Sequence[Image.Image | None]],
    column_titles: Sequence[str] | None = None,
    cell: int = 128,
    row_titles: Sequence[str] | None = None,
) -> Image.Image:
    """Images in rows and columns on a light background.

    Small images are enlarged by an integer factor without smoothing, so that a pixel stays a
    pixel; large ones are reduced to the cell.

    Args:
        rows: Rows of images, which may differ in length; None leaves a cell empty.
        column_titles: One per column, above it.
        cell: Side of the square around an image, in pixels.
        row_titles: One per row, to its left.
    """
    gap = max(4, cell // 16)
    font = ImageFont.load_default(size=max(11, cell // 9))
    line = math.ceil(font.getbbox("Ag")[3]) + gap
    columns = max((len(row) for row in rows), default=0)
    left = gap
    if row_titles:
        left += math.ceil(max(font.getlength(title) for title in row_titles)) + 2 * gap
    top = gap + (line if column_titles else 0)
    step = cell + gap
    grid = Image.new("RGB", (left + columns * step, top + len(rows) * step), BACKGROUND)
    draw = ImageDraw.Draw(grid)
    for column, title in enumerate(column_titles or []):
        text = _shorten(title, font, cell)
        draw.text((left + column * step + cell // 2, top - gap), text, TEXT, font, anchor="md")
    for number, row in enumerate(rows):
        y = top + number * step
        if row_titles and number < len(row_titles):
            anchor = (left - 2 * gap, y + cell // 2)
            draw.text(anchor, row_titles[number], TEXT, font, anchor="rm")
        for column, image in enumerate(row):
            if image is None:
                continue
            scaled = _to_cell(image, cell)
            x = left + column * step + (cell - scaled.width) // 2
            above = y + (cell - scaled.height) // 2
            box = (x - 1, above - 1, x + scaled.width, above + scaled.height)
            draw.rectangle(box, outline=FRAME)
            grid.paste(scaled, (x, above))
    return grid


def _to_cell(image: Image.Image, cell: int) -> Image.Image:
    """The image enlarged by an integer factor, or reduced, to fit a cell."""
    long = max(image.size)
    if long > cell:
        width, height = (max(1, round(side * cell / long)) for side in image.size)
        return image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    factor = cell // long
    larger = (image.width * factor, image.height * factor)
    return image.convert("RGB").resize(larger, Image.Resampling.NEAREST)


def _shorten(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The text, cut with an ellipsis where it is wider than ``width`` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
