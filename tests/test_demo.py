"""The demo script, and a smoke test of the complete pipeline."""

import json
import re
import subprocess
import sys

import pytest

from delvm.commands import VERBS
from experiments.demo import run as demo


def test_each_stage_is_a_command_with_its_own_directory(tmp_path):
    for smoke in (False, True):
        stages = demo.commands(tmp_path, smoke)
        assert {words[0] for words in stages.values()} <= set(VERBS)
        for name, words in stages.items():
            folder = tmp_path if name == "report" else tmp_path / name
            assert {f"output={folder}", f"output_dir={folder}"} & set(words)
            assert not any("OUT" in word for word in words)
    assert set(demo.SMOKE) <= set(stages)


def test_stage_reports_time_and_memory(root):
    # In a process of its own: what is forked here starts with the memory of all tests before.
    code = "from experiments.demo import run; print(run.run_stage('help', ['--help']))"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert "command='delvm --help'" in done.stdout, done.stderr
    found = {
        key: float(value) for key, value in re.findall(r"(seconds|peak_mib)=([\d.]+)", done.stdout)
    }
    assert 0 < found["seconds"] < 60 and 1 < found["peak_mib"] < 1000


@pytest.mark.slow
def test_failing_stage_stops_the_demo(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(
        demo, "STAGES", (("first", "prepare source.sise=32"), ("second", "--version"))
    )
    assert demo.main(["--output", str(tmp_path)]) == 2
    out, err = capfd.readouterr()
    assert "[1/2]" in out and "[2/2]" not in out
    assert "delvm prepare source.sise=32` failed" in err.splitlines()[-1]


def test_stages_of_an_earlier_run_are_replaced_and_other_files_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "STAGES", (("first", "--version"),))
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "stale").touch()
    (tmp_path / "mine").touch()
    assert demo.main(["--output", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "stages.json"]


@pytest.mark.slow
def test_complete_pipeline(root, tmp_path):
    command = [sys.executable, "experiments/demo/run.py", "--smoke", "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Traceback" not in done.stderr

    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert set(metrics["students"]) == {"teacher", "student_kd", "student_no_kd"}
    assert {"segmentation", "pose", "derain", "deblur", "edges"} <= set(metrics["tasks"])
    page = (tmp_path / "report.html").read_text()
    assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", page), "not self-contained"

    stages = json.loads((tmp_path / "stages.json").read_text())
    assert [stage["stage"] for stage in stages] == [name for name, _ in demo.STAGES]
    assert all(stage["seconds"] > 0 and stage["peak_mib"] > 1 for stage in stages)
    for name in ("report.html", "metrics.json", "stages.json"):
        assert str(tmp_path / name) in done.stdout

    # The two students have the same network and the same number of steps.
    nets = [
        json.loads((tmp_path / name / "student" / "config.json").read_text())["config"]
        for name in ("student", "student_no_kd")
    ]
    assert nets[0] == nets[1]
