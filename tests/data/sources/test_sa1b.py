"""SA-1B: masks as run lengths, painted, cut into crops."""

import json
import re

import numpy as np
import pytest
from pycocotools import mask as coco

from delvm.data.image_io import open_image
from delvm.data.resizing import resize_center_crop
from delvm.data.sources._io.rle import decode_runs
from delvm.data.sources.sa1b import SA1B
from delvm.errors import UserError
from delvm.tasks import sam_masks as masks
from experiments.sources.layouts import jpeg, rle, sa1b_json, write_sa1b, write_tar
from tests.data.sources import bad_files
from tests.data.sources.bad_files import smooth
from tests.data.sources.checks import files_below, keys, prepared, read_all, rejects, same

# pycocotools asks numpy in a way that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SIZE = 32
WIDE, HIGH = 96, 64


def boxes(width=WIDE, height=HIGH):
    """Four masks: one in each quarter, the first as large as the image, the last overlapping."""
    found = np.zeros((4, height, width), bool)
    found[0, :, : width // 2] = True
    found[1, : height // 2, width // 2 :] = True
    found[2, height // 2 :, 3 * width // 4 :] = True
    found[3, height // 4 : 3 * height // 4, width // 8 : 3 * width // 8] = True
    return found


def tar(path, names, width=WIDE, height=HIGH):
    items = {
        name: (smooth(width, height, seed=number), boxes(width, height))
        for number, name in enumerate(names)
    }
    write_sa1b(path, items)


def source(root, **settings):
    return SA1B(
        **{"path": str(root), "size": SIZE, "val_fraction": 0, "test_fraction": 0, "crop_side": 48}
        | settings
    )


def test_rle_matches_pycocotools():
    rng = np.random.default_rng(0)
    for trial in range(200):
        mask = rng.random(rng.integers(1, 40, 2)) < rng.random()
        if trial % 2:
            mask = np.kron(mask, np.ones((7, 9), bool))
        if trial % 20 == 0:
            mask = np.full_like(mask, trial % 40 == 0)
        made = rle(mask)
        starts, stops = decode_runs(made["counts"], *mask.shape)
        decoded = np.zeros(mask.size, bool)
        for start, stop in zip(starts, stops, strict=True):
            decoded[start:stop] = True
        assert np.array_equal(decoded.reshape(mask.shape[::-1]).T, coco.decode(made))


@pytest.mark.parametrize(
    "counts, message",
    [
        ("", "empty"),
        ("é", "outside ASCII"),
        ("0x", "not digits"),
        ("P", "ends within a number"),
        ("o" * 12 + "0", "number that is too large"),
        ("4O\x60", "ends within a number"),
        ("4", "RLE of 4 pixels, the image has 3 x 2"),
        ("4O3", "runs out of range for an image of 3 x 2"),
        ("00", "RLE of 0 pixels"),
        ("".join(["0ooooooooo?"] * 40), "runs out of range"),
    ],
)
def test_broken_rle_error(counts, message):
    with pytest.raises(UserError, match=message):
        decode_runs(counts, 2, 3)


def test_corrupt_rle_rejected_or_in_range():
    counts = rle(boxes().any(0))["counts"]
    rng = np.random.default_rng(0)
    corrupted = [counts[:stop] for stop in range(len(counts))]
    for _ in range(300):
        letters = list(counts)
        for position in rng.integers(0, len(letters), 2):
            letters[position] = chr(rng.integers(48, 112))
        corrupted.append("".join(letters))
    refused = 0
    for each in corrupted:
        try:
            starts, stops = decode_runs(each, HIGH, WIDE)
        except UserError:
            refused += 1
        else:
            assert (starts <= stops).all() and (stops <= HIGH * WIDE).all()
    assert refused > 0.9 * len(corrupted)


def test_crops_are_corners_and_middles(tmp_path):
    tar(tmp_path / "sa_000000.tar", ["sa_1"])
    made = read_all(source(tmp_path), "train")["masks"]
    assert [each.key for each in made] == [f"sa_000000-sa_1-c{n}" for n in range(6)]
    corners = [(0, 0), (48, 0), (0, 16), (48, 16), (24, 0), (24, 16)]
    assert source(tmp_path)._boxes(WIDE, HIGH) == [(x, y, x + 48, y + 48) for x, y in corners]
    turned = [(0, 0), (16, 0), (0, 48), (16, 48), (0, 24), (16, 24)]
    assert source(tmp_path)._boxes(HIGH, WIDE) == [(x, y, x + 48, y + 48) for x, y in turned]


def test_image_and_masks_cropped_alike(tmp_path):
    """A image painted as its masks: off the smoothed seams, a paint is a color."""
    original_masks = boxes()
    paints = np.zeros((HIGH, WIDE, 3), np.uint8)
    for mask, paint in zip(
        original_masks, ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255,) * 3), strict=True
    ):
        paints[mask] = paint
    files = {
        "sa_1.jpg": bad_files.encoded(paints, "png"),  # decoders go by what a file holds
        "sa_1.json": json.dumps(sa1b_json("sa_1", original_masks)).encode(),
    }
    write_tar(tmp_path / "sa_000000.tar", files)
    for crops in (6, 0):
        made = read_all(source(tmp_path, num_crops=crops), "train")["masks"]
        assert len(made) == (crops or 1)
        for each in made:
            plain = np.isin(each.input, (0, 255)).all(2)
            assert plain.mean() > 0.7
            met = {
                (tuple(map(int, paint)), tuple(map(int, color)))
                for paint, color in zip(each.input[plain], each.target[plain], strict=True)
            }
            assert len(met) >= 2
            for side in (0, 1):  # no paint has two colors, and no color two paints
                assert len({pair[side] for pair in met}) == len(met)


def test_mask_colors_distinct_and_seeded(tmp_path):
    tar(tmp_path / "sa_000000.tar", ["sa_1", "sa_2"])
    first, second = (
        read_all(source(tmp_path, num_crops=0, seed=s), "train")["masks"] for s in (0, 1)
    )
    again = read_all(source(tmp_path, num_crops=0), "train")["masks"]
    assert same(first, again)
    assert not (first[0].target == first[1].target).all()  # other key
    assert not (first[0].target == second[0].target).all()  # other seed
    colors = {tuple(map(int, c)) for c in first[0].target.reshape(-1, 3)}
    assert len(colors - {(0, 0, 0)}) == 4 and colors <= {(0, 0, 0), *masks.PALETTE}
    assert masks.miou(first[0].target, second[0].target) == 1
    crops = read_all(source(tmp_path), "train")["masks"][:6]
    seen = {tuple(map(int, c)) for each in crops for c in each.target.reshape(-1, 3)}
    assert seen == colors  # painted once for all crops


def test_max_masks_keeps_the_largest(tmp_path):
    tar(tmp_path / "sa_000000.tar", ["sa_1"])
    (made,) = read_all(source(tmp_path, num_crops=0, max_masks=2), "train")["masks"]
    assert len(np.unique(made.target.reshape(-1, 3), axis=0)) == 3
    assert not made.target[20:, 26:].any()  # where the third was


def test_images_smaller_than_crop_side(tmp_path):
    tar(tmp_path / "sa_000000.tar", ["sa_1"], WIDE, HIGH)
    tar(tmp_path / "sa_000001.tar", ["sa_2"], HIGH, HIGH)
    found = keys(source(tmp_path, crop_side=800), "train", "masks")
    assert found == [*(f"sa_000000-sa_1-c{n}" for n in range(3)), "sa_000001-sa_2-c0"]
    (data,) = read_all(source(tmp_path, num_crops=0), "train")["masks"][1:]
    decoded = open_image(jpeg(smooth(HIGH, HIGH, seed=0)))
    assert (data.input == np.asarray(resize_center_crop(decoded, SIZE))).all()


def test_prepare_one_shard_per_tar(tmp_path):
    for number in range(3):
        tar(tmp_path / "raw" / f"sa_{number:06d}.tar", [f"sa_{10 * number + n}" for n in range(5)])
    settings = {"val_fraction": 0.2, "test_fraction": 0.2}
    reader = source(tmp_path / "raw", **settings)
    made = prepared(reader, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out/train/masks").glob("*.tar")}
    assert names == {f"sa_{number:06d}.tar" for number in range(3)}
    assert sum(manifest.count for manifest in made.values()) == 15 * 6
    images = {split: {key[:-3] for key in keys(reader, split, "masks")}
                for split in ("train", "val", "test")}  # fmt: skip
    assert all(images.values()) and len(set().union(*images.values())) == 15
    assert sum(map(len, images.values())) == 15  # crops of one image stay together
    before = files_below(tmp_path / "out")
    prepared(source(tmp_path / "raw", **settings), tmp_path / "out")
    assert files_below(tmp_path / "out") == before


def test_broken_items_rejected_others_read(tmp_path):
    good, image = boxes(), jpeg(smooth(WIDE, HIGH))

    def text(change):
        value = sa1b_json("x", good)
        change(value["annotations"])
        return json.dumps(value).encode()

    def put(key, to):
        def change(annotations):
            annotations[1]["segmentation"][key] = to

        return change

    cut = rle(good[1])["counts"][:-1]
    files = {
        "cut": (text(put("counts", cut)), "mask 1: RLE that ends within a number|of .* pixels"),
        "list": (text(put("counts", [1, 2])), "mask 1 with counts that are not a string"),
        "turned": (text(put("size", [WIDE, HIGH])), r"mask 1 has size .96, 64., the image"),
        "keyless": (text(lambda a: a[2].pop("segmentation")), "mask 2 without segmentation"),
        "flat": (text(lambda a: a.insert(0, 7)), "mask 0 without segmentation"),
        "none": (text(lambda a: a.clear()), "no masks"),
        "array": (b"[]", "without a list of annotations"),
        "deep": (b"[" * 100_000, "cannot be read as JSON"),
        "latin": ("é".encode("latin-1"), "cannot be read as JSON"),
    }  # fmt: skip
    members = {"fine.jpg": image, "fine.json": text(lambda a: None)}
    for name, (data, _) in files.items():
        members |= {f"{name}.jpg": image, f"{name}.json": data}
    members |= {"lonely.jpg": image, "bare.json": text(lambda a: None), "../up.jpg": image}
    members |= {"bad.jpg": b"<html>", "bad.json": text(lambda a: None), "read.me": b""}
    write_tar(tmp_path / "a.tar", members)
    reader = source(tmp_path, num_crops=0)
    assert keys(reader, "train", "masks") == ["a-fine"]
    found = rejects(reader, "train", "masks")
    for name, (_, message) in files.items():
        assert re.search(message, found.pop(f"a.tar/{name}.json")), name
    assert found == {
        "a.tar/lonely.jpg": "missing json",
        "a.tar/bare.json": "missing jpg",
        "a.tar/bad.jpg": "cannot be read as an image: not an image",
        "a.tar/../up.jpg": "its path leads out of the tar",
        "a.tar/read.me": "none of .jpg, .json",
    }


def test_hidden_files_of_a_mac_are_skipped(tmp_path):
    members = {
        "./sa_1.jpg": jpeg(smooth(WIDE, HIGH)),
        "./sa_1.json": json.dumps(sa1b_json("sa_1", boxes())).encode(),
    }
    for name in list(members):
        members[name.replace("./", "./._")] = bad_files.APPLE_DOUBLE
    write_tar(tmp_path / "sa_000000.tar", members)
    assert keys(source(tmp_path, num_crops=0), "train", "masks") == ["sa_000000-sa_1"]
    assert not rejects(source(tmp_path, num_crops=0), "train", "masks")


def test_damaged_tars(tmp_path):
    tar(tmp_path / "a.tar", ["sa_1", "sa_2"])
    data = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(data[: -len(data) // 3])
    bad_files.html(tmp_path / "b.tar")
    bad_files.zero_bytes(tmp_path / "c.tar")
    reader = source(tmp_path, num_crops=0)
    assert keys(reader, "train", "masks") == ["a-sa_1"]
    found = rejects(reader, "train", "masks")
    assert {"a.tar", "b.tar", "c.tar"} <= found.keys()
    assert all("truncated or damaged" in found[f"{name}.tar"] for name in "abc")


def test_sa1b_settings_errors(tmp_path):
    tar(tmp_path / "a.tar", ["sa_1"])
    for change, message in (
        ({"num_crops": 4}, "source.num_crops=4 is neither 6 .* nor 0"),
        ({"max_masks": 64}, "source.max_masks=64 is not in 1..63"),
        ({"max_masks": 0}, "source.max_masks=0 is not in 1..63"),
        ({"crop_side": 0}, "source.crop_side=0 is below 1"),
        ({"path": str(tmp_path / "none")}, "does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            source(tmp_path, **change).chunks("train")
    (tmp_path / "a.tar").unlink()
    with pytest.raises(UserError, match="contains no .tar"):
        source(tmp_path).chunks("train")
