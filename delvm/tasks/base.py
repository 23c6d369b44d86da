"""A task: its name, and how a prediction is scored against the ground truth."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor, from_numpy

from delvm.tasks.metrics import psnr, ssim, to_uint8

ImageArray: TypeAlias = npt.NDArray[np.uint8]  # (H, W, 3), RGB

# Score of a predicted image against the true one; NaN leaves the image out of the mean.
MetricFn: TypeAlias = Callable[[ImageArray, ImageArray], float]
# The same, given the query too: (prediction, truth, query).
QueryMetricFn: TypeAlias = Callable[[ImageArray, ImageArray, ImageArray], float]
Counts: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SetMetric:
    """A metric of a set of images that is not the mean over its images.

    Attributes:
        measure: (prediction, truth) -> counts (k,) of one image, NaN where there are none.
        combine: (counts (n, k), group of each image (n,)) -> the value of the set, NaN if it is
            undefined.
    """

    measure: Callable[[ImageArray, ImageArray], Counts]
    combine: Callable[[Counts, npt.NDArray[np.str_]], float]


# In degrees, for tasks in which up and down differ.
SMALL_ROTATION = 10.0


@dataclass(frozen=True)
class Task:
    """A task and its metrics; higher is better, except for those listed as lower.

    Attributes:
        name: As in configs, directories and reports.
        description: One line for people.
        metric_fns: Metrics of this task alone, by name, which interpret the images.
        query_metric_fns: Metrics that depend on the query too, such as on where its hole is.
        primary_metric: The metric that reports rank by, one of which higher is better.
        label_palette: Colors that stand for labels, if the targets consist of them; black is the
            background. Such targets are resized without smoothing.
        allows_hflip: Whether a horizontally flipped example is still a valid one of this task.
        allows_vflip: The same of a vertically flipped one; None: as `allows_hflip`.
        max_degrees: Largest rotation either way after which an example is still a valid one.
        allows_zoom: Whether the same cut of all images of an example is still a valid one.
        set_metrics: Metrics of all answers together, by name.
        lower_is_better: Names of metrics that measure errors.
        is_sequence: Whether an example is a sequence of images, each of which follows from those
            before it; `delvm evaluate mode=video` has students continue them, each frame
            of which is scored by `metric_fns`, psnr and ssim.
        group_of: Key of an example -> its group, such as a class. Prompts of such a task are of
            the query's group, and never contain the query.
    """

    name: str
    description: str
    metric_fns: Mapping[str, MetricFn] = field(default_factory=dict)
    query_metric_fns: Mapping[str, QueryMetricFn] = field(default_factory=dict)
    primary_metric: str = "psnr"
    allows_hflip: bool = True
    allows_vflip: bool | None = None
    max_degrees: float = 180.0
    allows_zoom: bool = True
    label_palette: Sequence[tuple[int, int, int]] | None = None
    set_metrics: Mapping[str, SetMetric] = field(default_factory=dict)
    lower_is_better: tuple[str, ...] = ()
    group_of: Callable[[str], str] | None = None
    is_sequence: bool = False

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of all metrics, those of this task alone first, then psnr and ssim."""
        return (*self.metric_fns, *self.query_metric_fns, "psnr", "ssim")

    def score(
        self, prediction: Tensor, truth: Tensor, query: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Score each image of a batch.

        Args:
            prediction: Pixels (B, 3, H, W) in [0, 1].
            truth: Pixels of the same shape.
            query: Pixels of the same shape; None leaves out the metrics that depend on it.

        Returns:
            Metric name -> (B,) float32 on the CPU. psnr is in dB, at most `metrics.PSNR_CAP`; ssim
            is at most 1; miou, pck and f1 are in [0, 1], and NaN for an image whose ground truth
            is empty, so take means with `nanmean`.

        Raises:
            ValueError: the shapes differ, or are not (B, 3, H, W).
        """
        if query is not None and query.shape != truth.shape:
            raise ValueError(f"query {tuple(query.shape)} and truth {tuple(truth.shape)} differ")
        if prediction.shape != truth.shape or truth.ndim != 4 or truth.shape[1] != 3:
            raise ValueError(
                f"prediction {tuple(prediction.shape)} and truth {tuple(truth.shape)} "
                "must both be (B, 3, H, W)"
            )
        prediction, truth = prediction.detach().float().cpu(), truth.detach().float().cpu()
        scores: dict[str, Tensor] = {}
        if self.metric_fns or self.query_metric_fns:
            predicted, true = to_uint8(prediction), to_uint8(truth)
            for name, metric in self.metric_fns.items():
                scores[name] = Tensor([metric(p, t) for p, t in zip(predicted, true, strict=True)])
            if query is not None and self.query_metric_fns:
                triples = list(zip(predicted, true, to_uint8(query), strict=True))
                for name, of_query in self.query_metric_fns.items():
                    scores[name] = Tensor([of_query(*each) for each in triples])
        scores["psnr"] = psnr(prediction, truth)
        scores["ssim"] = ssim(prediction, truth)
        return scores

    def measure(self, prediction: Tensor, truth: Tensor) -> dict[str, Tensor]:
        """What the metrics of the set combine.

        Args:
            prediction, truth: As for `score`.

        Returns:
            Name of a set metric -> counts (B, k) float64 on the CPU.
        """
        if not self.set_metrics:
            return {}
        pairs = list(zip(to_uint8(prediction), to_uint8(truth), strict=True))
        return {
            name: from_numpy(np.stack([metric.measure(p, t) for p, t in pairs]))
            for name, metric in self.set_metrics.items()
        }
