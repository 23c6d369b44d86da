"""Every kind of bad input that is known of, through the verb: none stops the job."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from delvm import cli
from delvm.data.prepare.chunks import read_rejects
from delvm.data.shards.reader import read_examples
from tests.data.sources import bad_files
from tests.data.sources.bad_files import BAD, GOOD, encoded, save, smooth


class Case(NamedTuple):
    """A file, written below a root, and what becomes of it.

    Attributes:
        source: as in conf/verbs/source.
        write: writes it; returns its key in the list of rejects, or of its example.
        reason: why it is rejected; None where it is read.
    """

    source: str
    write: Callable[[Path], str]
    reason: str | None


def one(name: str, write: Callable[[Path], object]) -> Callable[[Path], str]:
    """A writer of a image `name`, given the root."""

    def written(root: Path) -> str:
        root.mkdir(exist_ok=True)
        write(root / name)
        return name

    return written


def bad(name: str) -> Case:
    write, reason = BAD[name]
    return Case("images", one(name, write), reason)


def good(name: str) -> Case:
    return Case("images", one(name, GOOD[name]), None)


def truncated_tar(root: Path) -> str:
    images = {f"{n}.jpg": encoded(smooth(seed=n), "jpg") for n in range(3)}
    bad_files.truncated_tar(root / "cut.tar", images)
    return "cut.tar"


def climbing(root: Path) -> str:
    return f"up.tar/{bad_files.climbing_member(root / 'up.tar')}"


def broken_rle(root: Path) -> str:
    return bad_files.broken_rle(root / "sa_000000.tar")


def corrupt_mp4(root: Path) -> str:
    root.mkdir(exist_ok=True)
    shown = [smooth(32, 32, seed=1)] * 12
    bad_files.write_mp4(root / "good.mp4", shown)
    noise = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    bad_files.corrupt_mp4(root / "spoilt.mp4", list(noise))
    return "spoilt.mp4"


CASES = {
    "truncated JPEG": bad("truncated.jpg"),
    "zero bytes": bad("empty.jpg"),
    "HTML named .jpg": bad("page.jpg"),
    "CMYK": good("cmyk.jpg"),
    "16-bit": good("deep.png"),
    "palette with alpha": good("palette.png"),
    "EXIF-rotated": good("rotated.jpg"),
    "one pixel wide": good("thin.png"),
    "decompression bomb": bad("bomb.png"),
    "missing target": Case("paired", bad_files.missing_target, "missing target"),
    "input and target of different size": Case(
        "paired", bad_files.other_size, "have different sizes"
    ),
    "broken RLE": Case("sa1b", broken_rle, "mask 0: RLE that ends within a number"),
    "corrupt mp4": Case("video", corrupt_mp4, "frame 4: damaged frames"),
    "truncated tar": Case("laion", truncated_tar, "truncated or damaged"),
    "member that climbs out": Case("laion", climbing, "its path leads out of the tar"),
}
WORDS = {
    "images": [],
    "paired": ["source.task=repair"],
    "sa1b": ["source.num_crops=0"],
    "video": ["source.clip_length=4", "source.stride=1", "source.scene_cut_threshold=0"],
    "laion": [],
}


@pytest.mark.slow
@pytest.mark.parametrize("source", WORDS)
def test_bad_files_are_rejected_and_job_continues(tmp_path, capsys, source):
    root, output = tmp_path / "raw", tmp_path / "out"
    cases = {name: case for name, case in CASES.items() if case.source == source}
    keys = {name: case.write(root) for name, case in cases.items()}
    if source == "paired":
        for side in ("input", "target"):
            save(root / side / "fine.png", smooth())
    words = ["prepare", f"source={source}", f"source.path={root}", f"output_dir={output}"]
    words += ["source.size=24", "source.val_fraction=0", "source.test_fraction=0", *WORDS[source]]
    assert cli.main([*words, "max_reject_fraction=1"]) == 0
    (folder,) = (output / "train").iterdir()
    reasons = {each.key: each.reason for each in read_rejects(folder)}
    read = {each.key for each in read_examples(output, "train", folder.name)}
    assert read
    for name, case in cases.items():
        if case.reason is None:
            assert Path(keys[name]).stem in read, name
        else:
            assert case.reason in reasons.pop(keys[name]), name
    assert not set(reasons) - {"cut.tar/2.jpg"}
    err = capsys.readouterr().err
    rejected = any(case.reason for case in cases.values())
    assert ("raw items rejected" in err) == rejected and "Traceback" not in err
    # With the usual limit, so many rejects are exit code 3; what is written is kept.
    assert cli.main(words) == 3


def test_all_kinds_of_bad_files_are_listed():
    assert {case.source for case in CASES.values()} == WORDS.keys() and len(CASES) == 15
