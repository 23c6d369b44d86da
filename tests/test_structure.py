"""The shape of the code: who may import whom, and how long a file or a function may be."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = sorted((ROOT / "delvm").rglob("*.py"))
SOURCES = [
    *PACKAGE,
    *(
        path
        for folder in ("experiments", "tests")
        for path in sorted((ROOT / folder).rglob("*.py"))
    ),
]

# part of delvm -> the parts it may import; configs and commands, at the end, may import all.
BASE = {"errors", "storage", "progress", "legacy"}
ALLOWED = {
    "errors": set(),
    "storage": {"errors"},
    "progress": set(),
    "legacy": set(),
    "viz": set(),
    "models": BASE,
    "tasks": {"errors", "legacy"},
    "data": BASE | {"tasks", "viz"},
    "interop": BASE | {"models"},
    "inference": BASE | {"models", "interop", "tasks", "data", "viz"},
    "training": BASE | {"models", "interop", "tasks", "data", "viz"},
    "evaluation": BASE | {"models", "interop", "tasks", "data", "inference", "viz"},
}
ALLOWED["configs"] = {*ALLOWED}
ALLOWED["commands"] = {*ALLOWED}
ALLOWED["cli"] = {*ALLOWED}

# packages of others -> the only parts that may import them
FOREIGN = {
    "lightning": {"training", "configs", "commands"},
    "hydra": {"commands", "configs"},
    "omegaconf": {"commands", "configs"},
    "webdataset": {"data"},
    "matplotlib": {"evaluation"},
    "fsspec": {"storage"},
    "tqdm": {"progress"},
    "ray": {"data"},
    "submitit": {"data"},
}
# They bring a torchvision that breaks torch's CPU build, or fetch weights at run time.
FORBIDDEN = {
    "torchvision", "timm", "lpips", "piq", "torch_fidelity", "litdata", "open_clip",
}  # fmt: skip

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
LONGEST_FILE = 400
LONGEST_FUNCTION = 60


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def part_of(path: Path) -> str:
    """The part of delvm a file belongs to: its folder, or its own name at the top."""
    return path.relative_to(ROOT / "delvm").parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Every module a file imports, dotted, wherever in the file; `from a import b` gives a.b."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def parts_imported(path: Path) -> set[str]:
    """The parts of delvm a file imports."""
    names = [name.split(".") for name in imports(path) if name.startswith("delvm.")]
    return {name[1] for name in names if name[1] in ALLOWED}


def outsiders(path: Path) -> set[str]:
    """The top-level packages of others a file imports."""
    return {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names) - {"delvm"}


def in_parts(path: Path) -> bool:
    """Whether a file belongs to a part; the package's own front door imports from several."""
    return part_of(path) not in ("__init__", "__main__")


def package_of(requirement: str) -> str:
    """The name in a requirement: "torch>=2.6" -> "torch"."""
    return re.split(r"[<>=\[]", requirement)[0]


def test_the_table_names_every_part():
    assert {part_of(path) for path in PACKAGE if in_parts(path)} == set(ALLOWED)


@pytest.mark.parametrize("path", [*filter(in_parts, PACKAGE)], ids=name_of)
def test_imports_run_one_way(path):
    part = part_of(path)
    wrong = parts_imported(path) - ALLOWED[part] - {part}
    assert not wrong, f"{part} must not import {', '.join(sorted(wrong))}"
    for package, parts in FOREIGN.items():
        assert package not in outsiders(path) or part in parts, f"{part} must not import {package}"


def test_the_table_has_no_circle():
    done: set[str] = set()
    while len(done) < len(ALLOWED):
        ready = {part for part, below in ALLOWED.items() if below - {part} <= done} - done
        assert ready, f"a circle among {sorted(set(ALLOWED) - done)}"
        done |= ready


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_stay_readable(path):
    text = path.read_text("utf-8")
    tree = ast.parse(text)
    assert len(text.splitlines()) <= LONGEST_FILE, "look for the seam"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= LONGEST_FUNCTION, f"{node.name} has {length} lines"
    assert ast.get_docstring(tree) or name_of(path).startswith("tests"), "no docstring"
    assert not outsiders(path) & FORBIDDEN


def test_what_is_imported_is_declared():
    extras = PROJECT["optional-dependencies"]  # these are imported where they are needed
    optional = [*extras["data"], *extras["scale"], *extras["xformers"]]
    declared = set(map(package_of, [*PROJECT["dependencies"], *optional]))
    provides = importlib.metadata.packages_distributions()
    for package in sorted(set().union(*map(outsiders, PACKAGE))):
        names = {name.lower() for name in provides.get(package, [package])}
        assert names & declared, f"{package} is imported, and pyproject.toml does not ask for it"


def test_every_declared_package_is_pinned():
    extras = PROJECT["optional-dependencies"]
    wanted = [*PROJECT["dependencies"], *extras["dev"], *extras["log"]]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    pinned = {pin.split("==")[0].lower().replace("_", "-") for pin in pins}
    assert set(map(package_of, wanted)) <= pinned


def test_no_file_knows_the_machine_it_was_written_on():
    folders = ("delvm", "conf", "experiments", "tests", "notebooks", ".ci")
    suffixes = {".py", ".md", ".yaml", ".toml", ".txt", ".ipynb", ".css", ""}
    top = [path for path in ROOT.iterdir() if path.is_file() and path.suffix in suffixes]
    below = [
        path
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix in suffixes and "__pycache__" not in path.parts
    ]
    place = re.compile(r"(?<![\w.])/(?:home|root|work|Users|mnt|opt|tmp)/\w|\.\./shared")
    known = [*top, *below]
    found = [
        f"{name_of(path)}: {hit[0]}"
        for path in known
        if path != Path(__file__) and (hit := place.search(path.read_text("utf-8", "ignore")))
    ]
    assert len(known) > 100 and not found


@pytest.mark.parametrize("module", ["delvm", "delvm.cli"])
def test_the_front_door_is_light(module):
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert not set(done.stdout.split()) & {"torch", "numpy", "hydra", "lightning"}, "too soon"
