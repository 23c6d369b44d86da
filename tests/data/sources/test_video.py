"""Clips of videos, of folders of frames, and of HD-VILA."""

import shutil
import tracemalloc
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
from PIL import Image

from delvm.data.resizing import ResizeMode, resize_center_crop, to_square_array
from delvm.data.sources._io import video as frames
from delvm.data.sources._io.video import Clip, scene_distance, split_into_clips
from delvm.data.sources.hdvila import HdVila
from delvm.data.sources.shapes import photographs
from delvm.data.sources.video import Video
from delvm.errors import UserError
from experiments.sources.layouts import write_frames, write_video
from tests.data.sources import bad_files
from tests.data.sources.checks import keys, prepared, read_all, rejects, same

pytestmark = pytest.mark.slow

SIZE = 32
WIDE, HIGH = 64, 48
SCENES = ("astronaut", "coffee", "china", "flower")


def moving(count, scene="astronaut", width=WIDE, height=HIGH):
    """Frames of a camera that moves over a photograph."""
    image = photographs.load_photo(scene)
    scale = 2.5 * height / image.height
    wide = image.resize((round(scale * image.width), round(scale * image.height)))
    return [np.asarray(wide.crop((n % 40, 8, n % 40 + width, 8 + height))) for n in range(count)]


def fitted(image):
    return np.asarray(resize_center_crop(Image.fromarray(image), SIZE))


def near(one, other):
    return np.abs(one.astype(int) - other).mean() < 5  # H.264


def source(root, kind=Video, **settings):
    plain = {
        "path": str(root),
        "size": SIZE,
        "val_fraction": 0,
        "test_fraction": 0,
        "clip_length": 4,
        "stride": 1,
    }
    return kind(**plain | settings)


def write(path, shown):
    (write_video if path.suffix else write_frames)(path, shown)


@pytest.fixture(params=["a.mp4", "a.mkv", "a"])
def path(request, tmp_path):
    return tmp_path / "raw" / request.param


@pytest.mark.parametrize(
    "count, stride, overlap, starts",
    [
        (12, 1, 0, [0, 4, 8]),
        (15, 1, 0, [0, 4, 8]),
        (16, 3, 0, [0]),
        (24, 3, 0, [0, 12]),
        (10, 1, 3, [0, 1, 2, 3, 4, 5, 6]),
        (12, 2, 2, [0, 4]),
    ],
)
def test_clips(path, count, stride, overlap, starts):
    shown = moving(count)
    write(path, shown)
    clips = read_all(source(path.parent, stride=stride, overlap=overlap), "train")["video"]
    assert [each.key for each in clips] == [f"a-{start:06d}" for start in starts]
    for each, start in zip(clips, starts, strict=True):
        assert len(each.images) == 4
        for number, image in enumerate(each.images):
            assert near(image, fitted(shown[start + number * stride]))


def starts_of(reader):
    return [(key.split("-")[-2], int(key.split("-")[-1])) for key in keys(reader, "train", "video")]


def test_several_strides(path):
    write(path, moving(24))
    reader = source(path.parent, strides=[1, 3])
    assert starts_of(reader) == [("s1", n) for n in range(0, 24, 4)] + [("s3", 0), ("s3", 12)]
    clips = read_all(reader, "train")["video"]
    alone = read_all(source(path.parent, stride=3), "train")["video"]
    for one, other in zip(clips[-2:], alone, strict=True):
        assert all((a == b).all() for a, b in zip(one.images, other.images, strict=True))


def test_a_video_too_short_for_some_strides_is_not_rejected(path):
    write(path, moving(8))
    assert not rejects(source(path.parent, strides=[1, 5]), "train", "video")
    (reason,) = rejects(source(path.parent, strides=[5, 7]), "train", "video").values()
    assert "too short: 2 frames" in reason


def test_random_starts(tmp_path):
    for number in range(8):
        write(tmp_path / f"v{number}", moving(20))
    write(tmp_path / "short", moving(4))
    plain = {"random_start": True, "stride": 2}
    first = [starts_of(source(tmp_path, seed=seed, **plain)) for seed in (0, 0, 1)]
    assert first[0] == first[1] != first[2]
    begun = [start for _, start in first[0]]
    assert len(set(begun)) > 2 and max(begun) < 16 and min(begun) >= 0
    assert not rejects(source(tmp_path, random_start=True), "train", "video")  # at its start


