"""Views of objects in the layout of CO3D v2: spacing, annotations, splits, and bad input."""

import numpy as np
import pytest
from PIL import Image

from delvm import tasks
from delvm.data.sources.annotated.co3d import Co3d
from delvm.errors import UserError
from tests.data.sources import bad_files
from tests.data.sources.annotated_files import (
    save_array,
    write_co3d,
    write_sequence,
    write_set_list,
)
from tests.data.sources.checks import keys, prepared, read_all, rejects

SIZE = 16
APPLES = {f"apple/110_{number}_23361": 24 for number in range(6)}


def source(root, **settings):
    plain = {"path": str(root), "size": SIZE, "val_fraction": 0, "test_fraction": 0}
    return Co3d(**plain | {"num_views": 4} | settings)


def numbers(images):
    """The numbers of the frames, which are their gray levels."""
    return [round(float(image.mean()) / 4) for image in images]


def test_views_are_evenly_spaced_over_the_sequence(tmp_path):
    write_co3d(tmp_path, {"apple/110_13051_23361": 24, "chair/2_1_1": 30})
    made = read_all(source(tmp_path), "train")
    assert list(made) == ["object_views"]
    assert [each.key for each in made["object_views"]] == [
        "apple-110_13051_23361-0", "chair-2_1_1-0",
    ]  # fmt: skip
    first, second = (numbers(each.images) for each in made["object_views"])
    assert first == [0, 6, 12, 18] and second == [0, 7, 15, 22]
    several = read_all(source(tmp_path, examples_per_sequence=3), "train")["object_views"]
    assert [numbers(each.images) for each in several[:3]] == [
        [0, 6, 12, 18], [2, 8, 14, 20], [4, 10, 16, 22],
    ]  # fmt: skip
    assert keys(source(tmp_path, categories=["chair"]), "train", "object_views") == [
        "chair-2_1_1-0"
    ]
    assert len(keys(source(tmp_path / "apple"), "train", "object_views")) == 1


