"""Images one by one: folders, classes, tars, and what is derived of them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from delvm.data.resizing import resize_center_crop
from delvm.data.sources.derived import Derived
from delvm.data.sources.images import Images
from delvm.data.sources.laion import Laion
from delvm.data.types import Example
from delvm.errors import UserError
from delvm.tasks import derived, geometric
from delvm.tasks.degradations import DEGRADATIONS
from tests.data.sources.bad_files import encoded, save, smooth, write_members
from tests.data.sources.checks import keys, prepared, read_all, rejects, same

SIZE = 16
SPLITS = ("train", "val", "test")


def fitted(number):
    return np.asarray(resize_center_crop(Image.fromarray(smooth(24, 18, seed=number)), SIZE))


def folder(root, count=30):
    for number in range(count):
        save(root / f"{number % 3}" / f"{number}.png", smooth(24, 18, seed=number))
    (root / ".hidden.png").write_bytes(b"")
    (root / "notes.txt").write_text("no image")
    return str(root)


def tars(root, count=30, a_tar=10):
    for tar in range(count // a_tar):
        members = {}
        for number in range(tar * a_tar, (tar + 1) * a_tar):
            members[f"{number:09d}.{'webp' if number % 2 else 'png'}"] = encoded(
                smooth(24, 18, seed=number), "png"
            )  # decoders go by what a file holds
            members[f"{number:09d}.json"] = b"{}"
            members[f"{number:09d}.txt"] = b"a caption"
        write_members(root / f"{tar:05d}.tar", members)
    return str(root)


@pytest.fixture(params=["images", "laion"])
def source(request, tmp_path):
    if request.param == "images":
        return Images(path=folder(tmp_path / "raw"), size=SIZE, val_fraction=0.2, test_fraction=0.2)
    return Laion(path=tars(tmp_path / "raw"), size=SIZE, val_fraction=0.2, test_fraction=0.2)


def test_images_equal_files(source):
    found = {e.key: e for split in SPLITS for e in read_all(source, split)["images"]}
    assert len(found) == 30
    for key, example in found.items():
        assert len(example.images) == 1
        assert (example.input == fitted(int(key.rpartition("-")[2]))).all()


def test_splits_disjoint_and_seeded(source):
    found = {split: keys(source, split, "images") for split in SPLITS}
    assert all(found.values()) and len({*sum(found.values(), [])}) == 30
    settings = {"path": source.path, "size": SIZE, "val_fraction": 0.2, "test_fraction": 0.2}
    again, other = type(source)(**settings), type(source)(**settings, seed=1)
    assert {split: keys(again, split, "images") for split in SPLITS} == found
    assert {split: keys(other, split, "images") for split in SPLITS} != found


def test_prepare(source, tmp_path):
    made = prepared(source, tmp_path / "out")
    assert {(split, "images") for split in SPLITS} == made.keys()
    assert sum(manifest.count for manifest in made.values()) == 30
    assert all(manifest.images_per_example == 1 for manifest in made.values())


def test_one_chunk_per_tar(tmp_path):
    source = Laion(path=tars(tmp_path), size=SIZE)
    for split in SPLITS:
        assert [part.name for part in source.chunks(split)["images"]] == ["00000", "00001", "00002"]


def test_min_side_rejects_small_images(tmp_path):
    source = Laion(path=tars(tmp_path, 10), size=SIZE, min_side=18, val_fraction=0, test_fraction=0)
    assert len(keys(source, "train", "images")) == 10
    source = Laion(path=source.path, size=SIZE, min_side=19, val_fraction=0, test_fraction=0)
    found = rejects(source, "train", "images")
    assert len(found) == 10
    assert found["00000.tar/000000000.png"] == "24 x 18 pixels, below min_side=19"


def test_duplicate_key_rejected(tmp_path):
    data = encoded(smooth(), "png")
    write_members(tmp_path / "0.tar", {"./a.jpg": data, "a.png": data, "sub/a.jpg": data})
    source = Laion(path=str(tmp_path), size=SIZE, val_fraction=0, test_fraction=0)
    assert keys(source, "train", "images") == ["0-a", "0-sub-a"]
    assert rejects(source, "train", "images") == {"0.tar/a.png": "duplicate key 0-a"}


def test_images_differing_only_in_extension(tmp_path):
    for name in ("a.png", "a.jpg"):
        save(tmp_path / name, smooth())
    source = Images(path=str(tmp_path), size=SIZE, val_fraction=0, test_fraction=0)
    assert keys(source, "train", "images") == ["a_jpg", "a_png"]


def test_invalid_unicode_file_name(tmp_path):
    path = Path(f"{tmp_path}/\udcff.png")
    try:
        path.write_bytes(encoded(smooth(), "png"))
    except OSError:
        pytest.skip("the file system wants Unicode")
    path.with_name("\udcfe.png").write_bytes(b"")
    source = Images(path=str(tmp_path), size=SIZE, val_fraction=0, test_fraction=0)
    prepared(source, tmp_path / "out", ["train"])


# ------------------------------------------------------------ classes


def test_groups_of_several_sizes(tmp_path):
    """No image of val is in an example of train, whatever its size."""
    for number in range(120):
        save(tmp_path / f"raw/{number % 4}" / f"{number}.png", smooth(24, 18, seed=number))
    settings = {"path": str(tmp_path / "raw"), "size": SIZE, "categories": True}
    settings |= {"val_fraction": 0.02, "test_fraction": 0.05}
    source = Images(**settings, group_sizes=[2, 8, 4])
    made = {split: read_all(source, split) for split in SPLITS}
    seen = {split: set() for split in SPLITS}
    for split, tasks in made.items():
        assert list(tasks) == ["categories_2", "categories_8", "categories_4"]
        for task, found in tasks.items():
            for each in found:
                if isinstance(each, Example):
                    assert len(each.images) == int(task.rpartition("_")[2])
                    seen[split] |= {image.tobytes() for image in each.images}
                else:
                    assert "left, fewer than group_size=" in each.reason
    assert all(seen.values())
    assert not seen["train"] & seen["val"] and not seen["train"] & seen["test"]
    # One size is as `group_size` has it, but for the order of its images.
    single = Images(**settings, group_sizes=[4])
    alone = Images(**settings, group_size=4)
    counts = [len(keys(each, "train", task)) for each, task in (
        (single, "categories_4"), (alone, "categories"))]  # fmt: skip
    assert counts[0] == counts[1]
    assert "group_sizes" not in alone.settings("train", "categories")  # as before
    for change, message in (
        ({"group_sizes": [2, 1]}, r"group_sizes=\[2, 1\] has one below 2"),
        ({"group_sizes": [2], "categories": False}, "set source.categories=true"),
    ):
        with pytest.raises(UserError, match=message):
            Images(**settings | change).chunks("train")


def test_categories(tmp_path):
    counts = {"cat": 7, "dog": 9, "fly": 2}
    for name, count in counts.items():
        for number in range(count):
            save(tmp_path / "raw" / name / f"{number}.png", smooth(24, 18, seed=number))
    settings = {"path": str(tmp_path / "raw"), "size": SIZE, "categories": True, "group_size": 3}
    source = Images(**settings, val_fraction=0, test_fraction=0)
    found = keys(source, "train", "categories")
    assert sorted(found) == [
        "cat-00000", "cat-00001", "dog-00000", "dog-00001", "dog-00002",
    ]  # fmt: skip
    assert rejects(source, "train", "categories") == {
        "cat": "1 of 7 images of train left, fewer than group_size=3",
        "fly": "2 of 2 images of train left, fewer than group_size=3",
    }
    numbers = []
    for each in read_all(source, "train")["categories"]:
        if getattr(each, "task", "") and each.key.startswith("dog"):
            numbers += [n for p in each.images for n in range(9) if (p == fitted(n)).all()]
    assert sorted(numbers) == list(range(9)) != numbers  # each once, in random order
    made = prepared(source, tmp_path / "out", ["train"])
    assert made["train", "categories"].images_per_example == 3
    (tmp_path / "raw/stray.png").write_bytes(b"")
    with pytest.raises(UserError, match="stray.png is not in a class"):
        Images(**settings).chunks("train")
    with pytest.raises(UserError, match="source.group_size=1 of one class is below 2"):
        Images(**settings | {"group_size": 1}).chunks("train")


def test_unreadable_image_rejects_its_group(tmp_path):
    for number in range(4):
        save(tmp_path / "cat" / f"{number}.png", smooth())
    (tmp_path / "cat/2.png").write_bytes(b"")
    source = Images(
        path=str(tmp_path),
        size=SIZE,
        categories=True,
        group_size=2,
        val_fraction=0,
        test_fraction=0,
    )
    assert len(keys(source, "train", "categories")) == 1
    assert rejects(source, "train", "categories") == {
        "cat/2.png": "cannot be read as an image: not an image (an example of 2 is lost)"
    }


# ------------------------------------------------------------ derived


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "tars"])
def test_derived_tasks_of_images(tmp_path, kind):
    path = (folder if kind == "folder" else tars)(tmp_path / "raw")
    settings = {"path": path, "size": SIZE, "val_fraction": 0.2, "test_fraction": 0.2}
    plain = (Images if kind == "folder" else Laion)(**settings)
    source = Derived(**settings, from_tars=kind == "tars", annotations=["grayscale", "edges"])
    images = {e.key: e.input for e in read_all(plain, "train")["images"]}
    found = read_all(source, "train")
    assert list(found) == ["colorization", "inpainting", "edges", "tuple"]
    for task, examples in found.items():
        assert [each.key for each in examples] == list(images)
        for each in examples:
            image, shown = images[each.key], each.images
            gray, edges = derived.to_grayscale(image), derived.edge_map(image)
            if task == "inpainting":
                hole = (shown[0] != shown[1]).any(2)
                assert (shown[1] == image).all() and hole.any()
                assert (shown[0][hole] == 0).all()
            else:
                expected = {
                    "colorization": (gray, image),
                    "edges": (image, edges),
                    "tuple": (image, gray, edges),
                }[task]
                assert len(expected) == len(shown)
                assert all((a == b).all() for a, b in zip(expected, shown, strict=True))
    made = prepared(source, tmp_path / "out")
    assert made["train", "tuple"].images_per_example == 3 and len(made) == 12


def test_tasks_of_any_image_beyond_the_default_ones(tmp_path):
    settings = {"path": folder(tmp_path / "raw", 8), "size": SIZE}
    settings |= {"val_fraction": 0, "test_fraction": 0}
    images = [each.input for each in read_all(Images(**settings), "train")["images"]]
    settings["tasks"] = [*DEGRADATIONS, "mirror", "rotate"]
    found = read_all(Derived(**settings), "train")
    assert list(found) == ["denoise", "super_resolution", "low_light", "mirror", "rotate"]
    for name in DEGRADATIONS:
        for clean, each in zip(images, found[name], strict=True):
            assert (each.target == clean).all() and (each.input != clean).any()
    for name, move in (("mirror", geometric.mirror), ("rotate", geometric.quarter_turn)):
        for image, each in zip(images, found[name], strict=True):
            assert (each.input == image).all() and (each.target == move(image)).all()
    assert same(*(read_all(Derived(**settings), "train")["denoise"] for _ in range(2)))
    other = read_all(Derived(**settings, seed=1), "train")["denoise"]
    assert not same(other, found["denoise"])


def test_hole_size_and_seed(tmp_path):
    for number in range(8):
        save(tmp_path / f"{number}.png", np.full((SIZE, SIZE, 3), 200, np.uint8))
    settings = {
        "path": str(tmp_path),
        "size": SIZE,
        "val_fraction": 0,
        "test_fraction": 0,
        "tasks": ["inpainting"],
    }
    source = Derived(**settings, hole_size=[0.75, 0.75])
    holed = [each.input for each in read_all(source, "train")["inpainting"]]
    assert [(image == 0).all(2).sum() for image in holed] == [12 * 12] * 8
    assert len({image.tobytes() for image in holed}) > 3
    again = Derived(**settings, hole_size=[0.75, 0.75])
    assert same(*(read_all(each, "train")["inpainting"] for each in (source, again)))
    other = Derived(**settings, hole_size=[0.75, 0.75], seed=1)
    assert not same(*(read_all(each, "train")["inpainting"] for each in (source, other)))


def test_holes_of_patches(tmp_path):
    for number in range(12):
        save(tmp_path / f"{number}.png", np.maximum(smooth(40, 40, seed=number), 1))
    plain = {"path": str(tmp_path), "size": 32, "val_fraction": 0, "test_fraction": 0}
    plain |= {"tasks": ["inpainting"], "patch_size": 8}

    def holes(**settings):
        made = read_all(Derived(**plain | settings), "train")["inpainting"]
        return np.stack([~each.input.any(axis=2) & each.target.any(axis=2) for each in made])

    patches = holes(hole_kind="patches", patch_fraction=[0.25, 0.5])
    cells = patches.reshape(len(patches), 4, 8, 4, 8)
    assert (cells.all(axis=(2, 4)) == cells.any(axis=(2, 4))).all()
    counts = cells.all(axis=(2, 4)).sum(axis=(1, 2))
    assert counts.min() >= 4 and counts.max() <= 8 and len(set(counts.tolist())) > 1
    assert (holes(hole_kind="patches") == holes(hole_kind="patches")).all()
    boxes, mixed = holes(), holes(hole_kind="mixed", patch_fraction=[0.25, 0.5])
    of_boxes = [(one == other).all() for one, other in zip(mixed, boxes, strict=True)]
    of_patches = [(one == other).all() for one, other in zip(mixed, patches, strict=True)]
    assert sum(of_boxes) + sum(of_patches) == 12 and all((sum(of_boxes), sum(of_patches)))


def test_derived_settings_errors(tmp_path):
    for change, message in (
        ({"tasks": ["edge"]}, "source.tasks has 'edge': did you mean 'edges'"),
        ({"tasks": []}, "make nothing"),
        ({"tasks": ["edges", "edges"]}, "has a duplicate"),
        (
            {"annotations": ["grayscale"]},
            "source.annotations=.grayscale. makes examples of two images",
        ),
        ({"hole_size": [0.6, 0.5]}, "source.hole_size=.0.6, 0.5. is not a range"),
        ({"patch_fraction": [0.6, 0.5]}, "source.patch_fraction=.0.6, 0.5. is not a range"),
        ({"hole_kind": "patch"}, "source.hole_kind=patch is unknown: did you mean 'patches'"),
        ({"hole_kind": "mixed", "size": 32}, "source.patch_size=32 is not in 1..16"),
    ):
        with pytest.raises(UserError, match=message):
            Derived(path=str(tmp_path), **change).chunks("train")


@pytest.mark.parametrize("kind, message", [(Images, "contains no images"), (Laion, "no .tar")])
def test_empty_folder_error(tmp_path, kind, message):
    with pytest.raises(UserError, match=message):
        kind(path=str(tmp_path)).chunks("train")
