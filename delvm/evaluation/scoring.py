"""Score one task: every method answers every query, and each answer is scored by itself.

Methods are named ``ceiling`` (the ground truth, encoded and decoded), ``baseline/NAME/raw``,
``baseline/NAME/round_trip`` (encoded and decoded, as every student's answer is) and
``student/NAME``.

Notation:
    Q queries    B queries in a batch    N tokens per image
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from delvm import tasks
from delvm.data.image_io import to_pil, to_tensor
from delvm.evaluation import baselines
from delvm.evaluation.query_set import EncodedImages, QuerySet, decode, encode
from delvm.inference.decoding import SamplingConfig
from delvm.inference.engine import Engine
from delvm.models.protocols import StudentNet, TokenizerNet
from delvm.models.teacher_forcing import next_token_nll

# The report shows the first queries, so that nobody selects them by their answers.
NUM_VISUAL_EXAMPLES = 4

# owner (a method or a student) -> metric -> one value per query (Q,)
Scores = dict[str, dict[str, npt.NDArray[np.float64]]]


@dataclass
class PromptExample:
    """One query with its prompt and all answers, as images.

    Attributes:
        pairs: (input, target) of the first prompt, in order.
        reconstruction: The ground truth, encoded and decoded.
        answers: Student -> its answer.
    """

    pairs: list[tuple[Image.Image, Image.Image]]
    query: Image.Image
    ground_truth: Image.Image
    reconstruction: Image.Image
    answers: dict[str, Image.Image] = field(default_factory=dict)


@dataclass
class TaskScores:
    """All measurements of one task.

    Attributes:
        task: Name.
        pool_size: Pairs that the prompts were sampled from.
        scores: method -> metric -> (Q,); NaN where the ground truth of a query has no object.
        losses: student -> "loss_all", "accuracy_all", "loss_answer", "accuracy_answer" -> (Q,):
            means over the tokens of a sentence, over all of them or over those of its last image.
        examples: The first queries as images.
        counts: method -> metric of the set -> (Q, k), see `delvm.tasks.base.SetMetric`.
        groups: Group of each query, (Q,).
    """

    task: str
    pool_size: int
    scores: Scores
    losses: Scores
    examples: list[PromptExample]
    counts: Scores
    groups: npt.NDArray[np.str_]


class _ScoreBuffer:
    """Values that arrive in batches."""

    def __init__(self) -> None:
        self.batches: dict[str, dict[str, list[Tensor]]] = defaultdict(lambda: defaultdict(list))

    def add(self, owner: str, values: Mapping[str, Tensor]) -> None:
        """Append metric -> (B,)."""
        for name, value in values.items():
            self.batches[owner][name].append(value)

    def concatenated(self) -> Scores:
        return {
            owner: {name: torch.cat(values).double().numpy() for name, values in metrics.items()}
            for owner, metrics in self.batches.items()
        }


def score_task(
    query_set: QuerySet,
    tokenizer: TokenizerNet,
    engines: Mapping[str, Engine],
    sampling: SamplingConfig,
    batch_size: int,
    on_answered: Callable[[int, str], None],
) -> TaskScores:
    """Answer and score every query of a task.

    Where several prompts vote, or answers are guided, so are the answers alone: next-token losses
    are those of the sentence with the first prompt.

    Args:
        engines: By name, of students in evaluation mode.
        on_answered: Called with (number of queries, name of the student) after each batch.
    """
    task = tasks.get_or_default(query_set.task)
    scores, counts, losses = _ScoreBuffer(), _ScoreBuffer(), _ScoreBuffer()
    examples: list[PromptExample] = []
    mean_target = query_set.mean_target()

    def score(method: str, prediction: Tensor, truth: Tensor) -> None:
        scores.add(method, task.score(prediction, truth))
        counts.add(method, task.measure(prediction, truth))

    for rows in query_set.batches(batch_size):
        truth = to_tensor(list(query_set.ground_truth.images[rows]))
        reconstruction = decode(tokenizer, query_set.ground_truth.ids[rows])
        score("ceiling", reconstruction, truth)
        for method, prediction in _baseline_answers(query_set, rows, mean_target, tokenizer):
            score(method, prediction, truth)
        shown = _visual_examples(query_set, rows, reconstruction)
        for name, engine in engines.items():
            answer = decode(
                tokenizer, generate_answers(engine, tokenizer, query_set, rows, sampling)
            )
            score(f"student/{name}", answer, truth)
            losses.add(name, _next_token_scores(engine.student, query_set, rows))
            for example, image in zip(shown, to_pil(answer[: len(shown)]), strict=True):
                example.answers[name] = image
            on_answered(len(truth), name)
        examples += shown
    return TaskScores(
        query_set.task,
        len(query_set.pool_inputs),
        scores.concatenated(),
        losses.concatenated(),
        examples,
        counts.concatenated(),
        query_set.groups,
    )


def _baseline_answers(
    query_set: QuerySet, rows: slice, mean_target: Tensor, tokenizer: TokenizerNet
) -> Iterator[tuple[str, Tensor]]:
    """(method, pixels (B, 3, H, H)) of each baseline, raw and after the tokenizer's round trip."""
    queries = to_tensor(list(query_set.queries.images[rows]))
    answers = baselines.answers(queries, *query_set.example_pixels(rows), mean_target)
    for name, raw in answers.items():
        yield f"baseline/{name}/raw", raw
        yield f"baseline/{name}/round_trip", decode(tokenizer, encode(tokenizer, raw))