@pytest.mark.parametrize("annotations", [["masks"], ["depths", "masks"], ["depth_masks"]])
def test_annotations_of_the_same_views(tmp_path, annotations):
    write_co3d(tmp_path, {"apple/a": 12})
    made = read_all(source(tmp_path, annotations=annotations, num_views=3), "train")
    assert list(made) == ["object_views_separate", "object_views_interleaved"]
    kinds = 1 + len(annotations)
    for task, (example,) in made.items():
        clip = np.stack(example.images).reshape(
            (kinds, 3, SIZE, SIZE, 3) if "separate" in task else (3, kinds, SIZE, SIZE, 3)
        )
        views = clip if "separate" in task else clip.swapaxes(0, 1)
        assert numbers(views[0]) == [0, 4, 8]
        for name, annotation in zip(annotations, views[1:], strict=True):
            for number, image in zip((0, 4, 8), annotation, strict=True):
                middle = np.flatnonzero(image[SIZE // 2, :, 0]).mean() / SIZE * 24
                levels = np.unique(image)  # neither soft nor smoothed
                assert levels[0] == 0 and len(levels) == 2
                assert name == "depths" or levels[1] == 255
                assert abs(middle - (number + 1.5)) < 1.5


def test_a_missing_or_bad_annotation_rejects_its_example(tmp_path):
    write_co3d(tmp_path, {f"apple/{name}": 12 for name in "abcdefg"})
    masks = {name: sorted((tmp_path / "apple" / name / "masks").iterdir()) for name in "ab"}
    for number in (4, 5, 6, 7):  # of one of the views, and of all frames up to the next
        masks["a"][number].unlink()
    for number in (4, 9):  # of one of the views, and of a frame that is none
        masks["b"][number].unlink()
    bad_files.truncated_jpeg(tmp_path / "apple/c/images/frame000007.jpg")
    save_array(tmp_path / "apple/d/masks/frame000007.png", np.zeros((24, 24), np.uint8))
    for path in (tmp_path / "apple/e/masks").iterdir():
        path.unlink()
    (tmp_path / "apple/e/masks").rmdir()
    for path in sorted((tmp_path / "apple/f/images").iterdir())[2:]:
        path.unlink()
    reader = source(tmp_path, annotations=["masks"], num_views=3, layouts=["separate"])
    task = "object_views_separate"
    assert keys(reader, "train", task) == ["apple-b-0", "apple-g-0"]
    example = read_all(reader, "train")[task][1]
    assert numbers(example.images[:3]) == [0, 5, 8] and all(i.any() for i in example.images[3:])
    found = rejects(reader, "train", task)
    expected = {
        "apple/a/images": "frame 4: masks: missing, and no other up to the next view can replace",
        "apple/c/images": "frame 0: frame000007.jpg cannot be read as an image",
        "apple/d/images": "frame 0: images of one example have different shapes: 24 x 40 and 24",
        "apple/e/images": "missing masks",
        "apple/f/images": "too short: 2 frames, an example has 3 views",
    }
    assert found.keys() == expected.keys()
    for name, message in expected.items():
        assert message in found[name] and "\n" not in found[name], name
    several = source(tmp_path, annotations=["masks"], num_views=3, examples_per_sequence=2)
    assert keys(several, "train", task)[:2] == ["apple-a-1", "apple-b-0"]


def test_frames_that_co3d_blacked_out_are_not_views(tmp_path):
    """Of its test sequences the frames of the challenge are stored as black images and masks.

    The masks of others are black where the detector did not find the object.
    """
    write_co3d(tmp_path, {"apple/a": 24, "apple/b": 24})

    def black_out(sequence, numbers, folders=("images", "masks")):
        for folder in folders:
            files = sorted((tmp_path / "apple" / sequence / folder).iterdir())
            for path in (files[number] for number in numbers):
                with Image.open(path) as image:
                    Image.new(image.mode, image.size).save(path)

    black_out("a", [6, 7, 8, 23])
    black_out("a", [12], ["masks"])
    black_out("b", range(6, 12))
    reader = source(tmp_path, annotations=["masks"], layouts=["separate"])
    example, _ = read_all(reader, "train")["object_views_separate"]
    assert numbers(example.images[:4]) == [0, 9, 13, 18]
    assert all(mask.any() for mask in example.images[4:])
    alone = read_all(source(tmp_path), "train")["object_views"][0]
    assert numbers(alone.images) == [0, 9, 12, 18]
    assert rejects(reader, "train", "object_views_separate") == {
        "apple/b/images": "frame 6: black, or its mask is, and no other up to the next view can "
        "replace it"
    }


def test_all_sequences_of_an_object_are_in_one_split(tmp_path):
    for category in ("cup", "shoe"):
        for number in range(5):
            for sequence in ("first", "second", "third"):
                write_sequence(tmp_path / category / f"object{number}" / sequence, 4)
    for seed in range(3):
        reader = source(tmp_path, seed=seed, val_fraction=0.3, test_fraction=0.2)
        splits = {
            split: {key.rsplit("-", 2)[0] for key in keys(reader, split, "object_views")}
            for split in ("train", "val", "test")
        }
        assert all(splits.values()) and sum(map(len, splits.values())) == 10
        assert not splits["train"] & splits["val"] and not splits["train"] & splits["test"]
        counts = [len(keys(reader, split, "object_views")) for split in splits]
        assert counts == [3 * len(objects) for objects in splits.values()]


def test_splits_of_the_set_lists(tmp_path):
    write_co3d(tmp_path, APPLES)
    names = [name.split("/")[1] for name in APPLES]
    write_set_list(tmp_path, "apple", "fewview_train", names[:3], names[:3])
    write_set_list(tmp_path, "apple", "fewview_dev", names[:3], names[3:4])
    write_set_list(tmp_path, "apple", "manyview_test_0", names[4:5], names[4:5])
    write_set_list(tmp_path, "apple", "fewview_test", names[:3], names[5:])
    reader = source(tmp_path, set_lists=True, val_fraction=0.5, test_fraction=0.5)
    found = {
        split: [key[6:-2] for key in keys(reader, split, "object_views")]
        for split in ("train", "val", "test")
    }
    assert found == {"train": names[:3], "val": names[3:4], "test": names[4:]}
    (tmp_path / "apple/set_lists/set_lists_fewview_dev.json").write_text('{"test": [3]}')
    with pytest.raises(UserError, match=r'"test" is not a list of \[sequence, number, path\]'):
        source(tmp_path, set_lists=True).chunks("train")
    for path in (tmp_path / "apple/set_lists").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="set source.set_lists=false for a random split"):
        source(tmp_path, set_lists=True).chunks("train")


def test_set_lists_know_no_objects(tmp_path):
    """They name sequences, which would all be in train."""
    write_co3d(tmp_path, {"apple/1/a": 12, "apple/2/b": 12})
    write_set_list(tmp_path, "apple", "fewview_test", ["a"], ["b"])
    with pytest.raises(UserError, match=r"apple/1/a/images: set source.set_lists=false"):
        source(tmp_path, set_lists=True).chunks("train")
    assert source(tmp_path).chunks("train")


def test_prepare(tmp_path):
    write_co3d(tmp_path / "raw", APPLES)
    reader = source(tmp_path / "raw", annotations=["masks"], val_fraction=0.2, test_fraction=0.2)
    made = prepared(reader, tmp_path / "out")
    assert {split for split, _ in made} == {"train", "val", "test"}
    assert {each.images_per_example for each in made.values()} == {8}
    assert sum(each.count for each in made.values()) == 2 * len(APPLES)


def test_tasks_and_settings_errors(tmp_path):
    for name in ("object_views", "object_views_separate", "object_views_interleaved"):
        assert not tasks.get(name).allows_hflip
    write_co3d(tmp_path, {"apple/a": 4})
    for change, message in (
        ({"num_views": 1}, "source.num_views=1 is below 2"),
        ({"examples_per_sequence": 0}, "source.examples_per_sequence=0 is below 1"),
        ({"layouts": ["both"]}, "layouts has 'both'"),
        ({"categories": ["aple"]}, "has 'aple', not a category .*did you mean 'apple'"),
        ({"categories": ["apple", "apple"]}, "has a duplicate"),
        ({"annotations": ["mask"]}, "'mask', which is nowhere next to .*mean 'masks'"),
        ({"image": "views"}, "contains no CATEGORY/SEQUENCE/views"),
        ({"annotations": ["masks"], "kinds": {"masks": "soft"}}, "kinds.masks=soft is unknown"),
    ):
        with pytest.raises(UserError, match=message):
            source(tmp_path, **change).chunks("train")
