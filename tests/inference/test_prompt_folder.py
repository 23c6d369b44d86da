"""Prompt folders and queries as users leave them lying about."""

import pytest
from PIL import Image

from delvm.errors import UserError
from delvm.inference.prompt_folder import find_queries, read_prompt


def picture(path, colour=(200, 30, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), colour).save(path)


def test_pairs_come_in_the_order_of_their_names(tmp_path):
    for number, name in enumerate(["b", "a", "c"]):
        picture(tmp_path / f"{name}_img.png", (number, 0, 0))
        picture(tmp_path / f"{name}_label.bmp", (0, number, 0))
    (tmp_path / "notes.txt").write_text("not part of the prompt")
    picture(tmp_path / "query.png")
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
            "two files for one picture: FOLDER/a_img.bmp and a_img.png",
        ),
    ],
)
def test_incomplete_prompts(tmp_path, files, line):
    for name in files:
        picture(tmp_path / name)
    with pytest.raises(UserError) as caught:
        read_prompt(tmp_path)
    assert str(caught.value) == line.replace("FOLDER", str(tmp_path))


def test_prompts_that_are_no_folder_or_no_pictures(tmp_path):
    with pytest.raises(UserError, match="prompt folder not found"):
        read_prompt(tmp_path / "none")
    (tmp_path / "a_img.png").write_bytes(b"no picture")
    picture(tmp_path / "a_label.png")
    with pytest.raises(UserError, match="is a file"):
        read_prompt(tmp_path / "a_img.png")
    with pytest.raises(UserError, match=r"a_img\.png cannot be read as a picture: not a picture"):
        read_prompt(tmp_path)


def test_queries(tmp_path):
    picture(tmp_path / "q" / "b.png")
    picture(tmp_path / "q" / "A.JPG")
    (tmp_path / "q" / "notes.txt").touch()
    (tmp_path / "q" / ".hidden.png").touch()
    (tmp_path / "q" / "below").mkdir()
    found, others = find_queries(tmp_path / "q")
    assert [path.name for path in found] == ["A.JPG", "b.png"]
    assert [path.name for path in others] == ["notes.txt"]
    assert find_queries(tmp_path / "q" / "b.png") == ([tmp_path / "q" / "b.png"], [])


def test_queries_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match="query not found"):
        find_queries(tmp_path / "none")
    with pytest.raises(UserError, match="has no pictures"):
        find_queries(tmp_path)
