"""Every notebook is stored without outputs and runs, as a wheel installs the package."""

import ast
import importlib.metadata
import os
import re
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_notebooks_exist():
    assert NOTEBOOKS


@each_notebook
def test_notebook_has_no_outputs(path: Path):
    for cell in nbformat.read(path, as_version=4).cells:
        assert cell.cell_type != "code" or (not cell.outputs and cell.execution_count is None)


@pytest.mark.slow
@each_notebook
def test_notebook_imports_what_it_declares(path: Path):
    """Only the package, and what `pip install 'delvm[notebooks]'` brings."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    required = [*project["dependencies"], *project["optional-dependencies"]["notebooks"]]
    declared = {re.split(r"[<>=\[]", each)[0].lower() for each in required}
    provides = importlib.metadata.packages_distributions()
    source = "\n".join(
        cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"
    )
    imported = {
        alias.name if isinstance(node, ast.Import) else str(node.module)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    names = {name.partition(".")[0] for name in imported} - {*sys.stdlib_module_names, "delvm"}
    for name in sorted(names):
        packages = {package.lower() for package in provides.get(name, [name])}
        assert packages & declared, f"{name} is not a dependency, or in the extra notebooks"


@pytest.mark.slow
@each_notebook
def test_notebook_runs(path: Path, unpacked_wheel: Path, tmp_path: Path):
    """In an empty folder, from the wheel: a notebook needs nothing of the checkout."""
    notebook = nbformat.read(path, as_version=4)
    where = nbformat.v4.new_code_cell("import delvm\nprint(delvm.__file__)")
    notebook.cells.insert(0, where)
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    # Without the backend of the tests, which shows no plots.
    inherited = {key: value for key, value in os.environ.items() if key != "MPLBACKEND"}
    client.execute(env=inherited | {"PYTHONPATH": str(unpacked_wheel)})
    assert where.outputs[0].text.startswith(str(unpacked_wheel))
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs), "shows no image"
