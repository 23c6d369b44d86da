"""The token space: which ids are pictures, and which are none."""

from dataclasses import dataclass

import numpy as np

from delvm.errors import UserError


@dataclass(frozen=True)
class TokenSpace:
    """What the ids of a token file or of a student mean.

    Attributes:
        codebook_size: ids in [0, codebook_size) are image tokens. A student may have more ids;
            those are never sampled.
        bos, eos: ids that begin and end a sentence, beyond the codes; None = no such id. Plain
            DeLVM has neither; LVM has 8,192 codes, and declares both beyond them.
    """

    codebook_size: int = 8192
    bos: int | None = None
    eos: int | None = None

    def __post_init__(self) -> None:
        for name in ("bos", "eos"):
            value = getattr(self, name)
            if value is not None and value < self.codebook_size:
                raise UserError(
                    f"{name}={value} is an image token, those are 0 to {self.codebook_size - 1}: "
                    f"set {name}={self.codebook_size} or null"
                )

    def strip_special_tokens(self, ids: np.ndarray) -> np.ndarray:
        """Ids (T,) of pictures alone.

        Raises:
            ValueError: a declared end is missing, or an id is none of a picture's.
        """
        for name, place, value in (("bos", 0, self.bos), ("eos", -1, self.eos)):
            if value is None:
                continue
            if not len(ids) or ids[place] != value:
                found = ids[place] if len(ids) else "nothing"
                raise ValueError(f"{found} stands where {name}={value} is declared")
            ids = ids[1:] if name == "bos" else ids[:-1]
        if (
            len(ids)
            and not 0 <= (low := int(ids.min())) <= (high := int(ids.max())) < self.codebook_size
        ):
            bad = low if low < 0 else high
            raise ValueError(
                f"id {bad} is outside [0, {self.codebook_size}): set codebook_size, bos or eos"
            )
        return ids

    def add_special_tokens(self, ids: np.ndarray) -> np.ndarray:
        """Ids (T,) with the declared ends."""
        ends = [np.array([] if end is None else [end], np.int64) for end in (self.bos, self.eos)]
        return np.concatenate((ends[0], ids.astype(np.int64), ends[1]))
