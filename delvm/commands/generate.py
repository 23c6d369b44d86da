"""`delvm generate`: prompt a student with pairs and draw the answers to queries."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from delvm.commands.devices import pick
from delvm.commands.schema import GenerateConfig
from delvm.data.image_io import open_image, resize_center_crop
from delvm.errors import UserError
from delvm.inference.prompt_folder import find_queries, read_prompt
from delvm.progress import log
from delvm.storage import atomic_path
from delvm.viz.image_grid import image_grid

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
ROWS = 16  # queries on one contact sheet
Picture = Image.Image


@dataclass(frozen=True)
class Plan:
    """Which queries are answered in which files."""

    queries: list[Path]
    answers: list[Path]
    sheets: list[Path]


def plan(query: str, output: str) -> Plan:
    """Name every file before any work is done.

    Raises:
        UserError: the query is not there, or the output cannot hold what is asked for.
    """
    queries, others = find_queries(query)
    if others:
        listed = ", ".join(path.name for path in others)
        log(f"generate: not pictures, left out: {listed}")
    place = Path(output)
    if place.suffix and not place.is_dir():
        return _one_file(Path(query), place)
    if place.exists() and not place.is_dir():
        raise UserError(f"output {place} is a file: set output to a folder or to FILE.png")
    if place.resolve() == Path(query).resolve():
        raise UserError(f"output and query are both {place}: set output to another folder")
    stems = [path.stem for path in queries]
    # Two queries may differ in their suffix alone.
    names = [path.name if stems.count(path.stem) > 1 else path.stem for path in queries]
    answers = [place / f"{name}_answer.png" for name in names]
    pages = -(-len(queries) // ROWS)
    sheets = [place / f"sheet_{page + 1}.png" for page in range(pages)]
    if pages == 1:
        sheets = [place / (f"{names[0]}_sheet.png" if len(names) == 1 else "sheet.png")]
    return Plan(queries, answers, sheets)


def _one_file(query: Path, output: Path) -> Plan:
    if output.suffix.lower() not in SUFFIXES:
        raise UserError(
            f"output {output}: unknown suffix '{output.suffix}': set output to a folder, or to a "
            f"file that ends in {', '.join(SUFFIXES)}"
        )
    if query.is_dir():
        raise UserError(f"query {query} is a folder, output {output} one file: set output=FOLDER")
    sheet = output.with_name(f"{output.stem}_sheet.png")
    if query.resolve() in (output.resolve(), sheet.resolve()):
        raise UserError(f"output would replace the query {query}: set output to another name")
    return Plan([query], [output], [sheet])


def run(cfg: GenerateConfig) -> None:
    """Write an answer for each query, and contact sheets that show them beside the prompt."""
    files = plan(cfg.query, cfg.output)
    pairs = read_prompt(cfg.prompt)
    # Imported here: a mistake above is told without waiting for torch.
    from delvm.inference.prompter import Prompter
    from delvm.interop.load import load_student, load_tokenizer

    device = pick(cfg.device)
    prompter = Prompter(load_tokenizer(cfg.tokenizer, device), load_student(cfg.student, device))
    prompter.check_context_length(len(pairs))
    side = prompter.tokenizer.resolution
    queries = [resize_center_crop(open_image(path), side) for path in files.queries]
    answers = prompter.complete(
        pairs,
        queries,
        temperature=cfg.temperature,
        top_k=cfg.top_k,
        top_p=cfg.top_p,
        decoding=None if cfg.expected or cfg.temperature > 0 else "greedy",
        seed=cfg.seed,
        batch_size=cfg.batch_size,
    )
    for path, answer in zip(files.answers, answers, strict=True):
        _save(answer, path)
    shown = [
        (resize_center_crop(first, side), resize_center_crop(second, side))
        for first, second in pairs
    ]
    for page, path in enumerate(files.sheets):
        part = slice(page * ROWS, (page + 1) * ROWS)
        _save(_sheet(shown, queries[part], answers[part], max(side, 128)), path)
    what = str(files.answers[0]) if len(answers) == 1 else f"{len(answers)} in {cfg.output}"
    print(f"answer: {what}" if len(answers) == 1 else f"answers: {what}")
    print(f"contact sheet: {', '.join(map(str, files.sheets))}")


def _sheet(
    pairs: Sequence[tuple[Picture, Picture]],
    queries: Sequence[Picture],
    answers: Sequence[Picture],
    cell: int,
) -> Picture:
    """A row a query: the prompt's pairs, the query, the answer."""
    prompt = [picture for pair in pairs for picture in pair]
    rows = [[*prompt, *each] for each in zip(queries, answers, strict=True)]
    titles = [f"{side} {i + 1}" for i in range(len(pairs)) for side in ("input", "target")]
    return image_grid(rows, [*titles, "query", "answer"], cell)


def _save(picture: Picture, path: Path) -> None:
    options: dict[str, Any] = (
        {"quality": 95} if path.suffix.lower() in (".jpg", ".jpeg", ".webp") else {}
    )
    with atomic_path(path) as part:
        picture.save(part, **options)
