"""Average precision of keypoints by object keypoint similarity (OKS), as COCO's COCOeval has it.

The definitions are those of https://cocodataset.org/#keypoints-eval: similarities fall off with the
distance relative to the size of the person and to how exactly people annotate each keypoint.
Detections are matched within an image, from the highest score down, and the precision of all images
is averaged over ten similarity thresholds and 101 recalls.

Notation:
    G people in an image    D detections in it    K = 17 keypoints of COCO    T = 10 thresholds
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

KEYPOINTS = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear",
    "left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist",
    "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle",
)  # fmt: skip
# Standard deviation of annotators per keypoint, relative to the square root of a person's area.
SIGMAS = np.array(
    (26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89), np.float64
) / 1000  # fmt: skip
THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
MAX_DETECTIONS = 20
AREAS = {"all": (0.0, 1e10), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
# Of the box of the keypoints: what a person covers where no mask is annotated, as mmpose has it.
AREA_OF_BOX = 0.53
_FAR = 1e4  # from everybody, and yet a box of such sides is not too large to count


@dataclass(frozen=True)
class People:
    """The annotated people of an image.

    Attributes:
        points: (G, K, 2) x and y.
        visible: (G, K) whether a keypoint is labeled.
        areas: (G,) of their masks.
        boxes: (G, 4) left, top, width and height.
        ignored: (G,) those that are neither counted nor held against a detection.
        crowds: (G,) groups of people, which any number of detections may match.
    """

    points: Floats
    visible: Bools
    areas: Floats
    boxes: Floats
    ignored: Bools
    crowds: Bools


@dataclass(frozen=True)
class Detections:
    """The detected people of an image: points (D, K, 2) and scores (D,)."""

    points: Floats
    scores: Floats


@dataclass(frozen=True)
class Matches:
    """How the detections of an image match.

    Attributes:
        scores: (D,) from the highest down.
        matched, ignored: (T, D).
        count: People to be found.
    """

    scores: Floats
    matched: Bools
    ignored: Bools
    count: int


def similarities(detections: Floats, people: People) -> Floats:
    """OKS of each detection (D, K, 2) with each person, (D, G)."""
    found = np.zeros((len(detections), len(people.points)))
    variances = (2 * SIGMAS) ** 2
    for g in range(len(people.points)):
        visible = people.visible[g]
        if visible.any():
            offset = detections - people.points[g]
        else:  # COCO takes the distance from the box, doubled on each side
            left, top, width, height = people.boxes[g]
            low = np.array((left - width, top - height))
            high = np.array((left + 2 * width, top + 2 * height))
            offset = np.maximum(0, low - detections) + np.maximum(0, detections - high)
            visible = np.ones_like(visible)
        error = (offset**2).sum(axis=2) / variances / (people.areas[g] + np.spacing(1)) / 2
        found[:, g] = np.exp(-error[:, visible]).mean(axis=1)
    return found


def match(detections: Detections, people: People, area: tuple[float, float]) -> Matches:
    """Match the detections of an image with its people, once per threshold.

    Args:
        area: Range of the areas of people that count; others are ignored.
    """
    order = np.argsort(-detections.scores, kind="stable")[:MAX_DETECTIONS]
    points, scores = detections.points[order], detections.scores[order]
    out_of_range = (people.areas < area[0]) | (people.areas > area[1])
    ignored = people.ignored | out_of_range
    columns = np.argsort(ignored, kind="stable")  # those that count first
    ignored, crowds = ignored[columns], people.crowds[columns]
    oks = similarities(points, people)[:, columns]
    matched = np.zeros((len(THRESHOLDS), len(points)), bool)
    dropped = np.zeros_like(matched)
    for t, threshold in enumerate(THRESHOLDS):
        taken = np.zeros(len(columns), bool)
        for d in range(len(points)):
            best = _best_person(oks[d], threshold, taken & ~crowds, ignored)
            if best is not None:
                matched[t, d], dropped[t, d], taken[best] = True, ignored[best], True
    extent = points.max(axis=1) - points.min(axis=1) if len(points) else np.zeros((0, 2))
    size = extent.prod(axis=1)
    dropped |= ~matched & ((size < area[0]) | (size > area[1]))
    return Matches(scores, matched, dropped, int((~ignored).sum()))


def _best_person(oks: Floats, threshold: float, taken: Bools, ignored: Bools) -> int | None:
    """The free person that a detection is most similar to; an ignored one only for want of others.

    Of equally similar ones the last, as COCOeval takes it.
    """
    for group in (~ignored, ignored):
        allowed = np.flatnonzero(group & ~taken & (oks >= min(threshold, 1 - 1e-10)))
        if len(allowed):
            return int(allowed[len(allowed) - 1 - oks[allowed][::-1].argmax()])
    return None


def average_precision(images: Sequence[Matches]) -> tuple[Floats, Floats]:
    """Average precision (T,) and recall (T,) over images; NaN if there is nobody to be found."""
    count = sum(each.count for each in images)
    if not count:
        return (np.full(len(THRESHOLDS), np.nan),) * 2
    order = np.argsort(-np.concatenate([each.scores for each in images]), kind="stable")
    matched = np.concatenate([each.matched for each in images], axis=1)[:, order]
    ignored = np.concatenate([each.ignored for each in images], axis=1)[:, order]
    true = np.cumsum(matched & ~ignored, axis=1)
    false = np.cumsum(~matched & ~ignored, axis=1)
    precisions, recalls = np.zeros(len(THRESHOLDS)), np.zeros(len(THRESHOLDS))
    for t in range(len(THRESHOLDS)):
        recall = true[t] / count
        precision = true[t] / (true[t] + false[t] + np.spacing(1))
        # The precision at a recall is the best one at that recall or above.
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        index = np.searchsorted(recall, RECALLS, side="left")
        reached = index < len(envelope)
        precisions[t] = envelope[index[reached]].sum() / len(RECALLS)
        recalls[t] = recall[-1] if len(recall) else 0.0
    return precisions, recalls


def summarize(detections: Sequence[Detections], people: Sequence[People]) -> dict[str, float]:
    """The ten numbers of COCO's keypoint evaluation, of images in the same order.

    Returns:
        "AP", "AP50", "AP75", "APM", "APL" and the same of the average recall, "AR"; NaN where
        nobody of that size is annotated.
    """
    found = {}
    for suffix, name in (("", "all"), ("M", "medium"), ("L", "large")):
        pairs = zip(detections, people, strict=True)
        matches = [match(d, p, AREAS[name]) for d, p in pairs]
        for kind, values in zip(("AP", "AR"), average_precision(matches), strict=True):
            found[kind + suffix] = float(values.mean())
            if name == "all":
                found[f"{kind}50"], found[f"{kind}75"] = float(values[0]), float(values[5])
    return found


def people_of_keypoints(points: Floats) -> People:
    """People (G, K, 2) that are known by their keypoints alone, NaN where one is not visible.

    Their area is 0.53 of the box of their keypoints, which is what people of COCO cover on average.
    """
    visible = ~np.isnan(points[:, :, 0])
    keep = visible.any(axis=1)
    points, visible = points[keep], visible[keep]
    low = np.nanmin(points, axis=1) if len(points) else np.zeros((0, 2))
    high = np.nanmax(points, axis=1) if len(points) else np.zeros((0, 2))
    size = high - low
    none = np.zeros(len(points), bool)
    return People(
        np.nan_to_num(points),
        visible,
        AREA_OF_BOX * size.prod(axis=1),
        np.concatenate((low, size), axis=1),
        none,
        none,
    )


def detections_of_keypoints(points: Floats) -> Detections:
    """Detections (D, K, 2), NaN where a keypoint is not found; the score is the fraction found.

    A keypoint that is not found is far from everybody's.
    """
    found = ~np.isnan(points[:, :, 0])
    keep = found.any(axis=1)
    return Detections(np.nan_to_num(points[keep], nan=_FAR), found[keep].mean(axis=1))


def pack(matches: Matches) -> Floats:
    """Matches of an image as numbers, `MAX_DETECTIONS` times (score, T matches), then the count."""
    packed = np.full((MAX_DETECTIONS, 1 + len(THRESHOLDS)), np.nan)
    rows = len(matches.scores)
    packed[:rows, 0], packed[:rows, 1:] = matches.scores, matches.matched.T
    return np.append(packed.ravel(), matches.count)


def unpack(counts: Floats) -> Matches:
    """The matches of an image, of which none is ignored."""
    rows = counts[:-1].reshape(MAX_DETECTIONS, 1 + len(THRESHOLDS))
    rows = rows[~np.isnan(rows[:, 0])]
    matched = rows[:, 1:].T > 0
    return Matches(rows[:, 0], matched, np.zeros_like(matched), int(counts[-1]))


def average_precision_of_set(counts: Floats, groups: npt.NDArray[np.str_]) -> float:
    """Average precision of images (n, k), each from `pack`."""
    return float(average_precision([unpack(row) for row in counts])[0].mean())
