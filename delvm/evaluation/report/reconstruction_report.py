"""The report of an evaluation of a tokenizer, as one HTML page."""

from collections.abc import Mapping
from typing import Any

from PIL import Image

from delvm.evaluation.report.render import render, spaced
from delvm.evaluation.report.tables import (
    Cell,
    Row,
    RowGroup,
    Table,
    format_percent,
    format_value,
    metric_label,
    row_group,
)

GLOSSARY = (
    (
        "The images",
        "Held-out images of each task, inputs and targets, encoded to tokens and decoded. No "
        "student can answer better than its tokenizer reconstructs the ground truth.",
    ),
    (
        "Reconstruction quality",
        "PSNR in dB, SSIM and MS-SSIM between image and reconstruction, means over images with 95% "
        "bootstrap intervals. Images below 176 pixels are too small for the five scales of "
        "MS-SSIM: the settings below list how many scales were used, and only equal numbers of "
        "scales can be compared.",
    ),
    (
        "rFID",
        "The Frechet distance between the features of images and of their reconstructions. It "
        "depends on the feature network and on the number of images: compare it only where both "
        "are the same, and trust it only with more images than features.",
    ),
    (
        "Codebook usage",
        "Used: codes that occur at all. Perplexity: the number of equally frequent codes that "
        "would have the same entropy; entropy is its logarithm in bits. Bits per pixel: of ids of "
        "equal length, and of ids that are entropy-coded one by one.",
    ),
)
METRICS = ("psnr", "ssim", "ms_ssim")
_USAGE_COLUMNS = [
    "codes used",
    "perplexity",
    "entropy, bits",
    "most frequent code",
    "bits per pixel",
    "bits per pixel, entropy-coded",
]


def render_report(
    report: Mapping[str, Any], grids: Mapping[str, Image.Image], histogram: Image.Image
) -> str:
    """The report as HTML.

    Args:
        report: The content of metrics.json.
        grids: Task -> grid of images and reconstructions.
        histogram: Of the codes.
    """
    sides = [("All images", report["all"])] + [
        (f"{spaced(task)}, {side}s", summary)
        for task, sides in report["tasks"].items()
        for side, summary in sides.items()
    ]
    return render(
        "reconstruction_report.html.j2",
        metrics=report,
        psnr=format_value("psnr", report["all"]["psnr"]["mean"]),
        scores=Table(
            "Mean over images, 95% interval; higher is better",
            [metric_label(metric) for metric in METRICS],
            [row_group("", METRICS, [side]) for side in sides],
        ),
        usage=Table(
            "Tokens of each side",
            _USAGE_COLUMNS,
            [RowGroup("", [Row(name, _usage(summary["codes"]))]) for name, summary in sides],
        ),
        grids=grids,
        histogram=histogram,
        glossary=GLOSSARY,
    )


def _usage(codes: Mapping[str, Any]) -> list[Cell]:
    return [
        Cell(text)
        for text in (
            f"{codes['num_used']:,}",
            f"{codes['perplexity']:,.1f}",
            f"{codes['entropy_bits']:.2f}",
            format_percent(codes["most_frequent_fraction"]),
            f"{codes['bits_per_pixel']:.3f}",
            f"{codes['entropy_bits_per_pixel']:.3f}",
        )
    ]
