"""Ready prompts: every task that ships one is found."""

import pytest

from delvm.errors import UserError
from delvm.serving.prompt_sets import find_prompt_sets, shipped_prompts
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
