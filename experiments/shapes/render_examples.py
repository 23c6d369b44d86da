"""Write the example prompts of the repository and the image in its README.

The prompts come from held-out photographs, the answers from the shipped weights.
"""

from pathlib import Path

from PIL import Image

import delvm
from delvm import tasks
from delvm.data.sources.shapes.source import Shapes
from delvm.storage import atomic_path
from delvm.viz.image_grid import image_grid

EXAMPLES_DIR, ANSWERS = Path("examples"), Path("docs/answers.png")
NUM_SHOTS, QUERY_INDEX = 3, 3
TITLES = [*["input", "target"] * NUM_SHOTS, "query", "answer", "ground truth"]


def held_out_pair(
    source: Shapes, split: str, task: str, index: int
) -> tuple[Image.Image, Image.Image]:
    """Input and target of a pair."""
    pair = source.pair(split, task, index)
    return Image.fromarray(pair.input), Image.fromarray(pair.target)


def save(image: Image.Image, path: Path) -> None:
    """Write an image atomically."""
    with atomic_path(path) as tmp:
        image.save(tmp)


def main() -> None:
    """Write examples/TASK/*_{img,label}.png, examples/TASK_query.png and docs/answers.png."""
    prompter = delvm.Prompter(delvm.load_tokenizer("shapes"), delvm.load_student("shapes"))
    source = Shapes(size=prompter.tokenizer.resolution)
    rows = []
    for task in tasks.TRAINED:
        pairs = [held_out_pair(source, "val", task, index) for index in range(NUM_SHOTS)]
        query, truth = held_out_pair(source, "test", task, QUERY_INDEX)
        for index, (input_image, target) in enumerate(pairs):
            save(input_image, EXAMPLES_DIR / task / f"{index:06d}_img.png")
            save(target, EXAMPLES_DIR / task / f"{index:06d}_label.png")
        save(query, EXAMPLES_DIR / f"{task}_query.png")
        (answer,) = prompter.complete(pairs, [query])
        rows.append([image for pair in pairs for image in pair] + [query, answer, truth])
    save(image_grid(rows, TITLES, cell=128, row_titles=list(tasks.TRAINED)), ANSWERS)
    print(f"examples: {EXAMPLES_DIR}\nimage: {ANSWERS}")


if __name__ == "__main__":
    main()
