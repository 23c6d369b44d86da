"""Streams of answers: one prompt for all queries, or one for each, in bounded memory."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from delvm.errors import UserError
from delvm.inference.prompter import Prompter
from delvm.models.transformer import Init, Transformer, TransformerConfig
from delvm.models.vqgan import VQGAN
from tests.commands.conftest import TINY_TOKENIZER

SAMPLED = {"decoding": "sample", "temperature": 1.0, "seed": 5}


@pytest.fixture(scope="module")
def prompter() -> Prompter:
    torch.manual_seed(0)
    tokenizer = VQGAN(TINY_TOKENIZER)
    config = TransformerConfig(32, 16, 1, 2, max_seq_len=40, codebook_dim=4, init=Init.gpt2)
    student = Transformer(config, tokenizer.codebook.detach())
    torch.nn.init.normal_(student.head.weight, std=0.5)
    return Prompter(tokenizer, student)


def noise(seed, size=(20, 16)):
    shape = (size[1], size[0], 3)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def examples(count):
    """Examples of 1 to 4 pairs, of several sizes."""
    for row in range(count):
        images = [noise(100 * row + i, (20 + row, 16)) for i in range(2 * (row * 3 % 4 + 1))]
        yield batched(images), noise(100 * row + 99)


def batched(images):
    return list(zip(images[::2], images[1::2], strict=True))


@pytest.mark.parametrize("options", [{}, {"decoding": "greedy"}, SAMPLED])
def test_prompts_of_different_lengths_are_answered_as_one_by_one(prompter, options):
    found = [*prompter.stream_each(examples(9), batch_size=4, **options)]
    assert len(found) == 9
    for row, (answer, (pairs, query)) in enumerate(zip(found, examples(9), strict=True)):
        [alone] = prompter.stream(pairs, [query], row_ids=[row], **options)
        assert torch.equal(answer.ids, alone.ids)
        # Sizes of batches change the last bits of a convolution.
        levels = [np.asarray(each.image).astype(int) for each in (answer, alone)]
        assert np.abs(levels[0] - levels[1]).max() <= 1
        assert answer.query.tobytes() == alone.query.tobytes()
        squares = prompter.to_squares([image for pair in pairs for image in pair])
        assert [each.tobytes() for each in answer.prompt] == [each.tobytes() for each in squares]
        assert alone.prompt == ()
    prompts, queries = zip(*examples(9), strict=True)
    images = prompter.complete_each(prompts, queries, **options)
    assert [each.tobytes() for each in images] == [each.image.tobytes() for each in found]


def test_a_row_samples_by_its_number(prompter):
    pairs, queries = [(noise(0), noise(1))], [noise(row) for row in range(6)]
    every = [answer.ids for answer in prompter.stream(pairs, queries, **SAMPLED)]
    rows = [1, 3, 4]
    some = prompter.stream(pairs, [queries[row] for row in rows], row_ids=rows, **SAMPLED)
    assert all(torch.equal(a.ids, every[row]) for a, row in zip(some, rows, strict=True))
    [other] = prompter.stream(pairs, [queries[3]], row_ids=[0], **SAMPLED)
    assert not torch.equal(other.ids, every[3])
    each = [answer.ids for answer in prompter.stream_each(examples(6), **SAMPLED)]
    part = itertools.islice(examples(6), 3, None)
    some = prompter.stream_each(part, row_ids=range(3, 6), **SAMPLED)
    assert all(torch.equal(a.ids, b) for a, b in zip(some, each[3:], strict=True))


def test_at_most_one_batch_is_read_ahead(prompter):
    read = []

    def reading(source):
        for item in source:
            read.append(item)
            yield item

    pairs = [(noise(0), noise(1))]
    streams = (
        prompter.stream(pairs, reading(noise(row) for row in range(10)), batch_size=3),
        prompter.stream_each(reading(examples(10)), batch_size=3),
    )
    for stream in streams:
        read.clear()
        for number, _ in enumerate(stream):
            assert len(read) == min(10, number // 3 * 3 + 3)
        assert number == 9


def test_each_image_is_reduced_before_the_next_one_is_read(prompter, monkeypatch):
    """Photos are large: of a batch, only the squares are kept."""
    events = []
    to_squares = prompter.to_squares

    def reducing(images):
        events.extend(["reduced"] * len(images))
        return to_squares(images)

    def queries():
        for row in range(4):
            events.append("read")
            yield noise(row)

    monkeypatch.setattr(prompter, "to_squares", reducing)
    stream = prompter.stream([(noise(0), noise(1))], queries(), batch_size=4)
    next(stream)
    first = events.index("read")
    assert events[first : first + 8] == ["read", "reduced"] * 4


def test_an_example_that_exceeds_the_context_is_refused_when_it_is_read(prompter):
    pairs = [(noise(0), noise(1))] * 5
    with pytest.raises(UserError, match="5 pairs, a query and its answer are 48 tokens"):
        prompter.complete_each([pairs], [noise(2)])
    with pytest.raises(ValueError, match="shorter"):
        prompter.complete_each([pairs[:1], pairs[:1]], [noise(2)])
