"""The wheel: it holds all that the package needs, and works away from the checkout."""

import os
import subprocess
import sys
import zipfile

import pytest


def test_the_wheel_holds_code_configs_and_data_and_no_more(wheel, root):
    names = set(zipfile.ZipFile(wheel).namelist())
    files = {
        path.relative_to(root).as_posix()
        for path in (root / "delvm").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    configs = {f"delvm/{path.relative_to(root)}" for path in (root / "conf").rglob("*.yaml")}
    prompts = {
        f"delvm/{path.relative_to(root)}"
        for path in (root / "examples").rglob("*")
        if path.is_file() and not {"plugin", "slurm"} & set(path.parts)
    }
    assert files | configs | prompts == {name for name in names if name.startswith("delvm/")}
    assert {name.split("/")[0].split("-")[0] for name in names} == {"delvm"}


@pytest.mark.slow
def test_a_verb_composes_in_an_empty_folder(unpacked_wheel, tmp_path):
    code = "import sys, delvm.cli as cli; print(cli.__file__); sys.exit(cli.main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "train", "experiment=demo_teacher", "--cfg", "job"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(unpacked_wheel)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(unpacked_wheel))
    assert "max_steps: 700" in done.stdout  # from the experiment's file
    assert not list(tmp_path.iterdir())
