"""Images with several annotations each: matching, rendering, orders, and bad input."""

import numpy as np
import pytest
from PIL import Image

from delvm import tasks
from delvm.data.augment import BalanceConfig, BalanceMode, augment
from delvm.data.sources._io.annotation_images import (
    VOC_PALETTE,
    AnnotationKind,
    depth_to_rgb,
    guess_kind,
    open_annotation,
)
from delvm.data.sources.annotated.images import Annotated
from delvm.errors import UserError
from tests.data.sources import bad_files
from tests.data.sources.annotated_files import (
    depth_map,
    label_map,
    normal_map,
    save_array,
    write_annotated,
)
from tests.data.sources.bad_files import save, smooth
from tests.data.sources.checks import keys, prepared, read_all, rejects, same

SIZE = 24
FOLDERS = ("depth", "edge", "normal", "segmentation")


def source(root, **settings):
    plain = {"path": str(root), "size": SIZE, "val_fraction": 0, "test_fraction": 0}
    return Annotated(**plain | settings)


def examples(reader, task="annotated"):
    return {each.key: each for each in read_all(reader, "train")[task]}


def test_an_example_is_an_image_and_all_its_annotations_in_order(tmp_path, capsys):
    write_annotated(tmp_path)
    made = examples(source(tmp_path))
    assert list(made) == [f"scene-{number:03d}" for number in range(6)]
    depth, edge, normal, segmentation = made["scene-001"].images[1:]
    assert np.abs(made["scene-001"].input.astype(int) - smooth(24, 24, seed=1)).mean() < 5  # JPEG
    assert (edge == smooth(24, 24, seed=101)[:, :, :1]).all()
    assert (normal == normal_map(24, 24)).all()
    assert (depth[..., 0] == depth[..., 2]).all() and depth[-1, 0, 0] > depth[-1, -1, 0]
    assert {tuple(color) for color in segmentation[0]} == {
        (0, 0, 0), *(VOC_PALETTE[label - 1] for label in (40, 80, 120)),
    }  # fmt: skip
    assert "depth (depth), edge (image), normal (normals), segmentation (labels)" in (
        capsys.readouterr().err
    )
    chosen = examples(source(tmp_path, annotations=["normal", "depth"]))["scene-001"].images
    assert len(chosen) == 3 and (chosen[1] == normal).all() and (chosen[2] == depth).all()


def test_orders_are_shuffled_by_seed_and_name(tmp_path):
    write_annotated(tmp_path, count=12)
    fixed = examples(source(tmp_path))

    def orders(seed):
        found = []
        for key, each in examples(source(tmp_path, order="shuffled", seed=seed)).items():
            assert (each.input == fixed[key].input).all()
            found.append(
                [
                    next(i for i, a in enumerate(fixed[key].images) if (a == image).all())
                    for image in each.images[1:]
                ]
            )
        return found

    first = orders(0)
    assert all(sorted(order) == [1, 2, 3, 4] for order in first)
    assert len({tuple(order) for order in first}) > 4
    assert first == orders(0) != orders(1)
    # The order depends on the example alone, and not on which others there are.
    (tmp_path / "image/scene/000.jpg").unlink()
    write_annotated(tmp_path, count=1)
    assert orders(0) == first


@pytest.mark.parametrize("kind", ["depth", "depth_float16", "disparity"])
def test_depth_of_more_than_8_bits(kind):
    depth = depth_map(16, 32)
    image = Image.fromarray(depth)
    if kind == "depth_float16":
        image = Image.fromarray((depth / 1000).astype(np.float16).view(np.uint16))
    gray = np.asarray(depth_to_rgb(image, AnnotationKind(kind)))[..., 0].astype(int)
    assert (gray[:4, :8] == 0).all() and (gray[4:] >= 1).all()  # 0 is unknown
    row = gray[-1]
    assert {row.min(), row.max()} == {1, 255}
    if kind == "disparity":
        assert (np.diff(row) >= 0).all()
        return
    assert (np.diff(row) <= 0).all()  # near is bright, and the level is linear in the inverse
    near = 1 / depth[-1].astype(float)
    low, high = np.percentile(1 / depth[depth > 0].astype(float), (2, 98))
    level = np.clip((near - low) / (high - low), 0, 1)
    assert np.abs(row - (1 + 254 * level)).max() <= 1


