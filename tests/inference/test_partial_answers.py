"""An answer that appears row by row ends as the complete one."""

import numpy as np
import pytest
import torch

from delvm.errors import UserError
from delvm.inference.partial_answers import MISSING, render, stream_rows
from tests.inference.test_prompter_streams import SAMPLED, batched, noise, prompter

__all__ = ["prompter"]  # a fixture

PAIRS = batched([noise(seed) for seed in range(4)])


@pytest.mark.parametrize(
    "options", [{}, {"decoding": "greedy"}, SAMPLED, {"guidance": 1.5}], ids=str
)
def test_the_streamed_answer_equals_the_complete_one(prompter, options):
    rows = [*stream_rows(prompter, PAIRS, noise(9), **options)]
    [complete] = prompter.stream(PAIRS, [noise(9)], **options)
    assert [len(each.ids) for each in rows] == [2, 4]  # 2 x 2 tokens
    assert [each.is_complete for each in rows] == [False, True]
    assert torch.equal(rows[-1].ids, complete.ids)
    assert torch.equal(rows[0].ids, complete.ids[:2])
    assert render(prompter.tokenizer, rows[-1]).tobytes() == complete.image.tobytes()
    assert rows[0].query.tobytes() == complete.query.tobytes()


def test_interleaved_streams_do_not_disturb_each_other(prompter):
    alone = [[*stream_rows(prompter, PAIRS, noise(seed), **SAMPLED)][-1].ids for seed in (9, 10)]
    streams = [stream_rows(prompter, PAIRS, noise(seed), **SAMPLED) for seed in (9, 10)]
    for _ in range(2):
        together = [next(each).ids for each in streams]
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_rows_that_are_missing_are_gray(prompter):
    first, _ = stream_rows(prompter, PAIRS, noise(9))
    pixels = np.asarray(render(prompter.tokenizer, first))
    assert (pixels[8:] == MISSING).all() and not (pixels[:8] == MISSING).all()


def test_mistakes_are_found_before_the_first_row(prompter):
    with pytest.raises(UserError, match="use at most 4 pairs"):
        next(stream_rows(prompter, PAIRS * 3, noise(9)))
    with pytest.raises(UserError, match="decoding=nearest is unknown"):
        next(stream_rows(prompter, PAIRS, noise(9), decoding="nearest"))
