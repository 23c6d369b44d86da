"""Values of text keys reach the work as they were typed; those of other keys stay numbers."""

import pytest

from delvm.commands.app import compose
from delvm.configs.text import quote_text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["2024_01_05", "1.10", "1e3", "007", "true", "inf", "-1.0e2"])
def test_text_stays_as_typed(name):
    assert compose("prepare", [f"output_dir={name}"]).output_dir == name
    assert compose("encode", [f"tokenizer={name}"]).tokenizer == name
    assert compose("evaluate", [f"students.mine={name}"]).students == {"mine": name}
    assert compose("prepare", ["source=gopro", f"source.path={name}"]).source.path == name


def test_null_lists_and_numbers_stay_as_hydra_has_them():
    cfg = compose("evaluate", ["fid_features=null", "temperature=1e-1", "tasks=[1_0,'a,1.0']"])
    assert (cfg.fid_features, cfg.temperature, cfg.tasks) == (None, 0.1, ["1_0", "a,1.0"])


@pytest.mark.parametrize(
    ("override", "quoted"),
    [
        ("output_dir=1.10", "output_dir='1.10'"),
        ("output_dir='1.10'", "output_dir='1.10'"),
        ("output_dir=runs/1.10", "output_dir=runs/1.10"),
        ("output_dir=1.10, 1e3,a", "output_dir='1.10', '1e3',a"),
        ("output_dir=choice(1.10,1_0)", "output_dir=choice('1.10','1_0')"),
        ("tokenizer=range(1.0,3.0)", "tokenizer=range(1.0,3.0)"),
        ("hydra.sweep.subdir=2024_01_05", "hydra.sweep.subdir='2024_01_05'"),
        ("seed=1_0", "seed=1_0"),
        ("nonsense=1.10", "nonsense=1.10"),
        ("output_dir=[1.10", "output_dir=[1.10"),
    ],
)
def test_only_text_is_quoted(override, quoted):
    assert quote_text("encode", [override]) == [quoted]


def test_text_of_the_parts_of_a_training_run():
    quoted = {
        "data.path=1.10": True,
        "teacher.checkpoint=2024_01_05": True,
        "callbacks.checkpoint.every_n_train_steps=1_0": False,
        "logger.csv.name=1.10": True,
        "optimizer.lr=1e-3": False,
        "+callbacks.early.min_delta=1e-3": False,
        "student.net.norm_eps=1e-5": False,
    }
    for override, expected in quoted.items():
        assert ("'" in quote_text("train", [override])[0]) == expected, override
