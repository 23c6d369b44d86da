"""The commands that experiments run compose, and their arithmetic is right."""

import shlex
from pathlib import Path

import pytest

from delvm.commands.app import compose
from experiments.tokenizer import compare


@pytest.mark.parametrize("name", compare.SETTINGS)
def test_each_stage_of_a_setting_composes(name):
    setting = compare.SETTINGS[name]
    made = {}
    for path, command in compare.stages(setting, 3, Path("out")):
        verb, *words = shlex.split(command)
        made[path] = compose(verb, words)
    tokenizer, _, tokens, student, report = made.values()
    net = tokenizer.tokenizer.net
    assert (net.num_embeddings, net.quantized_embed_dim) == (setting.codes, setting.width)
    assert (student.student.net.vocab_size, student.student.net.codebook_dim) == (
        setting.codes,
        setting.width,
    )
    assert tokenizer.seed == student.seed == 3
    assert tokens.tokenizer == report.tokenizer == tokenizer.output
    assert student.data.path == tokens.output and student.start is None


def test_settings_differ():
    commands = [
        " ".join(command for _, command in compare.stages(setting, 0, Path("out")))
        for setting in compare.SETTINGS.values()
    ]
    assert len(set(commands)) == len(commands)


def test_the_score_is_relative_to_the_best_ceiling():
    def row(ceiling: float, answer: float) -> dict[str, float]:
        return {
            f"{task}_{what}": value
            for task in compare.TASKS
            for what, value in (("ceiling", ceiling), ("answer", answer), ("floor", 10.0))
        }

    rows = [row(20.0, 15.0), row(14.0, 14.0)]
    compare.standings(rows)
    assert [each["score"] for each in rows] == pytest.approx([0.5, 0.4])
    assert not any("floor" in key for each in rows for key in each)
