"""The report of an evaluation of a tokenizer, as one HTML page."""

from collections.abc import Mapping
from html import escape
from typing import Any

from PIL import Image

from delvm.evaluation.report import tables
from delvm.evaluation.report.document import document, guide
from delvm.evaluation.report.student_report import provenance, settings

GUIDE = (
    (
        "The pictures",
        "Held-out pictures of each task, inputs and targets, encoded to codes and drawn from them. "
        "No student can answer better than its tokenizer draws the truth.",
    ),
    (
        "Likeness",
        "PSNR in dB, SSIM and MS-SSIM against the picture itself, means over pictures with 95% "
        "bootstrap intervals. Pictures under 176 pixels have no room for the five scales of "
        "MS-SSIM: the settings below say how many were used, and only equal numbers of "
        "scales compare.",
    ),
    (
        "rFID",
        "The Frechet distance between the features of true and of drawn pictures. It depends on "
        "the extractor and on the number of pictures: compare it only where both are the same, "
        "and trust it only with more pictures than features.",
    ),
    (
        "Codes",
        "Used: codes that occur at all. Perplexity: how many codes, used alike, would be as "
        "uncertain; entropy is its logarithm in bits. Bits a pixel: of ids of equal length, and "
        "of ids coded one by one in the best way.",
    ),
)
SCORES = ("psnr", "ssim", "ms_ssim")
_CODES = [
    "codes used",
    "perplexity",
    "entropy, bits",
    "most frequent code",
    "bits a pixel",
    "bits a pixel, coded",
]


def page(report: Mapping[str, Any], sheets: Mapping[str, Image.Image], use: Image.Image) -> str:
    """The whole report.

    Args:
        report: What metrics.json holds.
        sheets: Pictures and how they are drawn, a task.
        use: Histogram of the codes.
    """
    places = [("All pictures", report["all"])] + [
        (f"{tables.plain(task)}, {side}s", numbers)
        for task, sides in report["tasks"].items()
        for side, numbers in sides.items()
    ]
    return document(
        report["title"],
        [
            _header(report),
            f'<section id="scores"><h2>Likeness</h2>{_scores(places)}</section>',
            f'<section id="codes"><h2>Use of the codes</h2>{_picture(use, "use of the codes")}'
            f"{_codes(places)}</section>",
            *(
                f'<section class="task" id="task-{escape(task, quote=True)}">'
                f"<h2>{tables.plain(task)}</h2>{_picture(sheet, f'{task}: pictures as drawn')}"
                "</section>"
                for task, sheet in sheets.items()
            ),
            guide(GUIDE),
            settings(report),
        ],
    )


def _header(report: Mapping[str, Any]) -> str:
    s, all_numbers = report["settings"], report["all"]
    psnr = tables.number("psnr", all_numbers["psnr"]["mean"])
    codes = all_numbers["codes"]
    text = (
        f"{s['tokens_per_image']} tokens for {s['image_size']} x {s['image_size']} pixels, "
        f"{s['vocab_size']:,} codes, of which {codes['num_used']:,} occur in "
        f"{all_numbers['psnr']['n']:,} held-out pictures. PSNR {psnr} dB."
    )
    if rfid := report["rfid"]:
        text += (
            f" rFID {rfid['value']:.2f} over {rfid['pictures']:,} pictures "
            f"({rfid['features']:,} features of {rfid['extractor']})."
        )
    return (
        f"<header><h1>{escape(report['title'])}</h1>"
        f'<p class="lede">{escape(text)}</p><p>{provenance(report["tokenizer"])}</p></header>'
    )


def _scores(places: list[tuple[str, Mapping[str, Any]]]) -> str:
    body = [tables.group("", list(SCORES), [(name, dict(each))]) for name, each in places]
    return tables.table(
        "Mean over pictures, 95% interval; higher is better", list(map(tables.label, SCORES)), body
    )


def _codes(places: list[tuple[str, Mapping[str, Any]]]) -> str:
    rows = []
    for name, numbers in places:
        codes = numbers["codes"]
        shown = [
            f"{codes['num_used']:,}", f"{codes['perplexity']:,.1f}", f"{codes['entropy_bits']:.2f}",
            tables.percent(codes["most_frequent_fraction"]), f"{codes['bits_per_pixel']:.3f}",
            f"{codes['entropy_bits_per_pixel']:.3f}",
        ]  # fmt: skip
        cells = "".join(f"<td>{text}</td>" for text in shown)
        rows.append(f'<tbody><tr><th scope="row">{name}</th>{cells}</tr></tbody>')
    return tables.table("Tokens of each side", _CODES, rows)


def _picture(image: Image.Image, alt: str) -> str:
    return f'<div class="scroll" tabindex="0">{tables.picture(image, alt, max(image.size))}</div>'
