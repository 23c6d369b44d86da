"""Score one task: every method answers every query, and each answer is scored by itself.

Methods are named ``ceiling`` (the ground truth, encoded and decoded), ``baseline/NAME/raw``,
``baseline/NAME/round_trip`` (encoded and decoded, as every student's answer is) and
``student/NAME``.

Notation:
    Q queries    B queries in a batch    N tokens per image
"""

import warnings
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
from delvm.evaluation.answers.store import ScoredRows, Scores
from delvm.evaluation.queries.query_set import EncodedImages, QuerySet, decode, encode
from delvm.evaluation.scores import baselines
from delvm.inference.decoding import SamplingConfig
from delvm.inference.engine import Engine
from delvm.models.protocols import StudentNet, TokenizerNet
from delvm.models.teacher_forcing import next_token_nll

# Of the first queries, which a report shows besides the worst, median and best answers.
NUM_VISUAL_EXAMPLES = 4


@dataclass
class PromptExample:
    """One query with its prompt and all answers, as images.

    Attributes:
        pairs: (input, target) of the first prompt, in order.
        reconstruction: The ground truth, encoded and decoded.
        answers: Student -> its answer.
        scores: Student -> the primary metric of its answer.
        number: Of the query, from 1.
        reason: Why it is shown, "" for the first queries.
        metric: The primary metric.
    """

    pairs: list[tuple[Image.Image, Image.Image]]
    query: Image.Image
    ground_truth: Image.Image
    reconstruction: Image.Image
    answers: dict[str, Image.Image] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    number: int = 1
    reason: str = ""
    metric: str = "psnr"


@dataclass
class TaskScores:
    """All measurements of one task, as in `ScoredRows`.

    Attributes:
        task: Name.
        pool_size: Pairs that the prompts were sampled from.
        scores, losses: (Q,), means over the draws of prompts.
        examples: The queries that the report shows, as images.
        counts: (Q, draws, k).
        groups: Group of each query, (Q,).
        draws: The measurements of each draw.
    """

    task: str
    pool_size: int
    scores: Scores
    losses: Scores
    examples: list[PromptExample]
    counts: Scores
    groups: npt.NDArray[np.str_]
    draws: list[ScoredRows]


