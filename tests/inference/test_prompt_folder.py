"""Reading prompt folders and queries, complete and incomplete."""

import pytest
from PIL import Image

from delvm.errors import UserError
from delvm.inference.prompt_folder import find_queries, read_prompt


def write_image(path, color=(200, 30, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), color).save(path)


def test_pairs_are_sorted_by_name(tmp_path):
    for number, name in enumerate(["b", "a", "c"]):
        write_image(tmp_path / f"{name}_img.png", (number, 0, 0))
        write_image(tmp_path / f"{name}_label.bmp", (0, number, 0))
    (tmp_path / "notes.txt").write_text("not part of the prompt")
    write_image(tmp_path / "query.png")
    pairs = read_prompt(tmp_path)
    assert [first.getpixel((0, 0)) for first, _ in pairs] == [(1, 0, 0), (0, 0, 0), (2, 0, 0)]
    assert [second.getpixel((0, 0)) for _, second in pairs] == [(0, 1, 0), (0, 0, 0), (0, 2, 0)]


@pytest.mark.parametrize(
    "files, line",
    [
        ([], "prompt folder FOLDER has no pairs: it needs NAME_img.* and NAME_label.*"),
        (["a.png"], "prompt folder FOLDER has no pairs: it needs NAME_img.* and NAME_label.*"),
        (["a_img.png"], "unpaired FOLDER/a_img.png: a_label.* is not in the folder"),
        (
            ["a_img.png", "a_label.png", "b_label.png"],
            "unpaired FOLDER/b_label.png: b_img.* is not in the folder",
        ),
        (
            ["a_img.png", "a_img.bmp", "a_label.png"],
            "two files for one image: FOLDER/a_img.bmp and a_img.png",
        ),
    ],
)
def test_incomplete_prompt_is_an_error(tmp_path, files, line):
    for name in files:
        write_image(tmp_path / name)
    with pytest.raises(UserError) as caught:
        read_prompt(tmp_path)
    assert str(caught.value) == line.replace("FOLDER", str(tmp_path))


def test_pairs_of_two_shapes_are_an_error(tmp_path):
    write_image(tmp_path / "a_img.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "a_label.png")
    with pytest.raises(UserError, match=r"a_img.png has 8 x 6 pixels and a_label.png 8 x 8"):
        read_prompt(tmp_path)
    Image.new("RGB", (16, 12)).save(tmp_path / "a_label.png")
    assert len(read_prompt(tmp_path)) == 1


def test_both_images_of_a_pair_are_turned_or_neither(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    for side, options in (("img", {"exif": exif}), ("label", {})):
        image = Image.new("RGB", (8, 6))
        image.putpixel((0, 0), (255, 255, 255))
        image.save(tmp_path / f"a_{side}.png", **options)
    [(first, second)] = read_prompt(tmp_path)
    assert first.tobytes() == second.tobytes()


def test_unreadable_prompt_is_an_error(tmp_path):
    with pytest.raises(UserError, match="prompt folder not found"):
        read_prompt(tmp_path / "none")
    (tmp_path / "a_img.png").write_bytes(b"not an image")
    write_image(tmp_path / "a_label.png")
    with pytest.raises(UserError, match="is a file"):
        read_prompt(tmp_path / "a_img.png")
    with pytest.raises(UserError, match=r"a_img\.png cannot be read as an image: not an image"):
        read_prompt(tmp_path)


def test_queries_are_sorted_images_of_a_folder(tmp_path):
    write_image(tmp_path / "q" / "b.png")
    write_image(tmp_path / "q" / "A.JPG")
    (tmp_path / "q" / "notes.txt").touch()
    (tmp_path / "q" / ".hidden.png").touch()
    (tmp_path / "q" / "below").mkdir()
    found, others = find_queries(tmp_path / "q")
    assert [path.name for path in found] == ["A.JPG", "b.png"]
    assert [path.name for path in others] == ["notes.txt"]
    assert find_queries(tmp_path / "q" / "b.png") == ([tmp_path / "q" / "b.png"], [])


def test_missing_queries_are_an_error(tmp_path):
    with pytest.raises(UserError, match="query not found"):
        find_queries(tmp_path / "none")
    with pytest.raises(UserError, match="has no images"):
        find_queries(tmp_path)
