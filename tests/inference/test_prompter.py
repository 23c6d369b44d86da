"""Images as a Prompter sees them, and how it makes them square."""

import numpy as np
import pytest
import torch
from PIL import Image

from delvm.data.resizing import ResizeMode, to_square
from delvm.errors import UserError
from delvm.inference.prompter import Prompter
from delvm.interop.load import load_student, load_tokenizer
from delvm.interop.save import save_model


@pytest.fixture(scope="module")
def models():
    return load_tokenizer("shapes"), load_student("shapes")


def noise(size):
    shape = (size[1], size[0], 3)
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def test_images_are_made_square_as_those_the_student_was_trained_on(models, tmp_path):
    tokenizer, student = models
    assert student.resize == "" and Prompter(*models).resize is ResizeMode.short_side
    save_model(student, tmp_path / "unknown")
    assert '"resize"' not in (tmp_path / "unknown/config.json").read_text()
    student.resize = "squash"
    try:
        save_model(student, tmp_path / "student")
    finally:
        student.resize = ""
    loaded = load_student(tmp_path / "student")
    assert loaded.resize == "squash"
    prompter, image = Prompter(tokenizer, loaded), noise((90, 70))
    assert prompter.resize is ResizeMode.squash
    [square] = prompter.to_squares([image])
    assert square.tobytes() == to_square(image, 64, ResizeMode.squash).tobytes()
    assert torch.equal(prompter.encode([image]), Prompter(*models).encode([square]))


def test_resize_of_the_student_is_overridden(models):
    assert Prompter(*models, resize="pad").resize is ResizeMode.pad
    with pytest.raises(UserError, match="resize=stretch is unknown"):
        Prompter(*models, resize="stretch")
