"""A continued video has the tokens of a loop without a cache over exactly the window."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from delvm.errors import UserError
from delvm.inference.decoding import SamplingConfig
from delvm.inference.generation import generate
from delvm.inference.prompter import Prompter
from delvm.inference.video import continue_images, continue_sequences, resolve_window
from delvm.interop.load import load_student, load_tokenizer
from delvm.models.transformer import Transformer
from tests.inference.test_engine import CODEBOOK, METHODS, make
from tests.inference.test_sampling import WithoutCache

SIZE = 6  # tokens per image: 8 images in the context of 48


@pytest.fixture(scope="module")
def student() -> Transformer:
    model = make()
    for name, weight in model.named_parameters():
        if "attention" in name:  # so large that every token depends on the oldest one
            torch.nn.init.normal_(weight, std=0.5)
    return model


def frame_by_frame(student, images, count, window, sampling):
    """Each image on its own, from the complete window, without a cache."""
    for number in range(count):
        ids = images[-window:].reshape(1, -1)
        new = generate(
            WithoutCache(student).eval(), ids, SIZE, sampling, row_ids=[number], codebook=CODEBOOK
        )
        images = torch.cat((images, new))
    return images[len(images) - count :]


@pytest.mark.parametrize("sampling", METHODS, ids=lambda each: each.decoding)
@pytest.mark.parametrize(("given", "window"), [(1, 7), (3, 4), (4, 4), (9, 4), (2, 1)])
def test_new_images_equal_a_loop_without_cache_over_the_window(student, given, window, sampling):
    torch.manual_seed(given)
    images = torch.randint(30, (given, SIZE))
    found = torch.stack([*continue_images(student, images, 7, window, sampling, CODEBOOK)])
    assert torch.equal(found, frame_by_frame(student, images, 7, window, sampling))
    without = continue_images(WithoutCache(student).eval(), images, 7, window, sampling, CODEBOOK)
    assert torch.equal(torch.stack([*without]), found)


@pytest.mark.parametrize("sampling", METHODS, ids=lambda each: each.decoding)
@pytest.mark.parametrize(("given", "window"), [(1, 7), (3, 4), (9, 4)])
def test_sequences_are_continued_together_as_alone(student, given, window, sampling):
    torch.manual_seed(given)
    images = torch.randint(30, (3, given, SIZE))
    together = continue_sequences(
        student, images, 5, window, sampling, CODEBOOK, row_ids=[0, 5, 10]
    )
    found = torch.stack([*together], 1)
    for row in range(3):
        alone = continue_sequences(
            student, images[row : row + 1], 5, window, sampling, CODEBOOK, row_ids=[5 * row]
        )
        assert torch.equal(found[row], torch.cat([*alone]))
    first = continue_images(student, images[0], 5, window, sampling, CODEBOOK)
    assert torch.equal(found[0], torch.stack([*first]))


def test_one_cache_serves_until_the_window_is_full(student, monkeypatch):
    read: list[int] = []
    forward = type(student).forward_hidden

    def count(self, ids, *rest):
        read.append(ids.shape[1])
        return forward(self, ids, *rest)

    monkeypatch.setattr(type(student), "forward_hidden", count)
    images = torch.randint(30, (2, SIZE))
    [*continue_images(student, images, 5, 4, SamplingConfig("greedy"))]
    # 3 images after the first 2 in one cache; then the 4 before the new one are read again.
    assert [each for each in read if each > 1] == [2 * SIZE, 4 * SIZE, 4 * SIZE]


def test_longer_continuation_begins_with_the_shorter(student):
    images, sampling = torch.randint(30, (2, SIZE)), METHODS[1]
    few, many = (torch.stack([*continue_images(student, images, n, 3, sampling)]) for n in (2, 6))
    assert torch.equal(many[:2], few)


def test_window_is_what_the_context_holds():
    assert resolve_window(None, 4096, 256) == 15  # LVM
    assert resolve_window(None, 2048, 256) == resolve_window(7, 2048, 256) == 7
    with pytest.raises(UserError, match=r"window=8 .* 2304 tokens, .* 2048: set window=7 or less"):
        resolve_window(8, 2048, 256)
    with pytest.raises(UserError, match="window=0 is below 1"):
        resolve_window(0, 2048, 256)
    with pytest.raises(UserError, match="context is 300: set student=PATH"):
        resolve_window(None, 300, 256)


@pytest.fixture(scope="module")
def prompter() -> Prompter:
    return Prompter(load_tokenizer("shapes"), load_student("shapes"))


def frames(count: int) -> list[Image.Image]:
    """A square that moves to the right, in frames of several sizes."""
    found = []
    for number in range(count):
        pixels = np.full((64 + 2 * number, 80, 3), 200, np.uint8)
        pixels[20:40, 10 + 6 * number : 30 + 6 * number] = (200, 30, 30)
        found.append(Image.fromarray(pixels))
    return found


@pytest.mark.slow
def test_extend_gives_images_of_the_generated_tokens(prompter):
    given: Any = frames(3)
    answers = [*prompter.stream_frames(given, 2, window=2, decoding="greedy")]
    expected = frame_by_frame_of(prompter, given, 2, 2)
    assert torch.equal(torch.stack([each.ids for each in answers]), expected)
    assert answers[0].query.tobytes() == prompter.to_squares(given)[-1].tobytes()
    assert answers[1].query is answers[0].image and answers[0].image.size == (64, 64)
    images = prompter.extend(given, 2, window=2, decoding="greedy")
    assert [each.tobytes() for each in images] == [each.image.tobytes() for each in answers]
    assert len(prompter.extend(given[:1], 1)) == 1
    assert prompter.extend(given, 0) == []


def frame_by_frame_of(prompter, given, count, window):
    ids, greedy = prompter.encode(given), SamplingConfig("greedy")
    for _ in range(count):
        new = generate(prompter.student, ids[-window:].reshape(1, -1), ids.shape[1], greedy)
        ids = torch.cat((ids, new))
    return ids[len(given) :]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": []}, "no frames to continue"),
        ({"n": -1}, "num_frames=-1 is below 0"),
        ({"window": 8}, "set window=7 or less"),
        ({"guidance": 2.0}, "guidance=2 is for answers to a prompt"),
        ({"temperature": -1.0}, "temperature=-1.0 is below 0"),
    ],
)
def test_extend_refuses_what_it_cannot_do(prompter, changes, message):
    arguments = {"frames": frames(1), "n": 1} | changes
    with pytest.raises(UserError, match=message):
        prompter.extend(**arguments)
