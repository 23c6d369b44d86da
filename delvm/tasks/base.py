"""A task: its name, and how an answer is scored against the truth."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from delvm.tasks.metrics import psnr, ssim, to_uint8

# One value for a predicted and a true picture, both (H, W, 3) uint8; NaN leaves the picture out.
Measure = Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True)
class Task:
    """A task and its metrics; higher is better for every one.

    Attributes:
        name: As configs, folders and reports spell it.
        description: One line for people.
        measures: Metrics of the task's own, by name, which read the pictures' content.
        primary: The metric that a report ranks by.
        flips: Whether a pair may be mirrored left to right without changing what it means.
    """

    name: str
    description: str
    measures: Mapping[str, Measure] = field(default_factory=dict)
    primary: str = "psnr"
    flips: bool = True

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of all metrics, the task's own first, then psnr and ssim."""
        return (*self.measures, "psnr", "ssim")

    def score(self, prediction: Tensor, truth: Tensor) -> dict[str, Tensor]:
        """Score pictures one by one.

        Args:
            prediction: Pixels (B, 3, H, W) in [0, 1].
            truth: Pixels of the same shape.

        Returns:
            Metric name -> (B,) float32 on the CPU. psnr is in dB, at most
            `metrics.PSNR_CAP`; ssim is at most 1; miou and pck lie in [0, 1] and are NaN for a
            picture whose truth holds nothing to find, so take means with `nanmean`.

        Raises:
            ValueError: the shapes differ, or are not (B, 3, H, W).
        """
        if prediction.shape != truth.shape or truth.ndim != 4 or truth.shape[1] != 3:
            raise ValueError(
                f"prediction {tuple(prediction.shape)} and truth {tuple(truth.shape)} "
                "must both be (B, 3, H, W)"
            )
        prediction, truth = prediction.detach().float().cpu(), truth.detach().float().cpu()
        scores: dict[str, Tensor] = {}
        if self.measures:
            answers, truths = to_uint8(prediction), to_uint8(truth)
            for name, measure in self.measures.items():
                values = [measure(a, t) for a, t in zip(answers, truths, strict=True)]
                scores[name] = Tensor(values)
        scores["psnr"] = psnr(prediction, truth)
        scores["ssim"] = ssim(prediction, truth)
        return scores
