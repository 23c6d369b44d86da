"""The commands that experiments run compose, and their arithmetic is right."""

import shlex
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from delvm.commands.app import compose
from delvm.commands.build import build
from delvm.data.sources import SOURCES
from delvm.tasks import get_or_default
from experiments.sources.source_overview import IMAGES_PER_ROW, OVERVIEWS, row_images
from experiments.tokenizer import compare


@pytest.mark.slow
@pytest.mark.parametrize("name", compare.SETTINGS)
def test_each_stage_of_a_setting_composes(name):
    setting = compare.SETTINGS[name]
    made = {}
    for path, command in compare.stages(setting, 3, Path("out")):
        verb, *words = shlex.split(command)
        made[path] = compose(verb, words)
    tokenizer, _, tokens, student, report = made.values()
    expected = setting.codebook_size, setting.code_dim
    net = tokenizer.tokenizer.net
    assert (net.num_embeddings, net.quantized_embed_dim) == expected
    net = student.student.net
    assert (net.vocab_size, net.codebook_dim) == expected
    assert tokenizer.seed == student.seed == 3
    assert tokens.tokenizer == report.tokenizer == tokenizer.output_dir
    assert student.data.path == tokens.output_dir and student.init_from is None


@pytest.mark.slow
def test_tokenizer_settings_differ():
    commands = [
        " ".join(command for _, command in compare.stages(setting, 0, Path("out")))
        for setting in compare.SETTINGS.values()
    ]
    assert len(set(commands)) == len(commands)


@pytest.mark.slow
def test_score_is_relative_to_the_best_ceiling():
    def row(ceiling: float, answer: float) -> dict[str, float]:
        return {
            f"{task}_{what}": value
            for task in compare.TASKS
            for what, value in (("ceiling", ceiling), ("answer", answer), ("floor", 10.0))
        }

    rows = [row(20.0, 15.0), row(14.0, 14.0)]
    compare.add_scores(rows)
    assert [each["score"] for each in rows] == pytest.approx([0.5, 0.4])
    assert not any("floor" in key for each in rows for key in each)


ROWS = [row for rows in OVERVIEWS.values() for row in rows]


@pytest.mark.parametrize("source", SOURCES)
def test_source_settings_in_docs_and_overview(source):
    text = (Path(__file__).parents[1] / "docs/sources.md").read_text("utf-8")
    rows = [line for line in text.splitlines() if line.startswith(f"| `{source}`")]
    assert rows and source in {row.source for row in ROWS}
    shared = {"path", "size", "resize", "seed", "val_fraction", "test_fraction"}
    own = {field.name for field in fields(SOURCES[source])} - shared
    listed = " ".join(rows) + (
        "clip_length stride strides random_start overlap scene_cut_threshold cut_stride"
        if "as `video`" in rows[0]
        else ""
    )
    assert not {name for name in own if name not in listed}


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.title)
def test_overview_row_composes(row):
    words = [f"source={row.source}", *row.overrides, *(["source.path=x"] if row.raw else [])]
    assert isinstance(build(compose("prepare", words).source), SOURCES[row.source])
    assert all(get_or_default(task).name == task for task in row.tasks)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["pascal5i", "nyu_depth", "stereo", "reasoning"])
def test_sources_of_evaluations_are_prepared_from_the_command_line(tmp_path, source):
    row = next(row for row in ROWS if row.source == source)
    assert len(row_images(row, tmp_path, 64)) == IMAGES_PER_ROW


@pytest.mark.slow
def test_overview_row_shows_the_sources_images(tmp_path):
    row = next(row for row in ROWS if row.tasks == ("poses",))
    shown = row_images(row, tmp_path, 64)
    assert len(shown) == IMAGES_PER_ROW and all(each.size == (64, 64) for each in shown)
    task = get_or_default("poses")
    for image, target in zip(shown[::2], shown[1::2], strict=True):
        assert task.metric_fns["f1"](np.asarray(target), np.asarray(target)) == 1
        assert (np.asarray(target) == 0).all(2).mean() > 0.5 > (np.asarray(image) == 0).mean()
