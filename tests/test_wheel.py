"""The wheel: it holds all that the package needs, and works away from the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = folder.glob("*.whl")
    return found


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
def test_a_verb_composes_in_an_empty_folder(wheel, tmp_path):
    place, empty = tmp_path / "site", tmp_path / "empty"
    zipfile.ZipFile(wheel).extractall(place)
    empty.mkdir()
    code = "import sys, delvm.cli as cli; print(cli.__file__); sys.exit(cli.main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "train", "experiment=demo_teacher", "--cfg", "job"],
        cwd=empty,
        env=os.environ | {"PYTHONPATH": str(place)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(place))
    assert "max_steps: 700" in done.stdout  # from the experiment's file
    assert not list(empty.iterdir())
