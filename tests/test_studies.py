"""Studies: their commands compose, each stage's inputs are made, READMEs show what was measured."""

import shlex
import statistics
from pathlib import Path

import pytest

from delvm.commands.app import compose
from experiments.studies import __main__ as studies
from experiments.studies import stages
from experiments.studies.measure import Estimate, gap_closed, read_rows, write_rows
from experiments.studies.presets import PRESETS
from experiments.studies.stages import Stage, StageError, run_stages

NAMES = studies.list_studies()


@pytest.mark.parametrize("name", NAMES)
def test_each_input_of_a_stage_is_made_before_it(name):
    made: set[str] = set()
    for stage in studies.load(name).stages():
        assert set(stage.needs) <= made, stage.command
        made.add(stage.output)


@pytest.fixture
def preset(request):
    stages.use_preset(request.param)
    yield request.param
    stages.use_preset("cpu")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, preset",
    [*((name, "cpu") for name in NAMES), ("model_size", "gpu"), ("data", "gpu")],
    indirect=["preset"],
)
def test_commands_of_a_study_compose(name, preset):
    # Stages that differ by their paths, seeds and steps alone are composed once.
    varied = ("output_dir=", "seed=", "data.path=", "teacher.checkpoint=", "init_from=", "trainer.")
    kinds = {
        frozenset(word for word in stage.words if not word.startswith(varied)): stage
        for stage in studies.load(name).stages()
        if stage.words[0] == "train"
    }
    for stage in kinds.values():
        config = compose("train", stage.words[1:])
        made = Path(config.output_dir).relative_to(stages.out())
        is_tokenizer = "experiment=demo_tokenizer" in stage.words
        assert Path(stage.output) == made / ("tokenizer" if is_tokenizer else "student")


MEASURED = [name for name in NAMES if (studies.ROOT / name / "results.csv").exists()]


@pytest.mark.parametrize("name", MEASURED)
def test_readme_shows_the_measured_table(name):
    folder = studies.ROOT / name
    rows = read_rows(folder / "results.csv")
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert studies.load(name).table(rows) in readme
    assert f"python -m experiments.studies {name}" in readme and "plot.png" in readme
    assert f"({name}/README.md)" in (studies.ROOT / "README.md").read_text(encoding="utf-8")


def test_studies_without_results_are_marked_so():
    table = (studies.ROOT / "README.md").read_text(encoding="utf-8")
    for name in NAMES:
        (line,) = [line for line in table.splitlines() if f"`{name}`" in line]
        assert ("not run yet" in line) is (name not in MEASURED)


def test_estimate_is_a_mean_with_spread_and_interval():
    found = Estimate.of([1.0, 2.0, 4.0])
    assert found.mean == pytest.approx(7 / 3)
    assert found.spread == pytest.approx(statistics.stdev([1, 2, 4]))
    # Student's t of 2 degrees of freedom at 97.5% is 4.3027.
    assert found.half_width == pytest.approx(4.3027 * found.spread / 3**0.5, rel=1e-4)
    assert Estimate(0.5, 0.0, 0.25).interval(scale=100) == "50 (25 to 75)"


def test_gap_closed_is_paired_by_seed():
    found = gap_closed([4.0, 5.0], [3.5, 4.0], teacher=3.0)
    assert found.mean == pytest.approx(0.5) and found.spread == pytest.approx(0.0)


def test_results_survive_their_file(tmp_path):
    write_rows(tmp_path / "results.csv", [{"run": "a", "loss": 1 / 3}, {"run": "b", "score": 2}])
    assert read_rows(tmp_path / "results.csv") == [
        {"run": "a", "loss": "0.333333", "score": ""},
        {"run": "b", "loss": "", "score": "2"},
    ]


@pytest.fixture
def out(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "out", lambda: tmp_path)
    return tmp_path


@pytest.mark.slow
def test_stages_run_once_and_after_their_inputs(out, monkeypatch):
    prepare = "prepare source.size=32 source.num_val=1 source.num_test=1 splits=[test]"
    first = Stage("first/test/edges/manifest.json", f"{prepare} output_dir=OUT/first")
    inspect = "inspect input_dir=OUT/first output_dir=OUT/second"
    second = Stage("second/inspect.json", inspect, (first.output,))
    run_stages([second, first, first], jobs=1)
    assert first.is_done and second.is_done
    assert (first.seconds or 0) > 0
    before = (out / first.output).stat().st_mtime_ns
    run_stages([first, second], jobs=1)
    assert (out / first.output).stat().st_mtime_ns == before


def test_input_that_nothing_makes_is_an_error(out):
    with pytest.raises(StageError, match="nothing makes nowhere"):
        run_stages([Stage("there", "prepare", ("nowhere",))], jobs=1)


def test_two_stages_of_one_output_are_an_error(out):
    with pytest.raises(ValueError, match="two stages write there"):
        run_stages([Stage("there", "prepare"), Stage("there", "encode")], jobs=1)


def test_preset_of_a_gpu_scales_nets_and_steps():
    given = ["train", "experiment=distill_alone", "trainer.max_steps=800", "optimizer.lr=4e-3"]
    gpu = PRESETS["gpu"].apply([*given, "student.net.dim=32"])
    assert {"trainer=gpu", "trainer.max_steps=8000", "optimizer.lr=0.001"} < set(gpu)
    assert "student.net.dim=128" in gpu and "student.net.dim=512" not in gpu
    assert "student.net.dim=512" in PRESETS["gpu"].apply(given)
    assert PRESETS["cpu"].apply(given) == given
    assert PRESETS["gpu"].apply(["prepare", "source.size=32"]) == ["prepare", "source.size=32"]


@pytest.mark.parametrize("preset", ["gpu"], indirect=True)
@pytest.mark.parametrize("name", NAMES)
def test_preset_of_a_gpu_scales_the_steps_of_every_student(name, preset):
    def last(words, key):
        found = [word.partition("=")[2] for word in words if word.startswith(f"trainer.{key}=")]
        return int(found[-1]) if found else 800  # as experiment=distill_* has it

    for stage in studies.load(name).stages():
        before = shlex.split(stage.command)
        if any(word.startswith("experiment=distill_") for word in before):
            steps, validated = (
                last(stage.words, "max_steps"),
                last(stage.words, "val_check_interval"),
            )
            assert steps == 10 * last(before, "max_steps") and validated <= steps


def test_unknown_preset_is_named(capsys):
    assert studies.main(["preset=gpus", "distill"]) == 2
    assert "did you mean 'gpu'" in capsys.readouterr().err


def test_unknown_study_is_named(capsys):
    assert studies.main(["distillation"]) == 2
    assert "did you mean" in capsys.readouterr().err


def test_listing_has_a_line_for_each_study(capsys):
    assert studies.main([]) == 0
    printed = capsys.readouterr().out
    assert all(f"\n{name} " in printed for name in NAMES)
    assert "00:00" not in printed  # results without times have a dash
