"""An answer that appears row by row: what a page shows while the student is still generating.

Notation:
    N tokens of an image    n tokens generated so far    S side of an image in tokens
"""

import math
from collections.abc import Iterator
from typing import NamedTuple, Unpack

import torch
from PIL import Image
from torch import Tensor

from delvm.data.image_io import to_pil
from delvm.inference.decoding import SamplingConfig, SamplingOptions
from delvm.inference.prompter import Pairs, Prompter, pair_images
from delvm.models.protocols import TokenizerNet

MISSING = (229, 231, 235)  # color of the rows that are not generated yet: a light gray


class PartialAnswer(NamedTuple):
    """The first rows of tokens of an answer.

    Attributes:
        query: as the tokenizer sees it, see `Prompter.to_squares`.
        query_ids: its tokens, (N,) int64.
        ids: the tokens generated so far, (n,) int64; of a complete answer n = N.
    """

    query: Image.Image
    query_ids: Tensor
    ids: Tensor

    @property
    def is_complete(self) -> bool:
        """Whether all rows are there."""
        return len(self.ids) == len(self.query_ids)


def stream_rows(
    prompter: Prompter, pairs: Pairs, query: Image.Image, **sampling: Unpack[SamplingOptions]
) -> Iterator[PartialAnswer]:
    """Answer one query as `Prompter.complete` does, a row of tokens at a time.

    Args:
        prompter: its draft is not used.
        pairs, query, sampling: as for `Prompter.complete`.

    Yields:
        the answer so far, S times; first with one row, last with all.

    Raises:
        UserError: as `Prompter.complete`, before the first row.
    """
    config = SamplingConfig(**sampling)
    prompter.check_context_length(len(pairs))
    prompt_ids = prompter.encode(pair_images(pairs)).flatten()
    square = prompter.to_squares([query])[0]
    query_ids = prompter.encode([square])
    count = query_ids.shape[1]
    side, ids = math.isqrt(count), query_ids.new_empty(count)
    tokens = prompter.engine.stream(
        [prompt_ids], query_ids, count, config, codebook=prompter.tokenizer.codebook
    )
    for number, token in enumerate(tokens, 1):
        ids[number - 1] = token[0]
        if number % side == 0 or number == count:
            yield PartialAnswer(square, query_ids[0], ids[:number].clone())


def render(tokenizer: TokenizerNet, answer: PartialAnswer) -> Image.Image:
    """An answer as an image, in which the rows that are not generated yet are gray.

    The query's tokens stand in for missing ones, since a decoder also looks at the next rows; so a
    row may change slightly when the one below it is generated.
    """
    known, count = len(answer.ids), len(answer.query_ids)
    ids = torch.cat((answer.ids, answer.query_ids[known:]))
    [image] = to_pil(tokenizer.decode(ids[None]))
    top = image.height * (known // math.isqrt(count)) // math.isqrt(count)
    if not answer.is_complete:
        image.paste(MISSING, (0, top, image.width, image.height))
    return image
