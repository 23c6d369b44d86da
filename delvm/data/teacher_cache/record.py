"""How the distribution of a token is stored: 4 k + 2 bytes, 66 at k = 16.

A distribution is that of the k most likely tokens, and of all others together, the tail. Stored are
the k ids (uint16), the tail's log-probability (float32), and a uint16 for each probability but the
largest, which is what the others leave of 1:

    code = 65,535 x sqrt(2 p)        p <= 1/2, as the probabilities are sorted

So each p is exact to 7.6e-6, small ones much better (1e-7 at 1e-4), and the largest to about 1e-5,
the sum of the others' errors. That is what counts, since the gradient of the divergence in a logit
of the student is the difference of two probabilities: float16 log-probabilities, which take as much
space, are up to 4e-4 off there.

Notation:
    n sentences    T tokens of a sentence, of which the last T - 1 are predicted    k kept tokens
"""

import numpy as np
import numpy.typing as npt

from delvm.errors import UserError

Float32 = npt.NDArray[np.float32]
_STEPS = 65_535
_MIN_TAIL = -80.0  # log-probability; exp of less is not a normal float32


def record_dtype(sentence_length: int, top_k: int) -> np.dtype[np.void]:
    """Of one sentence; ``checksum`` is `checksums` of its tokens."""
    rows = sentence_length - 1
    return np.dtype(
        [
            ("checksum", "<u4"),
            ("ids", "<u2", (rows, top_k)),
            ("codes", "<u2", (rows, top_k - 1)),
            ("tail", "<f4", (rows,)),
        ]
    )


def bytes_per_token(top_k: int) -> int:
    """Of one predicted token."""
    return 2 * top_k + 2 * (top_k - 1) + 4


def quantize(log_probs: Float32) -> tuple[npt.NDArray[np.uint16], Float32]:
    """Codes (..., k - 1) uint16 and tail (...) float32 of log-probabilities.

    Args:
        log_probs: (..., k + 1): of the k most likely tokens in descending order, then of all others
            together. Their exponentials sum to 1.
    """
    probs = np.exp(log_probs[..., 1:-1].astype(np.float64))
    codes = np.rint(np.sqrt(2 * probs) * _STEPS).clip(1, _STEPS).astype(np.uint16)
    return codes, np.maximum(log_probs[..., -1], _MIN_TAIL).astype(np.float32)


def dequantize(codes: npt.NDArray[np.uint16], tail: Float32, name: str) -> Float32:
    """The log-probabilities (..., k + 1) of `quantize`, each finite.

    Args:
        codes, tail: from a file that is not trusted.
        name: of the file, for the message.

    Raises:
        UserError: they are not probabilities that sum to 1.
    """
    # From float64, as the largest is what many small ones leave of 1.
    rest = np.square(codes.astype(np.float64) / _STEPS) / 2
    tail_probs = np.exp(tail.astype(np.float64))
    first = 1 - tail_probs - rest.sum(-1)
    second = rest.max(-1, initial=0)
    # So written that a NaN fails; rounding may leave the largest less than the second.
    if not np.all((first >= second - 1e-3) & (tail >= _MIN_TAIL) & (codes.min(initial=1) > 0)):
        raise UserError(f"{name} is damaged: it holds no distributions: write it again")
    first = np.maximum(first, second / 2)
    probs = np.concatenate((first[..., None], rest), axis=-1)
    return np.concatenate((np.log(probs), tail[..., None]), axis=-1).astype(np.float32)
