"""Students with more ids than the tokenizer has codes, as LVM's have for special tokens."""

import pytest

from delvm.configs.validate import config_errors
from delvm.interop.load import load_student
from tests.training.runs import V, student_config, train

SPARE = (f"student.net.vocab_size={V + 4}", "student.net.embedding=learned")


def test_ids_above_the_codes_are_trained_on_and_never_sampled(tokens, tmp_path):
    cfg = student_config(tokens, 2, *SPARE, "module.token_noise=1.0")
    assert config_errors("train", cfg) == []
    train(cfg, tmp_path / "run")
    student = load_student(tmp_path / "run/student")
    assert student.vocab_size == V + 4
    assert student.token_space.codebook_size == V


@pytest.mark.slow
def test_a_codebook_has_no_ids_to_spare_and_no_student_too_few(tokens):
    for words in (SPARE[:1], (f"student.net.vocab_size={V - 4}", SPARE[1])):
        (error,) = config_errors("train", student_config(tokens, 2, *words))
        assert error.startswith(f"codebook size {V}") and f"set student.net.vocab_size={V}" in error
