"""The readers through `delvm prepare` and `delvm encode`, as a user runs them."""

import numpy as np
import pytest
from PIL import Image

from delvm import cli
from delvm.data.shards.reader import read_examples
from delvm.data.sources.shapes import people
from experiments.sources import layouts
from tests.data.sources import bad_files
from tests.data.sources.bad_files import save, smooth


@pytest.fixture
def raw(tmp_path):
    for side in ("input", "target"):
        for number in range(6):
            save(tmp_path / "raw" / side / f"{number}.png", smooth(seed=number))
    return tmp_path / "raw"


def test_prepare_paired_source_by_overrides(raw, tmp_path, capsys):
    words = [
        "prepare", "source=paired", f"source.path={raw}", "source.task=dehaze", "source.size=16",
        "source.val_fraction=0.3", "source.test_fraction=0", f"output_dir={tmp_path}/out",
    ]  # fmt: skip
    assert cli.main(words) == 0
    assert "train: dehaze" in capsys.readouterr().out
    assert list(read_examples(tmp_path / "out", "train", "dehaze"))
    patterns = ["source.inputs='input/{id}.png'", "source.targets='target/{id}.png'"]
    assert cli.main([*words[:-1], f"output_dir={tmp_path}/other", *patterns]) == 0
    one, other = (
        [each.key for each in read_examples(tmp_path / name, "train", "dehaze")]
        for name in ("out", "other")
    )
    assert one == other


def test_too_many_rejects_exit_code_3(raw, tmp_path, capsys):
    bad_files.write_bad(raw / "input")
    words = ["prepare", "source=images", f"source.path={raw}/input", "source.size=16"]
    nothing = ["source.val_fraction=0", "source.test_fraction=0", f"output_dir={tmp_path}/out"]
    assert cli.main([*words, *nothing]) == 3
    assert "4 of 10 raw items rejected" in capsys.readouterr().err
    assert len(list(read_examples(tmp_path / "out", "train", "images"))) == 6


def test_missing_path_error(capsys):
    assert cli.main(["prepare", "source=laion"]) == 2
    assert "source.path" in capsys.readouterr().err


def raw_of(source, root):
    """A small data set in the source's true layout."""
    image, moving = smooth(80, 64), [np.roll(smooth(64, 48), n, axis=1) for n in range(9)]
    if source == "sa1b":
        masks = np.zeros((2, 64, 80), bool)
        masks[0, :40], masks[1, 30:60, 10:50] = True, True
        items = {f"sa_{number}": (image, list(masks)) for number in range(3)}
        layouts.write_sa1b(root / "sa_000000.tar", items)
    elif source == "coco_pose":
        points = people.random_keypoints(np.random.default_rng(0)) * 64
        for split in ("train", "val"):
            items = {f"{number:012d}.jpg": (image, [points]) for number in range(3)}
            layouts.write_coco(root, split, items)
    elif source == "hdvila":
        layouts.write_video(root / "video_clips" / "abc" / "abc.0.mp4", moving)
    else:
        layouts.write_video(root / "a.mp4", moving)
        layouts.write_frames(root / "b", moving)


@pytest.mark.slow
@pytest.mark.parametrize(
    "source, words, made",
    [
        ("sa1b", [], {"masks": 9}),  # three squares a image below 800 pixels
        ("sa1b", ["source.num_crops=0"], {"masks": 3}),
        ("coco_pose", ["source.min_side=0"], {"pose": 3}),
        ("coco_pose", ["source.whole_image=true"], {"poses": 3}),
        ("video", ["source.clip_length=4", "source.stride=2"], {"video": 2}),
        ("hdvila", ["source.clip_length=3", "source.stride=1", "source.overlap=1"], {"video": 4}),
    ],
)
def test_prepare_annotated_and_video_sources(tmp_path, source, words, made):
    raw_of(source, tmp_path / "raw")
    output = tmp_path / "out"
    common = [
        f"source={source}",
        f"source.path={tmp_path}/raw",
        "source.size=16",
        "source.val_fraction=0",
    ]
    if source != "coco_pose":
        common.append("source.test_fraction=0")
    assert cli.main(["prepare", *common, *words, f"output_dir={output}"]) == 0
    counts = {
        folder.name: len(list(read_examples(output, "train", folder.name)))
        for folder in (output / "train").iterdir()
    }
    assert counts == made
    # It shows a split that holds something.
    assert Image.open(output / "contact_sheet.png").width > 2 * 128
