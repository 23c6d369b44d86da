"""A student records how the images it is trained on were made square."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from delvm.interop.load import load_student
from delvm.interop.save import config_dict
from delvm.training.data.datamodules import SentenceDataModule
from delvm.training.student import StudentModule
from tests.data.shard_makers import token_plan


def data(*modes):
    plan = token_plan(4)
    manifests = {
        str(number): replace(plan, settings={"resize": mode} if mode else {})
        for number, mode in enumerate(modes)
    }
    return SimpleNamespace(train=SimpleNamespace(manifests=manifests))


@pytest.mark.parametrize(
    ("modes", "recorded"),
    [(["squash", "squash"], "squash"), (["", "pad"], "pad"), (["pad", "squash"], ""), ([""], "")],
)
def test_data_know_one_mode(modes, recorded):
    assert SentenceDataModule.resize.fget(data(*modes)) == recorded


def test_student_takes_it_over():
    student = load_student("shapes")
    codes = student.token_space.codebook_size
    layout = SimpleNamespace(
        path="", tokens_per_image=64, sentence_length=512, tasks=[], train_tasks=[],
        is_packed=False,
        codebook=torch.zeros(codes, student.config.codebook_dim or 1), tokenizer_fingerprint="abc",
    )  # fmt: skip
    module = StudentModule(student, loss=None, optimizer=None)
    module.connect_data(layout)
    assert "resize" not in config_dict(student)
    layout.resize = "pad"
    module.connect_data(layout)
    assert config_dict(student)["resize"] == "pad"