class _ScoreBuffer:
    """Values that arrive one after another: owner -> metric -> (B, ...)."""

    def __init__(self) -> None:
        self.values: Scores = defaultdict(dict)

    def add(self, owner: str, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self.values[owner][name] = value.double().numpy()


def score_rows(
    query_set: QuerySet,
    rows: slice,
    mean_target: Tensor,
    tokenizer: TokenizerNet,
    engines: Mapping[str, Engine],
    sampling: SamplingConfig,
    on_answered: Callable[[int, str], None],
) -> ScoredRows:
    """Answer and score a batch of queries.

    Where several prompts vote, or answers are guided, so are the answers alone: next-token losses
    are those of the sentence with the first prompt.

    Args:
        query_set: Of one draw.
        mean_target: Of the pool, (3, H, H).
        engines: By name, of students in evaluation mode.
        on_answered: Called with (number of queries, name of the student) after each.
    """
    task = tasks.get_or_default(query_set.task)
    scores, counts, losses = _ScoreBuffer(), _ScoreBuffer(), _ScoreBuffer()
    answers: Scores = {}
    truth = to_tensor(list(query_set.ground_truth.images[rows]))
    queries = to_tensor(list(query_set.queries.images[rows]))

    def score(method: str, prediction: Tensor) -> None:
        scores.add(method, task.score(prediction, truth, queries))
        counts.add(method, task.measure(prediction, truth))

    score("ceiling", decode(tokenizer, query_set.ground_truth.ids[rows]))
    for method, prediction in _baseline_answers(queries, query_set, rows, mean_target, tokenizer):
        score(method, prediction)
    for name, engine in engines.items():
        ids = generate_answers(engine, tokenizer, query_set, rows, sampling)
        score(f"student/{name}", decode(tokenizer, ids))
        losses.add(name, _next_token_scores(engine.student, query_set, rows))
        answers[name] = {"ids": ids.cpu().numpy().astype(np.int32)}
        on_answered(len(truth), name)
    return ScoredRows(scores.values, counts.values, losses.values, answers)


def combine_draws(
    query_set: QuerySet, draws: list[ScoredRows], tokenizer: TokenizerNet
) -> TaskScores:
    """The measurements of a task from those of each draw of prompts."""
    task = tasks.get_or_default(query_set.task)
    counts = {
        method: {name: np.stack([d.counts[method][name] for d in draws], axis=1) for name in values}
        for method, values in draws[0].counts.items()
    }
    scores = _mean_of_draws([draw.scores for draw in draws])
    shown = shown_queries(draws[0].scores, task.primary_metric)
    return TaskScores(
        query_set.task,
        len(query_set.pool_inputs),
        scores,
        _mean_of_draws([draw.losses for draw in draws]),
        _visual_examples(query_set.of_draw(0), shown, draws[0], tokenizer),
        counts,
        query_set.groups,
        draws,
    )


def _mean_of_draws(draws: list[Scores]) -> Scores:
    """Mean over draws of each query's values; NaN where a value is NaN in all of them."""
    if len(draws) == 1:
        return draws[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of means of nothing
        return {
            owner: {
                name: np.nanmean([draw[owner][name] for draw in draws], axis=0) for name in values
            }
            for owner, values in draws[0].items()
        }


def shown_queries(scores: Scores, metric: str) -> dict[int, str]:
    """The queries that a report shows: row -> why, "" for the first ones.

    The first are shown so that nobody selects them by their answers; then the worst, the median
    and the best answer of each student.
    """
    count = len(scores["ceiling"][metric])
    shown = dict.fromkeys(range(min(NUM_VISUAL_EXAMPLES, count)), "")
    for method, values in scores.items():
        kind, _, name = method.partition("/")
        known = np.flatnonzero(~np.isnan(values[metric]))
        if kind != "student" or not len(known):
            continue
        order = known[np.argsort(values[metric][known], kind="stable")]
        for rank, row in (("worst", order[0]), ("median", order[(len(order) - 1) // 2]),
                          ("best", order[-1])):  # fmt: skip
            text = f"{rank} answer of {name}"
            shown[int(row)] = f"{shown[int(row)]}; {text}" if shown.get(int(row)) else text
    return shown


def _baseline_answers(
    queries: Tensor,
    query_set: QuerySet,
    rows: slice,
    mean_target: Tensor,
    tokenizer: TokenizerNet,
) -> Iterator[tuple[str, Tensor]]:
    """(method, pixels (B, 3, H, H)) of each baseline, raw and after the tokenizer's round trip."""
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
    query_set: QuerySet, shown: Mapping[int, str], rows: ScoredRows, tokenizer: TokenizerNet
) -> list[PromptExample]:
    """Queries as images, with the answers of all students."""
    indices = list(shown)
    reconstructions = to_pil(decode(tokenizer, query_set.ground_truth.ids[indices]))
    answers = {
        name: to_pil(decode(tokenizer, torch.from_numpy(values["ids"][indices]).long()))
        for name, values in rows.answers.items()
    }
    metric = tasks.get_or_default(query_set.task).primary_metric
    examples = []
    for number, row in enumerate(indices):
        pairs = [
            (_image(query_set.pool_inputs, index), _image(query_set.pool_targets, index))
            for index in query_set.example_indices[row, 0]
        ]
        query, truth = _image(query_set.queries, row), _image(query_set.ground_truth, row)
        example = PromptExample(pairs, query, truth, reconstructions[number])
        example.number, example.reason, example.metric = row + 1, shown[row], metric
        example.answers = {name: images[number] for name, images in answers.items()}
        example.scores = {
            name: float(rows.scores[f"student/{name}"][metric][row]) for name in answers
        }
        examples.append(example)
    return examples


def _image(images: EncodedImages, index: int) -> Image.Image:
    return Image.fromarray(images.images[index])
