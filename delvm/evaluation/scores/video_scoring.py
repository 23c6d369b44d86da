"""Continue clips by every method, and score each frame ahead.

The frames of a student stand between two methods that need none:

    ceiling                           the true frame, encoded and decoded
    baseline/repeat_last/raw          the last given frame, again and again
    baseline/repeat_last/round_trip   the same, encoded and decoded, as every student's frame is

Notation:
    B clips in a batch    K given frames    M frames ahead    N tokens per image    H image size
"""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from delvm.evaluation.answers.store import ScoredRows
from delvm.evaluation.queries.query_set import decode, encode
from delvm.inference.decoding import SamplingConfig
from delvm.inference.video import continue_sequences
from delvm.models.perceptual import LPIPS
from delvm.models.protocols import StudentNet, TokenizerNet
from delvm.tasks.base import Task

LPIPS_METRIC = "lpips"


def score_clips(
    task: Task,
    pixels: Tensor,
    context_frames: int,
    num_frames: int,
    tokenizer: TokenizerNet,
    students: Mapping[str, StudentNet],
    windows: Mapping[str, int],
    sampling: SamplingConfig,
    *,
    lpips: LPIPS | None = None,
    first: int = 0,
    on_continued: Callable[[int, str], None] = lambda n, name: None,
) -> ScoredRows:
    """Continue a batch of clips by every method, and score each frame ahead.

    Args:
        task: Whose metrics score each frame.
        pixels: Of the clips, (B, K + M or more, 3, H, H) in [0, 1].
        context_frames: K.
        num_frames: M.
        windows: Student -> frames that each new one follows at most.
        first: Number of the first clip, by which new frames are sampled.
        on_continued: Called with (B, name of the student) after each.

    Returns:
        Scores: method -> metric -> (B, M); answers: student -> "ids" -> (B, M, N).
    """
    count = len(pixels)
    pixels = pixels[:, : context_frames + num_frames]
    last, truth = pixels[:, context_frames - 1, None], pixels[:, context_frames:]
    ids = torch.stack([encode(tokenizer, pixels[:, i]) for i in range(pixels.shape[1])], dim=1)

    score = partial(frame_scores, task, truth=truth, lpips=lpips)

    def decoded(frames: Tensor) -> Tensor:
        return torch.stack([decode(tokenizer, frames[:, i]) for i in range(num_frames)], dim=1)

    repeated = decode(tokenizer, ids[:, context_frames - 1])[:, None]
    rows = ScoredRows()
    rows.scores["ceiling"] = score(decoded(ids[:, context_frames:]))
    rows.scores["baseline/repeat_last/raw"] = score(last.expand_as(truth))
    rows.scores["baseline/repeat_last/round_trip"] = score(repeated.expand_as(truth))
    numbers = [(first + row) * num_frames for row in range(count)]
    for name, student in students.items():
        device = next(student.parameters()).device
        new = continue_sequences(
            student,
            ids[:, :context_frames].to(device),
            num_frames,
            windows[name],
            sampling,
            tokenizer.codebook.to(device),
            row_ids=numbers,
        )
        frames = torch.stack([each.cpu() for each in new], dim=1)  # (B, M, N)
        rows.scores[f"student/{name}"] = score(decoded(frames))
        rows.answers[name] = {"ids": frames.numpy().astype(np.int32)}
        on_continued(count, name)
    return rows


@torch.inference_mode()
def frame_scores(
    task: Task, prediction: Tensor, truth: Tensor, lpips: LPIPS | None = None
) -> dict[str, npt.NDArray[np.float64]]:
    """Every metric of every frame, (B, M), of pixels (B, M, 3, H, H) in [0, 1]."""
    pairs = prediction.flatten(0, 1), truth.flatten(0, 1)
    scores = task.score(*pairs)
    if lpips is not None:
        device = lpips.shift.device
        scores[LPIPS_METRIC] = torch.cat(
            [
                lpips.of_each(predicted[None].to(device), true[None].to(device)).cpu()
                for predicted, true in zip(*pairs, strict=True)
            ]
        )  # one by one: features of large frames take a gigabyte
    shape = truth.shape[:2]
    return {name: each.reshape(shape).double().numpy() for name, each in scores.items()}