def test_depth_range_and_unit():
    depth = depth_map(16, 32)
    millimeters = depth_to_rgb(Image.fromarray(depth), AnnotationKind.depth, (500, 8000))
    meters = Image.fromarray(depth.astype(np.float32) / 1000)
    assert (
        np.asarray(millimeters) == np.asarray(depth_to_rgb(meters, AnnotationKind.depth, (0.5, 8)))
    ).all()
    own = (np.asarray(depth_to_rgb(each, AnnotationKind.depth)) for each in (
        Image.fromarray(depth), meters))  # fmt: skip
    assert np.abs(np.subtract(*(each.astype(int) for each in own))).max() <= 1
    broken = depth.astype(np.float32)
    broken[8:, 16:] = np.nan
    gray = np.asarray(depth_to_rgb(Image.fromarray(broken), AnnotationKind.depth))
    assert (gray[8:, 16:] == 0).all() and gray[8:, :16].all()
    flat = Image.fromarray(np.full((4, 4), 3, np.uint16))
    assert set(np.unique(depth_to_rgb(flat, AnnotationKind.depth))) == {128}
    with pytest.raises(ValueError, match="no pixel has a depth"):
        depth_to_rgb(Image.fromarray(np.zeros((4, 4), np.uint16)), AnnotationKind.depth)


def test_depth_in_8_bits_is_rendered_already(tmp_path):
    write_annotated(tmp_path, count=1)
    shown = smooth(24, 24, seed=9)
    save(tmp_path / "depth/scene/000.png", shown)
    assert (examples(source(tmp_path))["scene-000"].images[1] == shown).all()


def test_labels_and_unknown_depth_are_not_smoothed(tmp_path):
    write_annotated(tmp_path, count=2, width=60, height=60)
    save_array(tmp_path / "depth/scene/001.png", np.full((60, 60), 900, np.uint16))
    first, second = examples(source(tmp_path)).values()
    colors = {tuple(color) for row in first.images[4] for color in row}
    assert colors == {(0, 0, 0), *(VOC_PALETTE[label - 1] for label in (40, 80, 120))}
    depth = first.images[1][..., 0]
    whole = np.asarray(depth_to_rgb(Image.fromarray(depth_map(60, 60)), AnnotationKind.depth))
    assert set(np.unique(depth)) <= set(np.unique(whole))
    assert (second.images[1] == 128).all()


@pytest.mark.parametrize("top", [1, 255, 65535])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
def test_masks_of_any_bits_become_white(tmp_path, dtype, top):
    mask = np.zeros((8, 8), dtype)
    mask[:, 4:] = min(top, {np.uint8: 255, np.float32: 1}.get(dtype, 65535))
    file = tmp_path / "mask.tiff"
    Image.fromarray(mask).save(file)
    opened = open_annotation(file, "mask", AnnotationKind.mask, None)
    assert (np.asarray(opened.stored.pixels) == np.where(mask, 255, 0)[..., None]).all()