def panning(count, scenes=("coffee",), width=96):
    """Frames of a camera that pans by half of its width in 30 frames; one scene after another."""
    for scene in scenes:
        photo = photographs.load_photo(scene)
        wide = photo.resize((round(3 * width * photo.width / photo.height), 3 * width))
        for number in range(count):
            left = round(number * width / 60) % (wide.width - width)
            yield np.asarray(wide.crop((left, width, left + width, 2 * width)))


def test_a_panning_camera_is_not_a_cut_at_large_strides(tmp_path):
    write_frames(tmp_path / "a", panning(100))
    write_video(tmp_path / "b.mp4", panning(100))
    plain = {"strides": [30], "clip_length": 3}
    assert keys(source(tmp_path, **plain), "train", "video") == ["a-s30-000000", "b-s30-000000"]
    # This is what was done before, and is of no use.
    assert keys(source(tmp_path, **plain, cut_stride=0), "train", "video") == []


def test_cuts_between_the_frames_of_a_clip(path):
    """Of another scene that lasts less than a stride, no frame of a clip shows anything."""
    first, between = moving(30), moving(6, "china")
    first[11:17] = between
    write(path, first)
    settings = {"stride": 10, "clip_length": 3}
    assert keys(source(path.parent, **settings, cut_stride=0), "train", "video") == ["a-000000"]
    assert keys(source(path.parent, **settings), "train", "video") == []


def test_cut_stride_changes_nothing_of_small_strides(path):
    shown = [*moving(20), *moving(20, "china")]
    write(path, shown)
    for stride in (1, 4, 5):
        pair = [source(path.parent, stride=stride, cut_stride=each) for each in (5, 0)]
        one, other = (read_all(each, "train")["video"] for each in pair)
        assert same(one, other)
        # So earlier data sets can be continued.
        assert pair[0].settings("train", "video") == pair[1].settings("train", "video")
    steps = {s: source(path.parent).frame_step(s) for s in (5, 6, 7, 10, 16, 30)}
    assert steps == {5: 5, 6: 3, 7: 1, 10: 5, 16: 4, 30: 5}


def test_frames_sorted_by_number(tmp_path):
    shown = [np.full((HIGH, WIDE, 3), 4 * number, np.uint8) for number in range(12)]
    write_frames(tmp_path / "a", shown)
    clips = read_all(source(tmp_path), "train")["video"]
    levels = [int(image[0, 0, 0]) for each in clips for image in each.images]
    assert levels == [4 * number for number in range(12)]


def test_clips_do_not_span_cuts(path):
    lengths = (6, 3, 9)
    shown = [frame for n, scene in zip(lengths, SCENES, strict=False) for frame in moving(n, scene)]
    write(path, shown)
    assert keys(source(path.parent), "train", "video") == ["a-000000", "a-000009", "a-000013"]
    every = keys(source(path.parent, scene_cut_threshold=0), "train", "video")
    assert every == [f"a-{start:06d}" for start in (0, 4, 8, 12)]


def test_video_with_too_many_cuts_rejected(path):
    write(path, [frame for scene in SCENES for frame in moving(3, scene)])
    reader = source(path.parent)
    assert rejects(reader, "train", "video") == {
        path.name: "too short: 12 frames and 3 cuts between them, a clip has 4"
    }


def test_scene_distance_separates_cuts_from_motion_and_light():
    def look(scene, side=0.6, left=0.0):
        image = photographs.load_photo(scene)
        side = int(side * min(image.size))
        left = int(left * min(image.size))
        return np.asarray(resize_center_crop(image.crop((left, 0, left + side, side)), SIZE))

    threshold = Video(path="x").scene_cut_threshold
    scenes = [name for name in (*photographs.TRAIN, *photographs.HELD_OUT)
              if not photographs.is_gray(name)]  # fmt: skip
    assert len(scenes) > 6
    cuts = []
    for number, scene in enumerate(scenes):
        first = look(scene)
        assert scene_distance(first, first) == 0
        moved, nearer = look(scene, left=0.1), look(scene, side=0.5)
        lighter = np.clip(first * 1.25, 0, 255).astype(np.uint8)
        for alike in (moved, nearer, lighter):
            assert scene_distance(first, alike) < threshold, scene
        cuts += [scene_distance(first, look(other)) for other in scenes[:number]]
    assert np.mean(np.array(cuts) > threshold) > 0.9


