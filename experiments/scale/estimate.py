"""What it takes to encode the paper's mixture, or LVM's: bytes, hours, GPUs.

    python experiments/scale/estimate.py [rate=IMAGES_A_SECOND] [days=DAYS] [file_kb=KB]

`rate` is that of one worker (a GPU, or a core) as `make bench only=encode` or the lines of
`delvm encode` tell it; `days` is how long one is ready to wait; `file_kb` is the mean size of a
picture of 256 px in an image shard.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from delvm.errors import UserError, did_you_mean

TOKENS = 256  # an image of 256 px, of a tokenizer that goes down 16 times
TAR = 1.0107421875  # a shard of 16 records over their ids: headers, and the end of a tar

MILLION = 10**6
# Images of each task (DeLVM, arXiv 2402.04841), the last three brought up to 5 million.
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
    """What a mixture takes.

    Attributes:
        images: encoded, copies of augmentation included.
        tokens: that they become.
        token_bytes: of the token shards, two a token.
        image_bytes: of the image shards, were all images kept.
        hours: of one worker.
        workers: that are done within the days given, each an equal share.
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
        rate: images a second of a worker.
        days: within which it is to be done.
        file_kb: of an image of 256 px, in kB (1,000 bytes).

    Raises:
        UserError: a value that is not above 0.
    """
    for name, value in {"rate": rate, "days": days, "file_kb": file_kb}.items():
        if not value > 0:
            raise UserError(f"{name}={value:g} is not above 0: set {name}=100")
    images = sum(mixture.values())
    hours = images / rate / 3600
    return Estimate(
        images,
        images * TOKENS,
        math.ceil(2 * images * TOKENS * TAR),
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
        made = estimate(mixture, rate, days, file_kb)
        rows.append(
            (
                name,
                f"{made.images / 1e6:,.0f} M",
                f"{made.tokens / 1e9:,.1f} G",
                f"{made.token_bytes / 1e9:,.1f} GB",
                f"{made.image_bytes / 1e12:,.1f} TB",
                f"{made.hours:,.1f} h",
                f"{made.workers:,}",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
    said = (
        f"{rate:g} images/s a worker, {days:g} days to wait, {file_kb:g} kB a picture, "
        f"{TOKENS} tokens an image of 2 bytes each"
    )
    return "\n".join([*lines, "", said])


def settings(words: Sequence[str]) -> dict[str, float]:
    """The numbers on the command line.

    Raises:
        UserError: an unknown name, or no number.
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
            raise UserError(f"{word} is no number: set {name}=100") from None
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
