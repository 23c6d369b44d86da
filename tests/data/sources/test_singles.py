"""Pictures one by one: folders, classes, tars, and what is derived of them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from delvm.data.image_io import resize_center_crop
from delvm.data.sources.derived import Derived
from delvm.data.sources.images import Images
from delvm.data.sources.laion import Laion
from delvm.errors import UserError
from delvm.tasks import derived
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
    (root / "notes.txt").write_text("no picture")
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
        return Images(path=folder(tmp_path / "raw"), size=SIZE, val=0.2, test=0.2)
    return Laion(path=tars(tmp_path / "raw"), size=SIZE, val=0.2, test=0.2)


def test_pictures_are_those_written(source):
    found = {e.key: e for split in SPLITS for e in read_all(source, split)["images"]}
    assert len(found) == 30
    for key, example in found.items():
        assert len(example.images) == 1
        assert (example.input == fitted(int(key.rpartition("-")[2]))).all()


def test_splits_are_disjoint_and_a_function_of_the_seed(source):
    found = {split: keys(source, split, "images") for split in SPLITS}
    assert all(found.values()) and len({*sum(found.values(), [])}) == 30
    settings = {"path": source.path, "size": SIZE, "val": 0.2, "test": 0.2}
    again, other = type(source)(**settings), type(source)(**settings, seed=1)
    assert {split: keys(again, split, "images") for split in SPLITS} == found
    assert {split: keys(other, split, "images") for split in SPLITS} != found


def test_the_whole_job(source, tmp_path):
    made = prepared(source, tmp_path / "out")
    assert {(split, "images") for split in SPLITS} == made.keys()
    assert sum(manifest.count for manifest in made.values()) == 30
    assert all(manifest.images_per_example == 1 for manifest in made.values())


def test_a_part_is_a_tar(tmp_path):
    source = Laion(path=tars(tmp_path), size=SIZE)
    for split in SPLITS:
        assert [part.name for part in source.chunks(split)["images"]] == ["00000", "00001", "00002"]


def test_pictures_below_min_side_are_rejected(tmp_path):
    source = Laion(path=tars(tmp_path, 10), size=SIZE, min_side=18, val=0, test=0)
    assert len(keys(source, "train", "images")) == 10
    source = Laion(path=source.path, size=SIZE, min_side=19, val=0, test=0)
    found = rejects(source, "train", "images")
    assert len(found) == 10
    assert found["00000.tar/000000000.png"] == "24 x 18 pixels, below min_side=19"


def test_a_key_that_comes_twice_is_rejected(tmp_path):
    data = encoded(smooth(), "png")
    write_members(tmp_path / "0.tar", {"./a.jpg": data, "a.png": data, "sub/a.jpg": data})
    source = Laion(path=str(tmp_path), size=SIZE, val=0, test=0)
    assert keys(source, "train", "images") == ["0-a", "0-sub-a"]
    assert rejects(source, "train", "images") == {"0.tar/a.png": "its key 0-a comes twice"}


def test_pictures_that_differ_in_the_extension_alone_are_both_taken(tmp_path):
    for name in ("a.png", "a.jpg"):
        save(tmp_path / name, smooth())
    source = Images(path=str(tmp_path), size=SIZE, val=0, test=0)
    assert keys(source, "train", "images") == ["a_jpg", "a_png"]


def test_a_name_that_is_no_unicode(tmp_path):
    path = Path(f"{tmp_path}/\udcff.png")
    try:
        path.write_bytes(encoded(smooth(), "png"))
    except OSError:
        pytest.skip("the file system wants Unicode")
    path.with_name("\udcfe.png").write_bytes(b"")
    source = Images(path=str(tmp_path), size=SIZE, val=0, test=0)
    prepared(source, tmp_path / "out", ["train"])


# ------------------------------------------------------------ classes


def test_categories(tmp_path):
    counts = {"cat": 7, "dog": 9, "fly": 2}
    for name, count in counts.items():
        for number in range(count):
            save(tmp_path / "raw" / name / f"{number}.png", smooth(24, 18, seed=number))
    settings = {"path": str(tmp_path / "raw"), "size": SIZE, "categories": True, "pictures": 3}
    source = Images(**settings, val=0, test=0)
    found = keys(source, "train", "categories")
    assert sorted(found) == [
        "cat-00000", "cat-00001", "dog-00000", "dog-00001", "dog-00002",
    ]  # fmt: skip
    assert rejects(source, "train", "categories") == {
        "cat": "1 of 7 pictures of train left, fewer than pictures=3",
        "fly": "2 of 2 pictures of train left, fewer than pictures=3",
    }
    numbers = []
    for each in read_all(source, "train")["categories"]:
        if getattr(each, "task", "") and each.key.startswith("dog"):
            numbers += [n for p in each.images for n in range(9) if (p == fitted(n)).all()]
    assert sorted(numbers) == list(range(9)) != numbers  # each once, in a drawn order
    made = prepared(source, tmp_path / "out", ["train"])
    assert made["train", "categories"].images_per_example == 3
    (tmp_path / "raw/stray.png").write_bytes(b"")
    with pytest.raises(UserError, match="stray.png lies in no class"):
        Images(**settings).chunks("train")
    with pytest.raises(UserError, match="source.pictures=1 of one class is below 2"):
        Images(**settings | {"pictures": 1}).chunks("train")


def test_an_unreadable_picture_costs_its_example(tmp_path):
    for number in range(4):
        save(tmp_path / "cat" / f"{number}.png", smooth())
    (tmp_path / "cat/2.png").write_bytes(b"")
    source = Images(path=str(tmp_path), size=SIZE, categories=True, pictures=2, val=0, test=0)
    assert len(keys(source, "train", "categories")) == 1
    assert rejects(source, "train", "categories") == {
        "cat/2.png": "cannot be read as an image: not an image (an example of 2 is lost)"
    }


# ------------------------------------------------------------ derived


@pytest.mark.parametrize("kind", ["folder", "tars"])
def test_derived_tasks_are_made_of_the_pictures(tmp_path, kind):
    path = (folder if kind == "folder" else tars)(tmp_path / "raw")
    settings = {"path": path, "size": SIZE, "val": 0.2, "test": 0.2}
    plain = (Images if kind == "folder" else Laion)(**settings)
    source = Derived(**settings, tars=kind == "tars", tuples=["grey", "edges"])
    pictures = {e.key: e.input for e in read_all(plain, "train")["images"]}
    found = read_all(source, "train")
    assert list(found) == ["colourisation", "inpainting", "edges", "tuple"]
    for task, examples in found.items():
        assert [each.key for each in examples] == list(pictures)
        for each in examples:
            picture, shown = pictures[each.key], each.images
            grey, edges = derived.grey(picture), derived.trace_edges(picture)
            if task == "inpainting":
                hole = (shown[0] != shown[1]).any(2)
                assert (shown[1] == picture).all() and hole.any()
                assert (shown[0][hole] == 0).all()
            else:
                wanted = {
                    "colourisation": (grey, picture),
                    "edges": (picture, edges),
                    "tuple": (picture, grey, edges),
                }[task]
                assert len(wanted) == len(shown)
                assert all((a == b).all() for a, b in zip(wanted, shown, strict=True))
    made = prepared(source, tmp_path / "out")
    assert made["train", "tuple"].images_per_example == 3 and len(made) == 12


def test_holes_are_of_the_asked_size_and_a_function_of_the_seed(tmp_path):
    for number in range(8):
        save(tmp_path / f"{number}.png", np.full((SIZE, SIZE, 3), 200, np.uint8))
    settings = {"path": str(tmp_path), "size": SIZE, "val": 0, "test": 0, "tasks": ["inpainting"]}
    source = Derived(**settings, hole=[0.75, 0.75])
    holed = [each.input for each in read_all(source, "train")["inpainting"]]
    assert [(picture == 0).all(2).sum() for picture in holed] == [12 * 12] * 8
    assert len({picture.tobytes() for picture in holed}) > 3
    again = Derived(**settings, hole=[0.75, 0.75])
    assert same(*(read_all(each, "train")["inpainting"] for each in (source, again)))
    other = Derived(**settings, hole=[0.75, 0.75], seed=1)
    assert not same(*(read_all(each, "train")["inpainting"] for each in (source, other)))


def test_derived_says_what_is_wrong(tmp_path):
    for change, said in (
        ({"tasks": ["edge"]}, "source.tasks has 'edge': did you mean 'edges'"),
        ({"tasks": []}, "make nothing"),
        ({"tasks": ["edges", "edges"]}, "names one twice"),
        ({"tuples": ["grey"]}, "source.tuples=.grey. makes examples of two pictures"),
        ({"hole": [0.6, 0.5]}, "source.hole=.0.6, 0.5. is no range"),
    ):
        with pytest.raises(UserError, match=said):
            Derived(path=str(tmp_path), **change).chunks("train")


@pytest.mark.parametrize("kind, said", [(Images, "no pictures"), (Laion, "no .tar")])
def test_an_empty_folder_is_told(tmp_path, kind, said):
    with pytest.raises(UserError, match=said):
        kind(path=str(tmp_path)).chunks("train")
