"""Structure of the code: allowed imports, lengths of files and functions, declared dependencies."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Collection, Iterator
from graphlib import TopologicalSorter
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

# room (a folder or top-level module of delvm) -> the rooms it may import
BASE = {"errors", "untrusted", "directories", "storage", "progress", "legacy"}
ALLOWED = {
    "errors": set(),
    "untrusted": {"errors"},
    "directories": set(),
    "storage": {"errors", "untrusted"},
    "progress": set(),
    "legacy": set(),
    "viz": set(),
    "models": BASE,
    "tasks": {"errors", "legacy"},
    "data": BASE | {"tasks", "viz"},
    "interop": BASE | {"models", "data"},
    "inference": BASE | {"models", "interop", "tasks", "data", "viz"},
    "training": BASE | {"models", "interop", "tasks", "data", "inference", "viz"},
    "serving": BASE | {"interop", "inference", "tasks", "data"},
    "evaluation": BASE | {"models", "interop", "tasks", "data", "inference", "viz"},
}
ALLOWED["configs"] = {*ALLOWED}
ALLOWED["commands"] = {*ALLOWED}
ALLOWED["cli"] = {*ALLOWED}

# external package -> the only rooms that may import it
EXTERNAL = {
    "lightning": {"training", "configs", "commands"},
    "hydra": {"commands", "configs"},
    "omegaconf": {"commands", "configs"},
    "webdataset": {"data"},
    "matplotlib": {"evaluation"},
    "fsspec": {"storage"},
    "tqdm": {"progress"},
    "ray": {"data"},
    "submitit": {"data"},
    "gradio": {"serving"},
    "fastapi": {"serving"},
    "pydantic": {"serving"},
    "uvicorn": {"serving"},
    "huggingface_hub": {"interop"},
}
# They install a torchvision that breaks torch's CPU build, or download weights at run time.
FORBIDDEN = {
    "torchvision", "timm", "lpips", "piq", "torch_fidelity", "litdata", "open_clip",
}  # fmt: skip

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def room_of(path: Path) -> str:
    """The room of a file of delvm: its folder, or its own name at the top level."""
    return path.relative_to(ROOT / "delvm").parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Dotted names of all imports of a file, also within functions; `from a import b` is a.b."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_rooms(path: Path) -> set[str]:
    """The rooms of delvm that a file imports."""
    names = [name.split(".") for name in imports(path) if name.startswith("delvm.")]
    return {name[1] for name in names if name[1] in ALLOWED}


def imported_modules(path: Path, modules: Collection[str]) -> set[str]:
    """The modules of delvm that a file imports: of a package, for a name that is not its module."""
    found = set()
    for name in filter(lambda name: name.startswith("delvm."), imports(path)):
        found.add(name if name in modules else name.rpartition(".")[0])
    return found


def external_packages(path: Path) -> set[str]:
    """The external packages that a file imports."""
    return {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names) - {"delvm"}


def in_a_room(path: Path) -> bool:
    """False for the top-level __init__ and __main__, which import from several rooms."""
    return room_of(path) not in ("__init__", "__main__")


def package_name(requirement: str) -> str:
    """The package of a requirement: "torch>=2.6" -> "torch"."""
    return re.split(r"[<>=\[]", requirement)[0]


def test_import_table_is_complete():
    assert {room_of(path) for path in PACKAGE if in_a_room(path)} == set(ALLOWED)


@pytest.mark.parametrize("path", [*filter(in_a_room, PACKAGE)], ids=name_of)
@pytest.mark.slow
def test_imports_are_allowed(path):
    room = room_of(path)
    wrong = imported_rooms(path) - ALLOWED[room] - {room}
    assert not wrong, f"{room} must not import {', '.join(sorted(wrong))}"
    for package, rooms in EXTERNAL.items():
        assert package not in external_packages(path) or room in rooms, (
            f"{room} must not import {package}"
        )


def test_import_table_has_no_cycle():
    order = TopologicalSorter({room: below - {room} for room, below in ALLOWED.items()})
    order.prepare()  # raises CycleError


def test_files_do_not_import_in_circles():
    """Imports within functions included; the lazy exports of a room are for those outside of it."""
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in PACKAGE
    }
    is_lazy = {name for name, path in modules.items() if "def __getattr__" in path.read_text()}
    order = TopologicalSorter(
        {
            name: set() if name in is_lazy else imported_modules(path, modules) - {name}
            for name, path in modules.items()
        }
    )
    order.prepare()  # raises CycleError


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_file_and_function_length(path):
    text = path.read_text("utf-8")
    tree = ast.parse(text)
    assert len(text.splitlines()) <= MAX_FILE_LINES, "too long: split the file"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{node.name} has {length} lines"
    assert ast.get_docstring(tree) or name_of(path).startswith("tests"), "no docstring"
    assert not external_packages(path) & FORBIDDEN


def test_imports_are_declared():
    extras = PROJECT["optional-dependencies"]
    groups = ("data", "hub", "log", "scale", "serve", "xformers")
    optional = [each for group in groups for each in extras[group]]
    declared = set(map(package_name, [*PROJECT["dependencies"], *optional]))
    provides = importlib.metadata.packages_distributions()
    for package in sorted(set().union(*map(external_packages, PACKAGE))):
        names = {name.lower() for name in provides.get(package, [package])}
        assert names & declared, f"{package} is imported but not a dependency in pyproject.toml"


def test_dependencies_are_pinned():
    extras = PROJECT["optional-dependencies"]
    groups = (extras["dev"], extras["log"], extras["serve"], extras["hub"], extras["notebooks"])
    required = [*PROJECT["dependencies"], *(each for group in groups for each in group)]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    pinned = {pin.split("==")[0].lower().replace("_", "-") for pin in pins}
    assert {package_name(each).replace("_", "-") for each in required} <= pinned


def test_no_absolute_paths_of_a_machine():
    folders = ("delvm", "conf", "experiments", "tests", "notebooks", ".ci")
    suffixes = {".py", ".md", ".yaml", ".toml", ".txt", ".ipynb", ".css", ""}
    files = (path for path in ROOT.iterdir() if path.is_file() and path.name != ".git")
    top = [path for path in files if path.suffix in suffixes]
    below = [
        path
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix in suffixes and "__pycache__" not in path.parts
    ]
    machine_path = re.compile(r"(?<![\w.])/(?:home|root|work|Users|mnt|opt|tmp)/\w|\.\./shared")
    known = [*top, *below]
    found = [
        f"{name_of(path)}: {hit[0]}"
        for path in known
        if path != Path(__file__)
        and (hit := machine_path.search(path.read_text("utf-8", "ignore")))
    ]
    assert len(known) > 100 and not found


@pytest.mark.parametrize("module", ["delvm", "delvm.cli"])
def test_import_is_light(module):
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert not set(done.stdout.split()) & {"torch", "numpy", "hydra", "lightning", "gradio"}, (
        "imported too early"
    )
