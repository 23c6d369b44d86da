"""Small data sets have at least a sentence of validation and test examples."""

import pytest

from delvm.data.prepare.prepare import prepare
from delvm.data.sources.gopro import GoPro
from delvm.data.sources.images import Images
from delvm.data.sources.paired_folders import Paired
from tests.data.sources.bad_files import save, smooth


@pytest.fixture
def pairs(tmp_path):
    def write(count):
        for side in ("input", "target"):
            for number in range(count):
                path = tmp_path / "raw" / side / f"{number:03d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"only listed")
        return tmp_path / "raw"

    return write


def splits(source):
    """The keys of each split."""
    source.chunks("train")
    found = source._items
    if isinstance(source, Images):  # which has them by task
        [found] = found.values()
    return {split: [key for key, _ in items] for split, items in found.items()}


def counts(source):
    found = splits(source)
    return [len(found.get(split, [])) for split in ("train", "val", "test")]


@pytest.mark.parametrize(
    ("count", "expected"),
    [(100, [92, 4, 4]), (12, [4, 4, 4]), (11, [7, 4, 0]), (8, [4, 4, 0]), (7, [7, 0, 0])],
)
def test_hundred_pairs_have_validation_pairs_whatever_the_seed(pairs, count, expected, capsys):
    raw = pairs(count)
    for seed in range(12):
        few = {"val_fraction": 1e-9, "test_fraction": 1e-9}
        source = Paired(path=str(raw), task="derain", seed=seed, **few)
        assert counts(source) == expected
        default = counts(Paired(path=str(raw), task="derain", seed=seed))
        assert min(default) >= 4 or count < 12
    assert counts(Paired(path=str(raw), task="derain", val_fraction=0, test_fraction=0))[1:] == [
        0,
        0,
    ]
    assert ("since a sentence takes 4" in capsys.readouterr().err) == (count > 7)


def test_splits_that_have_enough_stay_as_they_are(pairs):
    source = Paired(path=str(pairs(200)), task="derain", val_fraction=0.1, test_fraction=0.1)
    for split, keys in splits(source).items():
        for key in keys:
            position = source.uniform("split", key)
            assert split == ("val" if position < 0.1 else "test" if position < 0.2 else "train")


def test_classes_and_single_images_have_a_sentence(tmp_path):
    for name, count in (("cats", 30), ("dogs", 12)):
        for number in range(count):
            save(tmp_path / name / f"{number}.png", smooth(seed=number))
    few = {"path": str(tmp_path), "val_fraction": 1e-9, "test_fraction": 1e-9}
    assert counts(Images(**few)) == [26, 8, 8]
    found = splits(Images(categories=True, group_size=8, **few))
    assert [len(found[split]) for split in ("val", "test")] == [1, 1]
    assert len(found["train"]) >= 2  # one group and what is left of the other class


def test_scenes_are_moved_as_one_and_never_all(tmp_path):
    def scenes(*names):
        for name in names:
            for side in ("blur", "sharp"):
                for number in range(5):
                    save(tmp_path / f"train/{name}/{side}/{number}.png", smooth(seed=number))
        return splits(GoPro(path=str(tmp_path), val_fraction=1e-9))

    assert "val" not in scenes("a")
    found = scenes("b", "c")
    assert len(found["val"]) == 5 and len({key[0] for key in found["val"]}) == 1


def test_what_is_prepared_is_what_was_moved(tmp_path):
    for side in ("input", "target"):
        for number in range(20):
            save(tmp_path / "raw" / side / f"{number}.png", smooth(seed=number))
    manifests = prepare(Paired(path=str(tmp_path / "raw"), size=8, task="derain"), tmp_path / "out")
    assert {each.split for each in manifests} == {"train", "val", "test"}
    assert sum(each.count for each in manifests) == 20
    assert min(each.count for each in manifests) >= 4