def test_rotated_video_is_upright(tmp_path):
    shown = moving(4)
    turned = [np.ascontiguousarray(np.rot90(frame, -1)) for frame in shown]
    write_video(tmp_path / "a.mp4", turned, rotation=90)
    (clips,) = read_all(source(tmp_path), "train")["video"]
    assert all(near(p, fitted(f)) for p, f in zip(clips.images, shown, strict=True))


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_display_matrix_turns_and_mirrors(tmp_path, rotation, mirror):
    stored = moving(4, width=48)
    write_video(tmp_path / "a.mp4", stored, rotation, mirror=mirror)
    (clips,) = read_all(source(tmp_path), "train")["video"]
    for made, frame in zip(clips.images, stored, strict=True):
        shown = np.rot90(frame, rotation // 90)
        assert near(made, fitted(np.ascontiguousarray(shown[:, ::-1] if mirror else shown)))


@pytest.mark.parametrize("pixel_aspect", [Fraction(2), Fraction(1, 2), Fraction(16, 15)])
def test_pixels_that_are_not_square_are_shown_in_their_shape(tmp_path, pixel_aspect):
    stored = moving(4, width=48)
    write_video(tmp_path / "a.mp4", stored, pixel_aspect=pixel_aspect)
    (clips,) = read_all(source(tmp_path), "train")["video"]
    height, width = stored[0].shape[:2]
    for made, frame in zip(clips.images, stored, strict=True):
        shown = Image.fromarray(frame).resize((round(width * pixel_aspect * 2), height * 2))
        assert near(made, fitted(np.asarray(shown)))


def test_memory_independent_of_video_length():
    def endless(count):
        for number in range(count):
            yield number, Image.new("RGB", (256, 256), (number % 256,) * 3)

    peaks = []
    for count in (64, 512):
        tracemalloc.start()
        square = partial(to_square_array, size=256, mode=ResizeMode.short_side)
        clips = split_into_clips(endless(count), square, 8)
        assert sum(isinstance(each, Clip) for each in clips) == count // 8
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_broken_items_rejected_others_read(tmp_path):
    shown = moving(12)
    write_video(tmp_path / "good.mp4", shown)
    write_video(tmp_path / "short.mp4", shown[:3])
    bad_files.corrupt_mp4(tmp_path / "corrupt.mp4", shown)
    bad_files.truncated_mp4(tmp_path / "cut.mp4", shown)
    bad_files.playlist(tmp_path / "list.mp4", tmp_path / "good.mp4")
    bad_files.html(tmp_path / "page.mp4")
    bad_files.zero_bytes(tmp_path / "empty.mp4")
    bad_files.sound(tmp_path / "sound.mp4")
    write_frames(tmp_path / "folder", shown)
    bad_files.truncated_jpeg(tmp_path / "folder" / "5.png")
    bad_files.html(tmp_path / "folder" / "6.png")
    reader = source(tmp_path)
    clips = keys(reader, "train", "video")
    assert {key.partition("-")[0] for key in clips} == {"good", "folder", "corrupt"}
    assert [key for key in clips if "folder" in key] == ["folder-000000", "folder-000007"]
    found = rejects(reader, "train", "video")
    expected = {
        "corrupt.mp4": "frame 4: damaged frames",
        "cut.mp4": "Invalid data",
        "list.mp4": "Invalid data",
        "page.mp4": "Invalid data",
        "empty.mp4": "cannot be read as a video",
        "sound.mp4": "no video stream",
        "short.mp4": "too short: 3 frames, a clip has 4",
        "folder": "frame 5: 5.png cannot be read as an image",
    }
    assert found.keys() == expected.keys()
    for name, message in expected.items():
        assert message in found[name] and "\n" not in found[name], name


def test_random_corruption_never_raises(tmp_path):
    path, rng = tmp_path / "a.mp4", np.random.default_rng(0)
    original = bad_files.write_mp4(path, moving(12))
    reader = source(tmp_path)
    found = set()
    for _ in range(60):
        data = bytearray(original)
        for offset in rng.integers(0, len(data), 6):
            data[offset] = rng.integers(0, 256)
        path.write_bytes(bytes(data))
        found |= set(rejects(reader, "train", "video").values())
    assert len(found) > 3 and all("\n" not in reason for reason in found)


def test_truncated_video_rejected(tmp_path):
    bad_files.ending_mp4(tmp_path / "a.mp4", moving(20), 9)
    reader = source(tmp_path)
    assert keys(reader, "train", "video") == ["a-000000", "a-000004"]
    (reason,) = rejects(reader, "train", "video").values()
    assert "frame 9: truncated or damaged" in reason and "fewer than the header states" in reason


def test_too_large_frames_rejected(tmp_path, monkeypatch):
    write_video(tmp_path / "a.mp4", moving(4))
    monkeypatch.setattr(frames, "MAX_PIXELS", WIDE * HIGH - 1)
    (reason,) = rejects(source(tmp_path), "train", "video").values()
    assert f"{WIDE} x {HIGH} pixels, the limit is" in reason


@pytest.mark.parametrize("kind", [Video, HdVila])
def test_prepare(tmp_path, kind):
    root, count = tmp_path / "raw", 24
    for number in range(count):
        name = f"id-{number // 2}"
        path = root / "video_clips" / name / f"{name}.{number % 2}.mp4"
        if number < 2:
            write_video(path, moving(9))
        else:
            path.parent.mkdir(exist_ok=True)
            shutil.copy(root / "video_clips/id-0" / f"id-0.{number % 2}.mp4", path)
    reader = source(root, kind, val_fraction=0.3, test_fraction=0.2)
    clips = prepared(reader, tmp_path / "out")
    assert sum(manifest.count for manifest in clips.values()) == 2 * count
    assert {manifest.images_per_example for manifest in clips.values()} == {4}
    found = {split: {key.rpartition("_")[0] for key in keys(reader, split, "video")}
             for split in ("train", "val", "test")}  # fmt: skip
    assert all(found.values())
    if kind is HdVila:  # the cuts of one video stay together
        assert sum(map(len, found.values())) == count // 2


def test_hdvila_file_names(tmp_path):
    folder = tmp_path / "video_clips" / "abc.d"
    write_video(folder / "abc.d.0.mp4", moving(4))
    for name in ("abc.d.2.mp4", "abc.d.10.mp4", "other.1.mp4", "abc.d.mp4"):
        shutil.copy(folder / "abc.d.0.mp4", folder / name)
    shutil.copy(folder / "abc.d.0.mp4", tmp_path / "video_clips" / "stray.1.mp4")
    for root in (tmp_path, tmp_path / "video_clips"):
        reader = source(root, HdVila)
        assert keys(reader, "train", "video") == [
            "abc_d_0-000000", "abc_d_2-000000", "abc_d_10-000000",
        ]  # fmt: skip
        left = rejects(reader, "train", "video")
        assert {name.rpartition("/")[2] for name in left} == {
            "other.1.mp4", "abc.d.mp4", "stray.1.mp4",
        }  # fmt: skip
        assert set(left.values()) == {"is not named ID/ID.N.mp4"}


def test_chunk_name_identifies_its_videos(tmp_path):
    for name in "abc":
        write_frames(tmp_path / name, moving(4))
    before = source(tmp_path).chunks("train")["video"]
    assert before == source(tmp_path).chunks("train")["video"] and len(before) == 1
    write_frames(tmp_path / "b2", moving(4))
    assert source(tmp_path).chunks("train")["video"] != before


def test_names_differing_only_in_extension(tmp_path):
    write_frames(tmp_path / "a", moving(4))
    write_video(tmp_path / "a.mp4", moving(4))
    write_video(tmp_path / "b.mp4", moving(4))
    assert keys(source(tmp_path), "train", "video") == [
        "a-000000", "a_mp4-000000", "b-000000",
    ]  # fmt: skip


def test_video_settings_errors(tmp_path):
    for change, message in (
        ({"clip_length": 1}, "source.clip_length=1 is below 2"),
        ({"stride": 0}, "source.stride=0 is below 1"),
        ({"strides": [4, 0]}, r"source.strides=\[4, 0\] has one below 1"),
        ({"strides": [4, 4]}, r"source.strides=\[4, 4\] has .* a duplicate"),
        ({"overlap": -1}, "source.overlap=-1 is below 0"),
        ({"overlap": 4}, "source.overlap=4 is not below source.clip_length=4"),
        ({"scene_cut_threshold": 2}, "source.scene_cut_threshold=2 is not in"),
        ({}, "contains neither videos nor directories of frames"),
    ):
        with pytest.raises(UserError, match=message):
            source(tmp_path, **change).chunks("train")
    with pytest.raises(UserError, match="contains neither video_clips/ID/ID.N.mp4"):
        source(tmp_path, HdVila).chunks("train")
