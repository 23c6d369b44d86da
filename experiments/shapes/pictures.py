"""Draw the example prompts of the repository, and the picture in its README.

The prompts come from held-out photographs; the answers are drawn by the weights that ship.
"""

from pathlib import Path

from PIL import Image

import delvm
from delvm import tasks
from delvm.data.sources.shapes.source import Shapes
from delvm.storage import atomic_path
from delvm.viz.image_grid import image_grid

EXAMPLES, ANSWERS = Path("examples"), Path("docs/answers.png")
PAIRS, QUERY = 3, 3
TITLES = [*["input", "target"] * PAIRS, "query", "answer", "truth"]

Pictures = tuple[Image.Image, Image.Image]


def pictures(source: Shapes, split: str, task: str, index: int) -> Pictures:
    """Input and target of one held-out pair."""
    pair = source.pair(split, task, index)
    return Image.fromarray(pair.input), Image.fromarray(pair.target)


def save(picture: Image.Image, path: Path) -> None:
    """Write a picture, whole or not at all."""
    with atomic_path(path) as part:
        picture.save(part)


def main() -> None:
    """Write examples/TASK/*_{img,label}.png, examples/TASK_query.png and docs/answers.png."""
    prompter = delvm.Prompter(delvm.load_tokenizer("shapes"), delvm.load_student("shapes"))
    source = Shapes(size=prompter.tokenizer.resolution)
    rows = []
    for task in tasks.TRAINED:
        pairs = [pictures(source, "val", task, index) for index in range(PAIRS)]
        query, truth = pictures(source, "test", task, QUERY)
        for number, (img, label) in enumerate(pairs):
            save(img, EXAMPLES / task / f"{number:06d}_img.png")
            save(label, EXAMPLES / task / f"{number:06d}_label.png")
        save(query, EXAMPLES / f"{task}_query.png")
        (answer,) = prompter.complete(pairs, [query])
        rows.append([picture for pair in pairs for picture in pair] + [query, answer, truth])
    sheet = image_grid(rows, column_titles=TITLES, cell=128, row_titles=list(tasks.TRAINED))
    save(sheet, ANSWERS)
    print(f"examples: {EXAMPLES}\npicture: {ANSWERS}")


if __name__ == "__main__":
    main()
