"""Images as a Prompter sees them, and how it makes them square."""

import numpy as np
import pytest
import torch
from PIL import Image

from delvm.data.image_io import open_image
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


def bad_for_naive_readers(folder):
    """Files whose pixels `Image.open(...).convert("RGB")` shows otherwise than they are meant."""
    exif = Image.Exif()
    exif[0x0112] = 6
    noise((60, 40)).save(folder / "turned.png", exif=exif)
    depth = np.arange(64 * 48, dtype=np.uint16).reshape(48, 64) * 21
    Image.fromarray(depth).save(folder / "depth.png")
    clear = noise((60, 40))
    clear.putalpha(Image.linear_gradient("L").resize((60, 40)))
    clear.save(folder / "clear.png")
    return sorted(folder.iterdir())


def test_opened_images_are_those_of_the_command_line(models, tmp_path):
    prompter = Prompter(*models)
    for path in bad_for_naive_readers(tmp_path):
        with Image.open(path) as opened:
            naive = to_square(opened.convert("RGB"), 64)
            [given] = prompter.to_squares([opened])
        [read] = prompter.to_squares([open_image(path)])
        assert given.tobytes() == read.tobytes() != naive.tobytes(), path.name


def test_an_image_of_unknown_range_is_refused(models):
    with pytest.raises(UserError, match=r"outside 0\.\.1"):
        Prompter(*models).encode([Image.fromarray(np.full((8, 8), 7, np.float32))])


def test_pairs_of_two_shapes_are_refused(models):
    pairs = [(noise((60, 40)), noise((120, 80))), (noise((60, 40)), noise((40, 40)))]
    with pytest.raises(
        UserError, match="the input of pair 2 has 60 x 40 pixels and the target of pair 2 40 x 40"
    ):
        Prompter(*models).complete(pairs, [noise((60, 40))])


def test_what_is_not_an_image_or_a_list_of_them_is_refused(models):
    prompter, image = Prompter(*models), noise((64, 64))
    for pairs, queries, message in (
        ([(image, image)], image, r"queries are one image: give a list, \[query\]"),
        ([(image, image)], ["a.png"], r"a str is not an image of PIL: give PIL.Image.open\(FILE\)"),
        ([(image, image)], [torch.rand(3, 64, 64)], "a Tensor is not an image of PIL"),
        ((image, image), [image], r"pairs are one pair: give a list, \[\(input, target\)\]"),
        ("derain", [image], r"pairs are a path: give delvm.inference.read_prompt\('derain'\)"),
    ):
        with pytest.raises(UserError, match=message):
            prompter.complete(pairs, queries)


def test_paths_and_swapped_models_are_refused(models):
    tokenizer, student = models
    with pytest.raises(UserError, match=r"tokenizer is a path: .*delvm.load_tokenizer\('shapes'\)"):
        Prompter("shapes", student)
    with pytest.raises(UserError, match="Transformer cannot be a tokenizer: it has no "):
        Prompter(student, tokenizer)
