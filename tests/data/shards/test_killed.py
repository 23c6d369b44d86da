"""Jobs killed before each of their changes to the disk: the old or the new is complete."""

import shutil
from dataclasses import dataclass

import pytest

from delvm import directories
from delvm.data.encode.encode import encode
from delvm.data.prepare.prepare import prepare
from delvm.data.shards.codebook import read_codebook
from delvm.data.shards.manifest import load_manifests
from delvm.data.shards.reader import read_examples, read_tokens
from delvm.directories import atomic_dir
from tests.data.corpus_makers import PART, FakeSource, FakeTokenizer, contents
from tests.kill_points import kill_points


@dataclass
class Small(FakeSource):
    """Six examples of two tasks, in chunks of two."""

    grown: int = 0

    def chunks(self, split):
        parts = super().chunks("val")["derain"]
        more = FakeSource.chunks(self, "train")["derain"][1:] if self.grown else []
        return {"derain": [*parts, *more], "pose": parts}

    def read(self, split, task, part):
        first = int(part.name) * PART
        yield from (self.pair(split, task, first + i) for i in range(part.count))


SPLITS = ["train", "val"]
JOBS = {
    "prepare": lambda root, new: prepare(
        Small(seed=int(new), size=32 if new else 16), root, SPLITS, overwrite=new
    ),
    "prepare-grown": lambda root, new: prepare(Small(grown=int(new)), root, SPLITS),
    "encode": lambda root, new: encode(
        root.parent / "images",
        root,
        FakeTokenizer(),
        "def" if new else "abc",
        splits=SPLITS,
        overwrite=new,
    ),
}


def load(root):
    """Everything in a root, read through; seed and fingerprint distinguish old from new."""
    found = set()
    for split in SPLITS:
        for kind in ("tokens", "images"):
            try:
                manifests = load_manifests(root, split, kind)
            except Exception as error:
                if f"not {kind}" in str(error):
                    continue
                raise
            for task, manifest in manifests.items():
                read = read_tokens if kind == "tokens" else read_examples
                assert sum(1 for _ in read(root, split, task))
                found.add((manifest.seed, manifest.fingerprint))
            if kind == "tokens":
                assert {read_codebook(root)[1]} == {each[1] for each in found}
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "exchange"), [*((name, True) for name in JOBS), ("encode", False)]
)
def test_killed_anywhere_leaves_old_or_new_complete(name, exchange, tmp_path, monkeypatch):
    if not exchange:
        monkeypatch.setattr(directories, "_exchange", lambda first, second: False)
    prepare(Small(), tmp_path / "images", SPLITS)
    job = JOBS[name]
    root, old, new = (tmp_path / each for each in ("root", "old", "new"))
    for path, states in ((old, [False]), (new, [False, True])):
        for state in states:
            job(path, state)

    def reset():
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(old, root)

    states = []
    for _ in kill_points(lambda: job(root, True), reset):
        (state,) = load(root)
        states.append(state)
        job(root, True)
        assert contents(root) == contents(new)
        assert not [path for path in root.rglob(".*") if path.name != ".gitignore"]
    assert len(states) > 20
    assert states == sorted(states)  # old ones, then new ones
    assert contents(root) == contents(new)


@pytest.mark.parametrize("exchange", [True, False])
def test_directory_killed_anywhere_is_old_or_new(exchange, tmp_path, monkeypatch):
    if not exchange:
        monkeypatch.setattr(directories, "_exchange", lambda first, second: False)
    path = tmp_path / "model"

    def write(text):
        with atomic_dir(path) as tmp:
            for name in ("a", "b"):
                (tmp / name).write_text(text)

    def reset():
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        write("old")

    for _ in kill_points(lambda: write("new"), reset):
        if exchange:
            assert len({*contents(path).values()}) == 1
        write("again")
        assert contents(tmp_path) == {"model/a": b"again", "model/b": b"again"}
