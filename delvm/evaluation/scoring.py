"""One task measured: every method's answer to every query, scored one by one.

Methods are named ``ceiling`` (the truth, encoded and decoded), ``baseline/NAME/raw``,
``baseline/NAME/round_trip`` (encoded and decoded, as every student's answer is) and
``student/NAME``.

Notation:
    Q queries    B queries in a batch    N tokens a picture
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from delvm import tasks
from delvm.data.image_io import to_pil, to_tensor
from delvm.evaluation import baselines
from delvm.evaluation.query_set import Prompts, Side, decode, encode
from delvm.inference.decoding import Decoding
from delvm.inference.sampling import generate
from delvm.models.teacher_forcing import next_token_nll
from delvm.models.transformer import Transformer
from delvm.models.vqgan import VQGAN

# The first queries are the ones that the report shows, so none is picked by its answer.
EXAMPLES = 4


@dataclass(frozen=True)
class SamplingConfig:
    """How answers are generated, as for `delvm.inference.sampling.generate`."""

    decoding: Decoding = Decoding.mean_embedding
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0


@dataclass
class Example:
    """A prompt and what came of it, as pictures.

    Attributes:
        pairs: (input, target) of the prompt, in order.
        round_trip: The truth, encoded and decoded.
        answers: By student.
    """

    pairs: list[tuple[Image.Image, Image.Image]]
    query: Image.Image
    truth: Image.Image
    round_trip: Image.Image
    answers: dict[str, Image.Image] = field(default_factory=dict)


@dataclass
class Measured:
    """What was measured on one task.

    Attributes:
        task: Its name.
        pool: Pairs that prompts were drawn from.
        scores: method -> metric -> (Q,), NaN where the truth of a query holds nothing to find.
        losses: student -> "loss_all", "accuracy_all", "loss_answer", "accuracy_answer" -> (Q,):
            means over the tokens of a sentence, all or those of its last picture.
        examples: Of the first queries.
    """

    task: str
    pool: int
    scores: dict[str, dict[str, np.ndarray]]
    losses: dict[str, dict[str, np.ndarray]]
    examples: list[Example]


class _Columns:
    """Values that arrive in batches: owner -> name -> (Q,)."""

    def __init__(self) -> None:
        self.parts: dict[str, dict[str, list[Tensor]]] = defaultdict(lambda: defaultdict(list))

    def add(self, owner: str, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self.parts[owner][name].append(value)

    def joined(self) -> dict[str, dict[str, np.ndarray]]:
        return {
            owner: {name: torch.cat(parts).double().numpy() for name, parts in columns.items()}
            for owner, columns in self.parts.items()
        }


def measure(
    prompts: Prompts,
    tokenizer: VQGAN,
    students: Mapping[str, Transformer],
    sampling: SamplingConfig,
    batch_size: int,
    done: Callable[[int, str], None],
) -> Measured:
    """Answer and score every query of a task.

    Args:
        prompts: Of the task.
        students: By name, in evaluation mode.
        done: done(n, name of the student), called when n queries have been answered.
    """
    task = tasks.of(prompts.task)
    scores, figures = _Columns(), _Columns()
    examples: list[Example] = []
    mean_target = prompts.mean_target()
    for rows in prompts.batches(batch_size):
        truth = to_tensor(list(prompts.truths.pictures[rows]))
        round_trip = decode(tokenizer, prompts.truths.ids[rows])
        scores.add("ceiling", task.score(round_trip, truth))
        _measure_baselines(prompts, rows, mean_target, tokenizer, truth, scores)
        shown = _examples(prompts, rows, round_trip) if rows.start < EXAMPLES else []
        for name, student in students.items():
            answer = decode(tokenizer, _answer(student, tokenizer, prompts, rows, sampling))
            scores.add(f"student/{name}", task.score(answer, truth))
            figures.add(name, _teacher_forced(student, prompts, rows))
            for example, picture in zip(shown, to_pil(answer[: len(shown)]), strict=True):
                example.answers[name] = picture
            done(len(truth), name)
        examples += shown
    return Measured(
        prompts.task, len(prompts.inputs.pictures), scores.joined(), figures.joined(), examples
    )


def _measure_baselines(
    prompts: Prompts,
    rows: slice,
    mean_target: Tensor,
    tokenizer: VQGAN,
    truth: Tensor,
    scores: _Columns,
) -> None:
    task = tasks.of(prompts.task)
    query = to_tensor(list(prompts.queries.pictures[rows]))
    for name, raw in baselines.answers(query, *prompts.examples(rows), mean_target).items():
        scores.add(f"baseline/{name}/raw", task.score(raw, truth))
        passed = decode(tokenizer, encode(tokenizer, raw))
        scores.add(f"baseline/{name}/round_trip", task.score(passed, truth))


def _answer(
    student: Transformer, tokenizer: VQGAN, prompts: Prompts, rows: slice, sampling: SamplingConfig
) -> Tensor:
    """Ids (B, N) that a student answers with."""
    return generate(
        student,
        prompts.prefix(rows).to(_device(student)),
        prompts.truths.ids.shape[1],
        **asdict(sampling),
        row_offset=rows.start,
        codebook=tokenizer.codebook.to(_device(student)),
    )


def _teacher_forced(student: Transformer, prompts: Prompts, rows: slice) -> dict[str, Tensor]:
    """Means over each sentence's tokens (B,): all of them, and those of the answer alone."""
    loss, hits = next_token_nll(student, prompts.sentences(rows).to(_device(student)))
    loss, hits = loss.cpu(), hits.cpu()
    answer = slice(loss.shape[1] - prompts.truths.ids.shape[1], None)
    return {
        "loss_all": loss.mean(1),
        "accuracy_all": hits.float().mean(1),
        "loss_answer": loss[:, answer].mean(1),
        "accuracy_answer": hits[:, answer].float().mean(1),
    }


def _device(student: Transformer) -> torch.device:
    return next(student.parameters()).device


def _examples(prompts: Prompts, rows: slice, round_trip: Tensor) -> list[Example]:
    """What is shown of the first queries, still without answers."""
    examples = []
    for row, trip in enumerate(to_pil(round_trip)[: EXAMPLES - rows.start], start=rows.start):
        pairs = [
            (_image(prompts.inputs, place), _image(prompts.targets, place))
            for place in prompts.chosen[row]
        ]
        query, truth = _image(prompts.queries, row), _image(prompts.truths, row)
        examples.append(Example(pairs, query, truth, trip))
    return examples


def _image(side: Side, place: int) -> Image.Image:
    return Image.fromarray(side.pictures[place])
