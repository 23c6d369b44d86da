"""What it takes to encode the paper's mixture, or LVM's: bytes, hours, GPUs.

    python experiments/scale/estimate.py [rate=IMAGES_PER_SECOND] [days=DAYS] [file_kb=KB]

`rate` is that of one worker (a GPU, or a core), from `make bench only=encode` or the output of
`delvm encode`; `days` is the time limit; `file_kb` is the mean size of an image of 256 px in an
image shard.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from delvm.errors import UserError, did_you_mean

TOKENS = 256  # per image of 256 px, for a downsampling factor of 16
TAR_OVERHEAD = 1.0107421875  # bytes of a shard / bytes of its ids: headers, end of the archive

MILLION = 10**6
# Images of each task (DeLVM, arXiv 2402.04841), the last three augmented to 5 million.
PAPER = {
    "laion": 400 * MILLION,
    "segmentation": 100 * MILLION,
    "video": 5 * MILLION,
    "keypoints": 5 * MILLION,
    "derain": 5 * MILLION,
    "deblur": 5 * MILLION,
}
LVM = {"lvm": 1_640 * MILLION}  # arXiv 2312.00785


@dataclass(frozen=True)
class Estimate:
    """What it takes to encode a mixture.

    Attributes:
        images: number encoded, augmented copies included.
        tokens: number of tokens.
        token_bytes: size of the token shards.
        image_bytes: size of the image shards, if all images were kept.
        hours: for one worker.
        workers: number needed to finish within the given days.
    """

    images: int
    tokens: int
    token_bytes: int
    image_bytes: int
    hours: float
    workers: int


def estimate(
    mixture: Mapping[str, int], rate: float, days: float = 7.0, file_kb: float = 100.0
) -> Estimate:
    """What it takes to encode a mixture.

    Args:
        mixture: task -> images.
        rate: images per second per worker.
        days: time limit.
        file_kb: size of an image of 256 px, in kB (1,000 bytes).

    Raises:
        UserError: a value is not above 0.
    """
    for name, value in {"rate": rate, "days": days, "file_kb": file_kb}.items():
        if not value > 0:
            raise UserError(f"{name}={value:g} is not above 0: set {name}=100")
    images = sum(mixture.values())
    hours = images / rate / 3600
    return Estimate(
        images,
        images * TOKENS,
        math.ceil(2 * images * TOKENS * TAR_OVERHEAD),
        math.ceil(images * file_kb * 1000),
        hours,
        math.ceil(hours / (24 * days)),
    )


def table(rate: float, days: float = 7.0, file_kb: float = 100.0) -> str:
    """The estimates of each task, of the paper's mixture and of LVM's, as text."""
    mixtures = {name: {name: count} for name, count in PAPER.items()}
    mixtures |= {"paper, all": PAPER, "LVM, all": LVM}
    head = ("", "images", "tokens", "token shards", "image shards", "worker hours", "workers")
    rows = [head]
    for name, mixture in mixtures.items():
        each = estimate(mixture, rate, days, file_kb)
        rows.append(
            (
                name,
                f"{each.images / 1e6:,.0f} M",
                f"{each.tokens / 1e9:,.1f} G",
                f"{each.token_bytes / 1e9:,.1f} GB",
                f"{each.image_bytes / 1e12:,.1f} TB",
                f"{each.hours:,.1f} h",
                f"{each.workers:,}",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
    caption = (
        f"{rate:g} images/s per worker, {days:g} days, {file_kb:g} kB per image, "
        f"{TOKENS} tokens of 2 bytes per image"
    )
    return "\n".join([*lines, "", caption])


def settings(words: Sequence[str]) -> dict[str, float]:
    """The settings on the command line.

    Raises:
        UserError: a name is unknown, or a value is not a number.
    """
    found = {"rate": 100.0}
    for word in words:
        name, _, value = word.partition("=")
        if name not in ("rate", "days", "file_kb"):
            raise UserError(
                f"unknown argument '{word}': {did_you_mean(name, ['rate', 'days', 'file_kb'])}"
            )
        try:
            found[name] = float(value)
        except ValueError:
            raise UserError(f"{word} is not a number: set {name}=100") from None
    return found


def main(words: Sequence[str]) -> int:
    """Print the table."""
    try:
        print(table(**settings(words)))
    except UserError as error:
        print(f"estimate: {error}", file=sys.stderr)
        return UserError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
