"""Reading prompts: directories, JSON lists and lines of LVM, complete and incomplete."""

import json

import pytest
from PIL import Image

from delvm.errors import UserError
from delvm.inference.files.prompt_files import check_line_images, is_jsonl, read_lines, read_prompt


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
        ([], "prompt FOLDER has no pairs: it needs NAME_img.* and NAME_label.*"),
        (["a.png"], "prompt FOLDER has no pairs: it needs NAME_img.* and NAME_label.*"),
        (
            ["rain/a_img.png", "rain/a_label.png"],
            "prompt FOLDER has no pairs: it needs NAME_img.* and NAME_label.*, as FOLDER/rain has",
        ),
        (["a_img.png"], "unpaired FOLDER/a_img.png: a_label.* is not in the directory"),
        (
            ["a_img.png", "a_label.png", "b_label.png"],
            "unpaired FOLDER/b_label.png: b_img.* is not in the directory",
        ),
        (
            ["a_img.png", "a_img.bmp", "a_label.png"],
            "two files for one image: FOLDER/a_img.bmp and a_img.png",
        ),
    ],
)
def test_incomplete_prompt_is_an_error(tmp_path, files, line):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
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
    with pytest.raises(UserError, match="prompt not found"):
        read_prompt(tmp_path / "none")
    (tmp_path / "a_img.png").write_bytes(b"not an image")
    write_image(tmp_path / "a_label.png")
    with pytest.raises(UserError, match="is neither a directory, a .json list"):
        read_prompt(tmp_path / "a_img.png")
    with pytest.raises(UserError, match=r"a_img\.png cannot be read as an image: not an image"):
        read_prompt(tmp_path)


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def test_a_json_list_of_pairs(tmp_path):
    for number, name in enumerate(["a", "b"]):
        write_image(tmp_path / "images" / f"{name}.png", (number, 0, 0))
        write_image(tmp_path / "images" / f"{name}_t.bmp", (0, number, 0))
    entries = [
        {"input": "images/b.png", "target": "images/b_t.bmp"},
        ["images/a.png", "images/a_t.bmp"],
    ]
    pairs = read_prompt(write_json(tmp_path / "prompt.json", entries))
    assert [first.getpixel((0, 0)) for first, _ in pairs] == [(1, 0, 0), (0, 0, 0)]
    assert [second.getpixel((0, 0)) for _, second in pairs] == [(0, 1, 0), (0, 0, 0)]
    elsewhere = write_json(tmp_path / "elsewhere" / "prompt.JSON", entries)
    assert len(read_prompt(elsewhere, tmp_path)) == 2
    with pytest.raises(UserError, match=r"image not found: .*elsewhere/images/b\.png"):
        read_prompt(elsewhere)


OUTSIDE = "is not below FOLDER: write relative paths without '..', and set prompt_dir=DIR"
BAD_JSON = {
    b"": "prompt FILE cannot be read: Expecting value",
    b"[[": "prompt FILE cannot be read: Expecting value",
    b"{}": "prompt FILE: it is '{}', not a list",
    b"[]": 'prompt FILE has no pairs: it needs [["INPUT", "TARGET"], ...]',
    b"[5]": "prompt FILE: pair 1: it is '5', not a list",
    b'["a.png", "b.png"]': "prompt FILE: pair 1: it is 'a.png', not a list",
    b'[["a.png"]]': "prompt FILE: pair 1 has 1 images: it needs input and target",
    b'[["a.png", "a.png", "a.png"]]': "prompt FILE: pair 1 has 3 images: it needs input and target",
    b'[["a.png", "a.png"], ["a.png", 5]]': "prompt FILE: pair 2: [1] is '5', not text",
    b'[{"input": "a.png"}]': "prompt FILE: pair 1: target missing",
    b'[{"input": "a.png", "target": null}]': "prompt FILE: pair 1: target is 'None', not text",
    b'[{"input": "a.png", "target": "a.png", "x": 1}]': "prompt FILE: pair 1: unknown keys 'x'",
    b'[["/a.png", "a.png"]]': f"prompt FILE: pair 1: path '/a.png' {OUTSIDE}",
    b'[["../a.png", "a.png"]]': f"prompt FILE: pair 1: path '../a.png' {OUTSIDE}",
    b'[["", "a.png"]]': f"prompt FILE: pair 1: path '' {OUTSIDE}",
    b'[["a.png", "none.png"]]': "image not found: FOLDER/none.png",
    b'[["a.png", "nul\\u0000.png"]]': "image not found: FOLDER/nul",
    b'[["a.png", "\\ud800.png"]]': "image not found: FOLDER/",
    b'[["'
    + b"n" * 260
    + b'", "a.png"]]': f"prompt FILE: pair 1: path '{'n' * 40}'... is longer than",
    b'[["a.png", "."]]': f"prompt FILE: pair 1: path '.' {OUTSIDE}",
    b'[["a.png", "below"]]': "FOLDER/below is a directory, not an image",
    b'[["a.png", "bad.json"]]': "FOLDER/bad.json cannot be read as an image: not an image",
    b"[" * 100_000: "prompt FILE cannot be read: it is nested too deeply",
    b'[["\xff", "a.png"]]': "prompt FILE cannot be read: 'utf-8' codec",
    "[]".encode("utf-16"): "prompt FILE cannot be read: 'utf-8' codec",
}


