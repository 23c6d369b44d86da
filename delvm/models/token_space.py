"""The token space: which ids are image tokens, and which are special tokens."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from delvm.errors import UserError
from delvm.models.protocols import StudentNet


@dataclass(frozen=True)
class TokenSpace:
    """Meaning of the ids in a token file or of a student.

    Attributes:
        codebook_size: ids in [0, codebook_size) are image tokens. A student may have more ids;
            those are never sampled.
        bos, eos: ids at the beginning and end of a sentence, at or above codebook_size; None = no
            such token. DeLVM has neither; LVM has 8,192 codes and both tokens above them.
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

    def strip_special_tokens(self, ids: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Image tokens of a sentence: ids (T,) without the declared bos and eos.

        Raises:
            ValueError: a declared bos or eos is missing, or another id is not an image token.
        """
        for name, index, value in (("bos", 0, self.bos), ("eos", -1, self.eos)):
            if value is None:
                continue
            if not len(ids) or ids[index] != value:
                found = ids[index] if len(ids) else "nothing"
                raise ValueError(f"expected {name}={value}, found {found}")
            ids = ids[1:] if name == "bos" else ids[:-1]
        self._check_image_tokens(ids)
        return ids

    def split_documents(self, ids: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        """Image tokens of each document in ids (T,): all up to an eos, or from each bos on.

        Raises:
            ValueError: as for `strip_special_tokens`.
        """
        if self.eos is not None:
            cuts = np.flatnonzero(ids[:-1] == self.eos) + 1
        elif self.bos is not None:
            cuts = np.flatnonzero(ids[1:] == self.bos) + 1
        else:
            cuts = np.array([], np.int64)
        return [self.strip_special_tokens(each) for each in np.split(ids, cuts)]

    def add_special_tokens(self, ids: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Image tokens (T,) between the declared bos and eos.

        Raises:
            ValueError: an id is not an image token.
        """
        self._check_image_tokens(ids)
        bos, eos = (
            np.array([] if token is None else [token], np.int64) for token in (self.bos, self.eos)
        )
        return np.concatenate((bos, ids.astype(np.int64), eos))

    def _check_image_tokens(self, ids: npt.NDArray[Any]) -> None:
        if not len(ids):
            return
        low, high = int(ids.min()), int(ids.max())
        if not 0 <= low <= high < self.codebook_size:
            raise ValueError(
                f"id {low if low < 0 else high} is outside [0, {self.codebook_size}): "
                "set codebook_size, bos or eos"
            )


def num_image_tokens(student: StudentNet) -> int:
    """The number of token ids that are codes of the tokenizer; special tokens come after them."""
    token_space = getattr(student, "token_space", None)
    return student.vocab_size if token_space is None else int(token_space.codebook_size)
