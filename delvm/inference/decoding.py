"""How the next token is chosen from a student's logits. Free of torch, so that configs can use it.

mean_embedding    the code nearest to the probability-weighted mean of the code vectors: the mean of
                  the posterior, quantized again. Deterministic, and the closest in pixels.
greedy            the most likely token. Deterministic.
sample            a random token, after temperature, top-k and top-p.
"""

from enum import StrEnum

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
    decoding: Decoding, temperature: float, top_k: int | None, top_p: float | None
) -> list[str]:
    """Errors of settings that do not go together, or are out of range, one line each.

    Args:
        decoding: how the next token is chosen.
        temperature: 0 or above.
        top_k, top_p: of ``sample`` alone; None keeps all tokens.
    """
    errors = []
    if temperature < 0:
        errors.append(f"temperature={temperature} is below 0: set temperature=0 or more")
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
