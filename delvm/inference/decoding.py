"""How the next token is chosen from a student's logits. Free of torch, so that configs can use it.

mean_embedding    the code nearest to the probability-weighted mean of the code vectors: the mean of
                  the posterior, quantized again. Deterministic, and the closest in pixels.
greedy            the most likely token. Deterministic.
sample            a random token, after temperature, top-k and top-p.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TypedDict

from delvm.errors import UserError, did_you_mean


class Decoding(StrEnum):
    """How the next token is chosen."""

    mean_embedding = "mean_embedding"
    greedy = "greedy"
    sample = "sample"


def resolve_decoding(decoding: Decoding | str | None, temperature: float) -> Decoding:
    """Check a decoding method against the temperature; the two must agree.

    Args:
        decoding: None means ``sample`` above temperature 0, and ``mean_embedding`` at 0.
        temperature: 0 or above.

    Raises:
        UserError: an unknown method, ``sample`` at temperature 0, or another method above it.
    """
    if decoding is None:
        return Decoding.sample if temperature > 0 else Decoding.mean_embedding
    if decoding not in list(Decoding):
        raise UserError(f"decoding={decoding} is unknown: {did_you_mean(decoding, list(Decoding))}")
    method = Decoding(decoding)
    if method is Decoding.sample and temperature <= 0:
        raise UserError(
            f"decoding=sample needs a temperature above 0, not temperature={temperature:g}: "
            "set temperature=1.0 or decoding=greedy"
        )
    if method is not Decoding.sample and temperature > 0:
        raise UserError(
            f"decoding={method} is deterministic, but temperature={temperature:g} samples: "
            "set decoding=sample or temperature=0"
        )
    return method


def sampling_errors(
    decoding: Decoding,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    guidance: float = 1.0,
) -> list[str]:
    """Errors of settings that do not go together, or are out of range, one line each.

    Args:
        decoding: how the next token is chosen.
        temperature: 0 or above.
        top_k, top_p: of ``sample`` alone; None keeps all tokens.
        guidance: 0 or above; 1 is off.
    """
    errors = []
    for key, value, fix in (
        ("guidance", guidance, "set it to 1 (off) or more"),
        ("temperature", temperature, "set temperature=0 or more"),
    ):
        if not 0 <= value < math.inf:  # true of NaN too
            errors.append(f"{key}={value} is {'below 0' if value < 0 else 'not finite'}: {fix}")
    if top_k is not None and top_k < 1:
        errors.append(f"top_k={top_k} is below 1: set top_k=1 or more")
    if top_p is not None and not 0 < top_p <= 1:
        errors.append(f"top_p={top_p} is not in (0, 1]: set it to a probability, or to null")
    if errors:
        return errors
    try:
        resolve_decoding(decoding, temperature)
    except UserError as error:
        return [str(error)]
    return [
        f"{key}={value} is for decoding=sample, not decoding={decoding}: set "
        f"decoding=sample temperature=1.0, or {key}=null"
        for key, value in (("top_k", top_k), ("top_p", top_p))
        if value is not None and decoding is not Decoding.sample
    ]


class SamplingOptions(TypedDict, total=False):
    """The fields of `SamplingConfig` as keyword arguments."""

    decoding: Decoding | str | None
    temperature: float
    top_k: int | None
    top_p: float | None
    seed: int
    guidance: float


@dataclass(frozen=True)
class SamplingConfig:
    """How answers are generated.

    Attributes:
        decoding: how each token is chosen. None: ``sample`` above temperature 0, and
            ``mean_embedding`` at 0.
        temperature: above 0 with ``sample`` only. LVM samples at 1. (DeLVM is greedy: its notebook
            sets a temperature and a top-p, but not ``do_sample``, without which transformers
            ignores both.)
        top_k, top_p: sample from the k most likely tokens, and from the fewest tokens that together
            have the probability p; None = all.
        seed: of the samples, together with the index of the query.
        guidance: how far the prompt's effect is exaggerated, as in classifier-free guidance (Ho and
            Salimans 2022, arXiv 2207.12598): log-probabilities are those without the prompt plus
            ``guidance`` times the difference that the prompt makes. 1 = off.

    Raises:
        UserError: settings are out of range or contradict each other; one line for each.
    """

    decoding: Decoding | str | None = None
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    guidance: float = 1.0

    def __post_init__(self) -> None:
        method = resolve_decoding(self.decoding, self.temperature)
        errors = sampling_errors(
            method, self.temperature, self.top_k, self.top_p, guidance=self.guidance
        )
        if errors:
            raise UserError("\n".join(errors))
        object.__setattr__(self, "decoding", method)


GREEDY = SamplingConfig(Decoding.greedy)