@pytest.mark.parametrize("color", [(128, 0, 0), (0, 0, 255)])
def test_masks_in_color_become_white(tmp_path, color):
    """As those of Pascal VOC, whose colors are dark."""
    mask = np.zeros((8, 8), np.uint8)
    mask[:, 4:] = 1
    palette = Image.fromarray(mask).convert("P")
    palette.putpalette([0, 0, 0, color[0] // 2, color[1] // 2, color[2] // 2])
    colored = Image.fromarray(mask[..., None] * np.array(color, np.uint8))
    for number, image in enumerate((palette, colored)):
        image.save(tmp_path / f"{number}.png")
        opened = open_annotation(tmp_path / f"{number}.png", "mask", AnnotationKind.mask, None)
        assert (np.asarray(opened.stored.pixels) == 255 * mask[..., None]).all()


@pytest.mark.parametrize("kind", ["labels", "mask"])
def test_gray_masks(tmp_path, kind):
    save(tmp_path / "image/a.png", smooth(24, 24))
    soft = smooth(24, 24, seed=3)[..., 0]
    save_array(tmp_path / "foreground/a.png", soft)
    made = examples(source(tmp_path, kinds={"foreground": kind}))["a"].target
    expected = np.where(soft > 127, 255, 0) if kind == "mask" else soft
    assert (made == expected[..., None]).all()


@pytest.mark.parametrize("side", [8, 24])
def test_masks_saved_as_jpeg_are_gray(tmp_path, side):
    """Their edges have a few other values than 0 and 255, which are not ids."""
    save(tmp_path / "image/a.png", smooth(24, 24))
    mask = np.zeros((24, 24), np.uint8)
    mask[2 : 2 + side, 3 : 3 + side] = 255
    (tmp_path / "masks").mkdir()
    Image.fromarray(mask).save(tmp_path / "masks/a.jpg", quality=95)
    with Image.open(tmp_path / "masks/a.jpg") as image:
        stored = np.asarray(image)
    assert 2 < len(np.unique(stored)) <= 64
    assert (examples(source(tmp_path))["a"].target == stored[..., None]).all()


def test_soft_edges_of_a_mask_are_not_ids_but_a_border_is(tmp_path):
    """Masks of DUTS have soft edges, of more or fewer levels; Pascal VOC has borders of 255."""
    for name in "ab":
        save(tmp_path / f"image/{name}.png", smooth(24, 24))
    large = np.zeros((96, 96), np.uint8)
    y, x = np.mgrid[:96, :96]
    large[np.hypot(x - 44, y - 51) < 33] = 255
    soft = np.asarray(Image.fromarray(large).reduce(4))
    assert 10 < len(np.unique(soft)) < 64
    save_array(tmp_path / "masks/a.png", soft)
    border = np.zeros((24, 24), np.uint8)
    border[4:20, 4:20], border[8:16, 8:16] = 255, 15  # of more pixels than the object
    save_array(tmp_path / "masks/b.png", border)
    made = examples(source(tmp_path))
    assert (made["a"].target == soft[..., None]).all()
    assert {tuple(color) for row in made["b"].target for color in row} == {
        (0, 0, 0), VOC_PALETTE[14], VOC_PALETTE[254],
    }  # fmt: skip


def test_kinds_by_name():
    for kind, names in {
        "depth": ("depth", "depths", "DepthMaps"), "disparity": ("disparity", "inverse_depth"),
        "normals": ("normal", "surface_normals"), "image": ("edge", "canny", "pose", "input"),
        "labels": ("seg", "labels", "sam_masks", "panoptic"),
    }.items():  # fmt: skip
        assert {guess_kind(name) for name in names} == {kind}
    assert VOC_PALETTE[:3] == [(128, 0, 0), (0, 128, 0), (128, 128, 0)]
    assert VOC_PALETTE[20] == (128, 64, 128) or len(set(VOC_PALETTE)) == 255


def test_other_resolutions_of_the_same_shape(tmp_path):
    write_annotated(tmp_path, count=1, width=48, height=36)
    save_array(tmp_path / "normal/scene/000.png", normal_map(18, 24))
    save_array(tmp_path / "segmentation/scene/000.png", label_map(72, 96))
    (example,) = examples(source(tmp_path)).values()
    assert {image.shape for image in example.images} == {(SIZE, SIZE, 3)}
    assert len({tuple(color) for color in example.images[4][0]}) >= 3


def test_bad_input_is_rejected_and_the_rest_is_read(tmp_path):
    write_annotated(tmp_path)
    (tmp_path / "normal/scene/000.png").unlink()
    (tmp_path / "depth/scene/000.png").unlink()
    (tmp_path / "image/scene/001.jpg").unlink()
    save_array(tmp_path / "edge/scene/002.png", np.zeros((24, 30), np.uint8))
    bad_files.truncated_jpeg(tmp_path / "segmentation/scene/003.png")
    save_array(tmp_path / "depth/scene/004.png", np.zeros((24, 24), np.uint16))
    save(tmp_path / "image/scene/005.png", smooth(24, 24))
    write_annotated(tmp_path / "more", count=1)
    exif = Image.Exif()
    exif[0x0112] = 6
    for folder, name in (("image", "x.jpg"), *((each, "x.png") for each in FOLDERS)):
        image = Image.open(next((tmp_path / "more" / folder / "scene").iterdir()))
        image.save(tmp_path / folder / "scene" / name, exif=exif)
    assert keys(source(tmp_path, annotations=list(FOLDERS)), "train", "annotated") == ["scene-005"]
    found = rejects(source(tmp_path, annotations=list(FOLDERS)), "train", "annotated")
    expected = {
        "image/scene/000.jpg": "missing depth, normal",
        "depth/scene/001.png": "missing image",
        "image/scene/002.jpg": "different shapes: 24 x 24 and 30 x 24 pixels",
        "segmentation/scene/003.png": "cannot be read as an image",
        "depth/scene/004.png": "no pixel has a depth",
        "image/scene/005.png": "its name is that of image/scene/005.jpg",
        "image/scene/x.jpg": "normals that EXIF asks to turn",
    }
    assert found.keys() == expected.keys()
    for name, message in expected.items():
        assert message in found[name] and "\n" not in found[name], name


@pytest.mark.parametrize("width, height", [(24, 24), (48, 36)])
@pytest.mark.parametrize("orientation", [3, 6])
def test_a_turned_photograph_is_not_turned_away_from_its_annotations(
    tmp_path, orientation, width, height
):
    """A network that ignores the tag sees stored pixels, and its output may be smaller."""
    write_annotated(tmp_path, count=1, width=24, height=24 * height // width)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(smooth(width, height, seed=1))
    upright = source(tmp_path).to_square(image)
    image.save(tmp_path / "image/scene/000.jpg", exif=exif, quality=95)
    (example,) = examples(source(tmp_path)).values()
    assert np.abs(example.input.astype(int) - upright).mean() < 5


def test_normals_are_neither_mirrored_nor_turned_by_augmentation(tmp_path):
    write_annotated(tmp_path, count=1)
    (example,) = examples(source(tmp_path)).values()
    balance = BalanceConfig(mode=BalanceMode.augment, max_degrees=180, vflip=True)
    geometry = balance.geometry(tasks.get("annotated"))
    assert not (geometry.hflip or geometry.vflip or geometry.max_degrees)
    for copy in range(1, 9):  # a crop of a sphere has its normals: red grows to the right
        normals = augment(example, 0, copy, geometry=geometry).images[3].astype(int)
        assert (np.diff(normals[12, :, 0]) >= -3).all() and (np.diff(normals[:, 12, 1]) <= 3).all()
        assert normals[12, -1, 0] > normals[12, 0, 0] and normals[0, 12, 1] > normals[-1, 12, 1]
    assert not tasks.get_or_default("my_annotations").allows_hflip


def test_patterns_as_taskonomy_names_its_files(tmp_path):
    """DOMAIN/point_0_view_0_domain_DOMAIN.png."""
    for number in range(3):
        for domain, image in (
            ("rgb", smooth(24, 24, seed=number)), ("depth_zbuffer", depth_map(24, 24)),
            ("normal", normal_map(24, 24)),
        ):  # fmt: skip
            save_array(tmp_path / domain / f"point_{number}_view_0_domain_{domain}.png", image)
    pattern = "{0}/point_{{id}}_domain_{0}.png"
    reader = source(
        tmp_path,
        image=pattern.format("rgb"),
        annotations=[pattern.format("depth_zbuffer"), pattern.format("normal")],
    )
    made = examples(reader)
    assert list(made) == [f"{number}_view_0" for number in range(3)]
    for number, example in enumerate(made.values()):
        image, depth, normal = example.images
        assert (image == smooth(24, 24, seed=number)).all()
        assert (normal == normal_map(24, 24)).all() and (depth[..., 0] == depth[..., 1]).all()


def test_patterns_in_one_directory(tmp_path):
    for number in range(3):
        save(tmp_path / f"{number}.png", smooth(24, 24, seed=number))
        save_array(tmp_path / f"{number}_depth.png", depth_map(24, 24))
    reader = source(tmp_path, image="{id}.png", annotations=["{id}_depth.png"])
    assert list(examples(reader)) == ["0", "1", "2"]
    assert not rejects(reader, "train", "annotated")


def test_directories_without_images_are_left_out(tmp_path):
    write_annotated(tmp_path, count=2)
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits/train.txt").write_text("000")
    for folder in ("image", "depth"):  # as a zip made on a Mac leaves them
        hidden = tmp_path / "__MACOSX" / folder / "scene/._000.jpg"
        hidden.parent.mkdir(parents=True)
        hidden.write_bytes(bad_files.APPLE_DOUBLE)
    assert {len(each.images) for each in examples(source(tmp_path)).values()} == {5}
    with pytest.raises(UserError, match="source.annotations=splits matches no image"):
        source(tmp_path, annotations=["splits"]).chunks("train")


def test_splits_and_prepare(tmp_path):
    write_annotated(tmp_path / "raw", count=30)
    reader = source(tmp_path / "raw", val_fraction=0.2, test_fraction=0.2, order="shuffled")
    made = prepared(reader, tmp_path / "out")
    assert {split for split, _ in made} == {"train", "val", "test"}
    assert sum(each.count for each in made.values()) == 30
    assert {each.images_per_example for each in made.values()} == {5}
    for manifest in made.values():  # what was found, not what was set
        assert manifest.settings["annotations"] == list(FOLDERS)
        kinds = ["depth", "image", "normals", "labels"]
        assert manifest.settings["kinds"] == dict(zip(FOLDERS, kinds, strict=True))
    again = source(tmp_path / "raw", val_fraction=0.2, test_fraction=0.2, order="shuffled")
    for split in ("train", "val", "test"):
        assert same(*(read_all(each, split)["annotated"] for each in (reader, again)))


def test_settings_errors(tmp_path):
    write_annotated(tmp_path, count=1)
    for change, message in (
        ({"order": "random"}, "order=random is unknown"),
        ({"annotations": ["depth", "depth"]}, "has a duplicate"),
        ({"annotations": ["image"]}, "image='image' is not a directory of its own"),
        ({"annotations": ["dept"]}, "source.annotations=dept is not a directory in"),
        ({"image": "images"}, "source.image=images is not a directory"),
        ({"kinds": {"depth": "deep"}}, "kinds.depth=deep is unknown"),
        ({"kinds": {"dept": "depth"}}, "kinds has 'dept', which does not exist"),
        ({"kinds": {"x": "depth"}, "annotations": ["edge"]}, "kinds has 'x', not one of"),
        ({"depth_range": [5, 1]}, "is not a range above 0"),
        ({"task": "My Task"}, "invalid task name"),
    ):
        with pytest.raises(UserError, match=message):
            source(tmp_path, **change).chunks("train")
    save(tmp_path / "alone/image/a.png", smooth(24, 24))
    with pytest.raises(UserError, match="contains no annotations next to image"):
        source(tmp_path / "alone").chunks("train")