@pytest.mark.parametrize("content", BAD_JSON, ids=lambda each: repr(each[:40]))
def test_a_bad_json_list_is_one_line(tmp_path, content):
    write_image(tmp_path / "a.png")
    (tmp_path / "below").mkdir()
    file = tmp_path / "bad.json"
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_prompt(file)
    line = BAD_JSON[content].replace("FILE", str(file)).replace("FOLDER", str(tmp_path))
    assert str(caught.value).startswith(line) and "\n" not in str(caught.value)


def test_a_huge_json_file_is_not_read(tmp_path):
    for name, read in (("huge.json", read_prompt), ("huge.jsonl", read_lines)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(65 * 2**20)
        with pytest.raises(UserError, match="has 68,157,440 bytes, and the limit is 67,108,864: s"):
            read(tmp_path / name)


def test_lines_of_lvm(tmp_path):
    for name in "abcdefgh":
        write_image(tmp_path / f"{name}.png")
    lines = [
        {"input": ["a.png", "b.png", "c.png"], "target": ["d.png", "e.png"]},
        {"input": ["a.png", "b.png", "c.png", "d.png", "e.png"], "output": "x/1.jpg", "id": 3},
    ]
    file = tmp_path / "eval.jsonl"
    file.write_text("\ufeff" + "\n\n".join(map(json.dumps, lines)) + "\n")
    first, second = read_lines(file)
    assert first.pairs == ((tmp_path / "a.png", tmp_path / "b.png"),)
    assert (first.query, first.output) == (tmp_path / "c.png", None)
    assert first.targets == (tmp_path / "d.png", tmp_path / "e.png") and second.targets == ()
    assert first.where == f"prompt {file}: line 1" and second.where.endswith("line 3")
    assert (len(second.pairs), second.query, second.output) == (2, tmp_path / "e.png", "x/1.jpg")
    check_line_images([first, second])
    [moved] = read_lines(write_json(tmp_path / "other" / "eval.jsonl", lines[0]), tmp_path)
    assert moved.pairs == first.pairs and moved.query == first.query


ODD = "images: it needs one or more pairs and then the query, an odd number of 3 or more"
BAD_LINES = {
    "": "prompt FILE has no lines: set prompt to a file with examples",
    "[]": "prompt FILE: line 1: it is '[]', not an object",
    '\n{"input": 3': "prompt FILE: line 2 cannot be read: Expecting",
    '{"target": ["a.png"]}': "prompt FILE: line 1: input missing",
    '{"input": "a.png"}': "prompt FILE: line 1: input is 'a.png', not a list",
    '{"input": ["a.png", 4, "a.png"]}': "prompt FILE: line 1: input[1] is '4', not text",
    '{"input": ["a.png", "a.png", "a.png"], "output": ["x"]}': "prompt FILE: line 1: output is",
    '{"input": ["a.png", "a.png", "a.png"], "target": "a.png"}': "prompt FILE: line 1: target is",
    '{"input": []}': f"prompt FILE: line 1: input has 0 {ODD}",
    '{"input": ["a.png"]}': f"prompt FILE: line 1: input has 1 {ODD}",
    '{"input": ["a.png", "a.png", "a.png", "a.png"]}': f"prompt FILE: line 1: input has 4 {ODD}",
    '{"input": ["a.png", "/a.png", "a.png"]}': f"prompt FILE: line 1: path '/a.png' {OUTSIDE}",
    '{"input": ["a.png", "a.png", "a.png"], "target": ["../b"]}': "prompt FILE: line 1: path '../",
    '{"input": ["a.png", "a.png", "x.png"]}': "image not found: prompt FILE: line 1: FOLDER/x.png",
    '{"input": ["a.png", "a.png", "bad.jsonl"]}': "prompt FILE: line 1: FOLDER/bad.jsonl cannot be",
    '{"input": ["a.png", "wide.png", "a.png"]}': "FOLDER/a.png has 8 x 6 pixels and wide.png 9 x 3",
}


@pytest.mark.parametrize("text", BAD_LINES)
def test_a_bad_line_is_one_line_that_names_it(tmp_path, text):
    write_image(tmp_path / "a.png")
    Image.new("RGB", (9, 3)).save(tmp_path / "wide.png")
    file = tmp_path / "bad.jsonl"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        check_line_images(read_lines(file))
    line = BAD_LINES[text].replace("FILE", str(file)).replace("FOLDER", str(tmp_path))
    assert str(caught.value).startswith(line) and "\n" not in str(caught.value)


def test_pairs_of_a_line_may_differ_by_an_exif_tag_alone(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 8)).save(tmp_path / "a.jpg", exif=exif)
    write_image(tmp_path / "b.png")
    line = {"input": ["a.jpg", "b.png", "b.png"]}
    check_line_images(read_lines(write_json(tmp_path / "a.jsonl", line)))


def test_prompts_that_do_not_exist_or_are_something_else(tmp_path):
    assert is_jsonl("a.JSONL") and not is_jsonl("a.json") and not is_jsonl(tmp_path)
    with pytest.raises(UserError, match=r"prompt not found: none\.jsonl .set prompt=FILE\.jsonl"):
        read_lines("none.jsonl")
    (tmp_path / "a.jsonl").mkdir()
    with pytest.raises(UserError, match=r"a\.jsonl is not a file"):
        read_lines(tmp_path / "a.jsonl")