def generate_answers(
    engine: Engine,
    tokenizer: TokenizerNet,
    query_set: QuerySet,
    rows: slice,
    sampling: SamplingConfig,
) -> Tensor:
    """Token ids (B, N) of a student's answers."""
    device = _device(engine.student)
    prompts = [
        query_set.prompts(rows, number).to(device) for number in range(query_set.num_prompts)
    ]  # M of (B, 2k N)
    queries, length = query_set.queries.ids[rows].to(device), query_set.ground_truth.ids.shape[1]
    options: Any = {
        "row_ids": range(rows.start, rows.stop),
        "codebook": tokenizer.codebook.to(device),
    }
    if query_set.shared:
        shared = [each[0] for each in prompts]
        return engine.generate(shared, queries, length, sampling, **options)
    own = [each.unbind() for each in prompts]
    return engine.generate_each(own, queries, length, sampling, **options)


def _next_token_scores(student: StudentNet, query_set: QuerySet, rows: slice) -> dict[str, Tensor]:
    """Teacher-forced means (B,) over each sentence's tokens: all, and those of the answer."""
    loss, correct = next_token_nll(student, query_set.sentences(rows).to(_device(student)))
    loss, accuracy = loss.cpu(), correct.float().cpu()  # (B, T - 1)
    answer = slice(-query_set.ground_truth.ids.shape[1], None)
    return {
        "loss_all": loss.mean(1),
        "accuracy_all": accuracy.mean(1),
        "loss_answer": loss[:, answer].mean(1),
        "accuracy_answer": accuracy[:, answer].mean(1),
    }


def _device(student: StudentNet) -> torch.device:
    return next(student.parameters()).device


def _visual_examples(
    query_set: QuerySet, rows: slice, reconstruction: Tensor
) -> list[PromptExample]:
    """The queries of a batch that the report shows, still without answers."""
    count = max(0, NUM_VISUAL_EXAMPLES - rows.start)
    examples = []
    for row, image in enumerate(to_pil(reconstruction[:count]), start=rows.start):
        pairs = [
            (_image(query_set.pool_inputs, index), _image(query_set.pool_targets, index))
            for index in query_set.example_indices[row, 0]
        ]
        query, truth = _image(query_set.queries, row), _image(query_set.ground_truth, row)
        examples.append(PromptExample(pairs, query, truth, image))
    return examples


def _image(images: EncodedImages, index: int) -> Image.Image:
    return Image.fromarray(images.images[index])
