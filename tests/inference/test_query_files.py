"""Which files are queries: one, those of a directory, or those that a pattern matches."""

import pytest
from PIL import Image

from delvm.errors import UserError
from delvm.inference.files.answer_files import plan_outputs
from delvm.inference.files.query_files import check_queries, find_queries


def write_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6)).save(path)
    return path


def answers(query, output):
    found = plan_outputs(str(query), str(output)).questions
    return [str(each.answer.relative_to(output)) for each in found]


def test_queries_are_sorted_images_of_a_directory(tmp_path):
    for name in ("b.png", "A.JPG", ".hidden.png"):
        write_image(tmp_path / "q" / name)
    (tmp_path / "q" / "notes.txt").touch()
    (tmp_path / "q" / "below").mkdir()
    found = find_queries(tmp_path / "q")
    assert [path.name for path in found.images] == ["A.JPG", "b.png"]
    assert [path.name for path in found.others] == ["notes.txt"]
    one = tmp_path / "q" / "b.png"
    assert find_queries(one) == ([one], [], tmp_path / "q")


@pytest.mark.parametrize(
    "pattern, expected",
    [
        ("*.png", []),
        ("**/*.jpg", ["one/a.jpg", "two/deep/a.jpg"]),
        ("one/*", ["one/a.jpg", "one/b.png"]),
        ("*/[ab].*", ["one/a.jpg", "one/b.png"]),
        ("t?o/**/*.*", ["two/deep/a.jpg"]),
        ("**", ["one/a.jpg", "one/b.png", "two/deep/a.jpg"]),
    ],
)
def test_a_pattern_matches_images_at_any_depth(tmp_path, pattern, expected):
    for name in ("one/a.jpg", "one/b.png", "two/deep/a.jpg", "one/.hidden.jpg"):
        write_image(tmp_path / name)
    (tmp_path / "one" / "notes.txt").touch()
    if not expected:
        with pytest.raises(UserError, match=r"query .*\*.png matches no images: set query to an"):
            find_queries(tmp_path / pattern)
        return
    found = find_queries(tmp_path / pattern)
    assert [str(each.relative_to(tmp_path)) for each in found.images] == expected


def test_a_name_that_exists_is_not_a_pattern(tmp_path):
    literal = write_image(tmp_path / "photo[1].png")
    write_image(tmp_path / "photo1.png")
    assert find_queries(literal).images == [literal]
    write_image(tmp_path / "set*" / "a.png")
    write_image(tmp_path / "set1" / "b.png")
    assert find_queries(tmp_path / "set*").images == [tmp_path / "set*" / "a.png"]
    literal.unlink()
    assert find_queries(literal).images == [tmp_path / "photo1.png"]


def test_missing_queries_are_an_error(tmp_path):
    with pytest.raises(UserError, match="query not found: .*none .set query=IMAGE, query=DIR or"):
        find_queries(tmp_path / "none")
    with pytest.raises(UserError, match="has no images"):
        find_queries(tmp_path)


def test_queries_of_one_stem_in_several_directories_have_answers_of_their_own(tmp_path):
    for name in ("q/x/a.png", "q/y/a.png", "q/y/a.jpg", "q/a.png"):
        write_image(tmp_path / name)
    assert answers(tmp_path / "q/**/*.*", tmp_path / "out") == [
        "a_answer.png",
        "x/a_answer.png",
        "y/a.jpg_answer.png",
        "y/a.png_answer.png",
    ]
    assert answers(tmp_path / "q/x/*.png", tmp_path / "out") == ["a_answer.png"]


def test_no_two_queries_share_an_answer(tmp_path):
    for name in ("a.png", "a.jpg", "a.png.jpg", "a.png.png"):
        write_image(tmp_path / "q" / name)
    found = answers(tmp_path / "q", tmp_path / "out")
    assert len(set(found)) == 4, found


def test_a_pattern_does_not_match_answers(tmp_path):
    for name in ("a.png", "out/a_answer.png", "out/below/b_answer.png"):
        write_image(tmp_path / name)
    assert answers(tmp_path / "**/*.png", tmp_path / "out") == ["a_answer.png"]
    with pytest.raises(UserError, match=r"matches no images but 3 in output .*: set query to an"):
        plan_outputs(str(tmp_path / "**/*.png"), str(tmp_path))


def test_one_file_takes_a_pattern_of_one_image(tmp_path):
    write_image(tmp_path / "a.png")
    output = tmp_path / "answer.png"
    assert plan_outputs(str(tmp_path / "?.png"), str(output)).questions[0].answer == output
    write_image(tmp_path / "b.png")
    with pytest.raises(UserError, match=r"is 2 images, output .*answer.png one file: set output="):
        plan_outputs(str(tmp_path / "?.png"), str(output))


def test_queries_that_only_their_headers_promise_are_refused_before_any_answer(
    tmp_path, monkeypatch
):
    large = write_image(tmp_path / "large.png")
    Image.new("RGB", (8, 6)).save(tmp_path / "a.eps")  # which would run a program
    check_queries([large])
    with pytest.raises(UserError, match=r"a\.eps cannot be read as an image"):
        check_queries([tmp_path / "a.eps"])
    monkeypatch.setattr("delvm.data.image_io.MAX_PIXELS", 47)
    with pytest.raises(UserError, match=r"large\.png is too large .* the limit is 47 pixels"):
        check_queries([large])
