"""Ready prompts: every task that ships one is found."""

import pytest

from delvm.errors import UserError
from delvm.serving.limits import Limits
from delvm.serving.prompt_sets import check_prompt_sets, find_prompt_sets, shipped_prompts
from tests.serving.conftest import noise


def test_every_shipped_task_has_a_prompt():
    found = find_prompt_sets(shipped_prompts())
    assert [each.name for each in found][:4] == ["segmentation", "pose", "derain", "deblur"]
    assert all(len(each.pairs) == 3 and each.query.is_file() for each in found)


def test_a_directory_of_your_own(tmp_path):
    for name in ("zebra", "pose", "no_query"):
        (tmp_path / name).mkdir()
        for role in ("img", "label"):
            noise(0).save(tmp_path / name / f"1_{role}.png")
    noise(0).save(tmp_path / "zebra_query.jpg")
    noise(0).save(tmp_path / "pose_query.png")
    assert [each.name for each in find_prompt_sets(tmp_path)] == ["pose", "zebra"]


def test_without_prompts_it_is_refused(tmp_path):
    with pytest.raises(UserError, match="has no prompts: put pairs in"):
        find_prompt_sets(tmp_path)
    with pytest.raises(UserError, match="is not a directory: set prompts=DIR"):
        find_prompt_sets(tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "image", "words"),
    [
        ("a/1_label.png", (20, 30), "1_img.png has 20 x 16 pixels and .*1_label.png 20 x 30: crop"),
        ("a_query.png", (200, 200), "a_query.png has 200 x 200 pixels, above the limit of 10,000"),
        ("a/1_img.png", None, "prompts: .*1_img.png cannot be read as an image: send PNG, JPEG"),
    ],
)
def test_what_cannot_be_answered_is_found_at_the_start(tmp_path, name, image, words):
    (tmp_path / "a").mkdir()
    for each in ("a/1_img.png", "a/1_label.png", "a_query.png"):
        noise(0).save(tmp_path / each)
    found = find_prompt_sets(tmp_path)
    check_prompt_sets(found, Limits(max_pixels=10_000))
    if image is None:
        noise(0).save(tmp_path / name, "TIFF")
    else:
        noise(0, image).save(tmp_path / name)
    with pytest.raises(UserError, match=words):
        check_prompt_sets(found, Limits(max_pixels=10_000))
