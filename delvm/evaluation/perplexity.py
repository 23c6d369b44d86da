"""Perplexity of given images after given images, from the evaluation files of LVM.

Each line of the file lists images, "input" and "target" (github.com/ytongbai/LVM,
evaluation/EVAL.md); a student reads both in a row, and the tokens of the targets are measured. The
means have names, since they differ:

    loss, accuracy, perplexity    of all tokens of all targets together (token-weighted);
                                  perplexity is exp(loss)
    sentence_perplexity           mean over lines of exp(mean loss of its target tokens): what LVM's
                                  eval_perplexity.py prints
    image_perplexity              mean over target images of exp(mean loss of its tokens)
    loss_all, accuracy_all, perplexity_all   of all tokens but the first, inputs too
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from delvm.data.image_io import open_image, to_tensor
from delvm.data.resizing import ResizeMode, to_square_array
from delvm.errors import UserError
from delvm.evaluation.queries.query_set import encode
from delvm.evaluation.scores import bootstrap
from delvm.inference.files.prompt_files import ImageLists, read_image_lists
from delvm.inference.prompter import set_eval_mode
from delvm.interop.fingerprint import check_tokenizer_match, fingerprint
from delvm.models.protocols import StudentNet, TokenizerNet
from delvm.models.teacher_forcing import next_token_nll
from delvm.progress import Progress
from delvm.storage import atomic_path, write_json

COLUMNS = ("student", "line", "images", "loss", "accuracy", "perplexity", "loss_all")


@dataclass(frozen=True)
class LineScores:
    """What is measured of a line.

    Attributes:
        number: Of the line, from 1.
        nll: Per token but the first, (T - 1,) in nats.
        correct: Whether it was the most likely one, (T - 1,).
        num_target_tokens: The last ones of these.
        num_images: Targets.
    """

    number: int
    nll: npt.NDArray[np.float64]
    correct: npt.NDArray[np.float64]
    num_target_tokens: int
    num_images: int

    @property
    def target_nll(self) -> npt.NDArray[np.float64]:
        """Of the tokens of the targets."""
        return self.nll[-self.num_target_tokens :]

    @property
    def target_correct(self) -> npt.NDArray[np.float64]:
        """Of the tokens of the targets."""
        return self.correct[-self.num_target_tokens :]


def evaluate_perplexity(
    jsonl: str | Path,
    tokenizer: TokenizerNet,
    students: Mapping[str, StudentNet],
    *,
    output_dir: str | Path,
    prompt_dir: str | None = None,
    resize: str | None = None,
    seed: int = 0,
    title: str = "Evaluation",
) -> dict[str, Any]:
    """Measure students on a file, and write metrics.json and scores.csv, a row per line.

    Args:
        jsonl: The file.
        students: Name -> model.
        prompt_dir: Directory that the paths in the file are relative to; None: the file's own.
        resize: How images become square; None: as those that the first student was trained on. LVM
            squashes them.
        seed: Of the bootstrap over lines.

    Returns:
        The content of metrics.json.

    Raises:
        UserError: The file or an image cannot be read, a line has no targets or is longer than the
            context of a student, or the models do not fit together.
    """
    lines = read_image_lists(jsonl, prompt_dir)
    _validate(lines, tokenizer, students)
    trained_on = [str(getattr(student, "resize", "")) for student in students.values()]
    mode = ResizeMode(resize or trained_on[0] or ResizeMode.short_side)
    set_eval_mode(tokenizer, *students.values())
    found: dict[str, list[LineScores]] = {name: [] for name in students}
    with Progress(len(lines) * len(students), "evaluate", "lines") as bar:
        for line in lines:
            ids = _encode(line, tokenizer, mode)  # (images, N)
            for name, student in students.items():
                found[name].append(_score(line, ids, student))
                bar.update(1, name)
    metrics = {
        "title": title,
        "settings": {"jsonl": str(jsonl), "resize": str(mode), "num_lines": len(lines)},
        "tokenizer": {"fingerprint": fingerprint(tokenizer)},
        "students": {name: summarize(scores, seed) for name, scores in found.items()},
    }
    _write_csv(Path(output_dir) / "scores.csv", found)
    write_json(Path(output_dir) / "metrics.json", metrics)
    return metrics


def _validate(
    lines: Sequence[ImageLists], tokenizer: TokenizerNet, students: Mapping[str, StudentNet]
) -> None:
    for line in lines:
        if not line.targets:
            raise UserError(f"{line.where} has no target, whose perplexity could be measured")
    longest = max(len(line.inputs) + len(line.targets) for line in lines)
    needed = longest * tokenizer.tokens_per_image
    for name, student in students.items():
        check_tokenizer_match(tokenizer, student)
        if needed > student.max_seq_len:
            raise UserError(
                f"{longest} images of a line are {needed} tokens, the context of student '{name}' "
                f"is {student.max_seq_len}: shorten the lines, or set students.{name}=PATH"
            )


def _encode(line: ImageLists, tokenizer: TokenizerNet, mode: ResizeMode) -> Tensor:
    images = [
        to_square_array(open_image(file, f"{line.where}: {file}"), tokenizer.resolution, mode)
        for file in (*line.inputs, *line.targets)
    ]
    return encode(tokenizer, to_tensor(images))


def _score(line: ImageLists, ids: Tensor, student: StudentNet) -> LineScores:
    device = next(student.parameters()).device
    nll, correct = next_token_nll(student, ids.flatten()[None].to(device))
    tokens, images = ids.shape[1] * len(line.targets), len(line.targets)
    loss, right = (each[0].cpu().double().numpy() for each in (nll, correct))
    return LineScores(line.number, loss, right, tokens, images)


def summarize(scores: Sequence[LineScores], seed: int = 0) -> dict[str, Any]:
    """The metrics of the module's docstring, with intervals that resample lines.

    Tokens and images of a line are not independent, so lines are what is resampled.
    """
    token_loss = _weighted([each.target_nll for each in scores], seed)
    all_loss = _weighted([each.nll for each in scores], seed)
    sentences = np.array([np.exp(each.target_nll.mean()) for each in scores])
    images = [
        np.exp([one.mean() for one in np.split(each.target_nll, each.num_images)])
        for each in scores
    ]
    return {
        "loss": token_loss.as_dict(),
        "accuracy": _weighted([each.target_correct for each in scores], seed).as_dict(),
        "perplexity": token_loss.exp().as_dict(),
        "sentence_perplexity": bootstrap.mean_ci(sentences, seed).as_dict(),
        "image_perplexity": _weighted(images, seed).as_dict(),
        "loss_all": all_loss.as_dict(),
        "accuracy_all": _weighted([each.correct for each in scores], seed).as_dict(),
        "perplexity_all": all_loss.exp().as_dict(),
    }


def _weighted(lines: Sequence[npt.NDArray[np.float64]], seed: int) -> bootstrap.Interval:
    """The mean of all values of all lines, with the interval over lines."""
    sums = np.array([(each.sum(), len(each)) for each in lines])
    return bootstrap.set_metric_ci(
        lambda counts, groups: float(counts[:, 0].sum() / counts[:, 1].sum()),
        sums,
        np.full(len(sums), ""),
        seed,
    )


def _rows(found: Mapping[str, Sequence[LineScores]]) -> Iterator[tuple[Any, ...]]:
    for name, scores in found.items():
        for each in scores:
            loss = float(each.target_nll.mean())
            values = (loss, each.target_correct.mean(), np.exp(loss), each.nll.mean())
            yield name, each.number, each.num_images, *(f"{value:.6g}" for value in values)


def _write_csv(path: Path, found: Mapping[str, Sequence[LineScores]]) -> None:
    with atomic_path(path) as tmp, tmp.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(_rows(found))
