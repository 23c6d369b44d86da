"""Clips with annotations of every frame: layouts, frames that stay in step, and bad input."""

import os

import numpy as np
import pytest
from PIL import Image

from delvm import tasks
from delvm.data.prepare.prepare import prepare
from delvm.data.sources._io.annotation_images import VOC_PALETTE
from delvm.data.sources._io.video import count_frames, read_video
from delvm.data.sources.annotated.streams import arrange
from delvm.data.sources.annotated.video import AnnotatedVideo
from delvm.data.sources.video import Video
from delvm.errors import UserError
from experiments.sources.layouts import write_video
from tests.data.sources import bad_files
from tests.data.sources.annotated_files import (
    depth_of,
    labels_of,
    moving,
    save_array,
    square_of,
    write_annotated_clip,
    write_frame_folder,
)
from tests.data.sources.checks import keys, prepared, read_all, rejects

SIZE, LENGTH = 32, 4
TASKS = ("video_separate", "video_interleaved")


def source(root, kind=AnnotatedVideo, **settings):
    plain = {"path": str(root), "size": SIZE, "val_fraction": 0, "test_fraction": 0, "stride": 1}
    return kind(**plain | {"clip_length": LENGTH} | settings)


def gray_depth(frame):
    """The same depth, rendered already, as a video has it."""
    return np.repeat(np.where(square_of(frame), 255, 30).astype(np.uint8)[..., None], 3, axis=2)


def in_step(example, task, annotations=2):
    """Whether the square of each frame is where its annotations have it."""
    images = np.stack(example.images)
    shape = (LENGTH, 1 + annotations) if task == TASKS[1] else (1 + annotations, LENGTH)
    clips = images.reshape(*shape, SIZE, SIZE, 3)
    clips = clips if task == TASKS[1] else clips.swapaxes(0, 1)
    for frame, *others in clips:
        square = square_of(frame)
        for other in others:
            inside = np.abs(other - np.median(other[square], axis=0)).max(axis=2) < 60
            if (inside == square).mean() < 0.93:
                return False
    return True


@pytest.mark.parametrize("by_video", [False, True])
def test_layouts(tmp_path, by_video, capsys):
    write_annotated_clip(tmp_path, "a", 9, by_video=by_video)
    reader = source(tmp_path)
    made = read_all(reader, "train")
    assert tuple(made) == TASKS
    for task in TASKS:
        assert [each.key for each in made[task]] == ["a-000000", "a-000004"]
        assert all(len(each.images) == 12 and in_step(each, task) for each in made[task])
    separate, interleaved = (made[task][0].images for task in TASKS)
    for frame in range(LENGTH):
        for kind in range(3):
            assert (separate[kind * LENGTH + frame] == interleaved[3 * frame + kind]).all()
    labels = {tuple(color) for image in separate[8:] for row in image for color in row}
    assert labels == {VOC_PALETTE[0], VOC_PALETTE[1]}
    assert capsys.readouterr().err.count("depth (depth), seg (labels)") == 1
    only = source(tmp_path, annotations=["seg"], layouts=["interleaved"])
    (example, _) = read_all(only, "train")["video_interleaved"]
    assert len(example.images) == 8 and in_step(example, TASKS[1], annotations=1)


def test_directories_without_frames_are_left_out(tmp_path):
    """As ScanNet has them: SCENE/color, depth, pose and intrinsic, the last two of text files."""
    for scene in ("scene0000_00", "scene0001_00"):
        write_annotated_clip(tmp_path, scene, 4, by_video=True)
        (tmp_path / scene / "image").rename(tmp_path / scene / "color")
        for folder in ("pose", "intrinsic"):
            (tmp_path / scene / folder).mkdir()
            (tmp_path / scene / folder / "0.txt").write_text("1 0 0 0")
    reader = source(tmp_path, image="color")
    assert reader.found_annotations() == ["depth", "seg"]
    assert len(keys(reader, "train", TASKS[0])) == 2
    with pytest.raises(UserError, match="'pose', which is nowhere next to color"):
        source(tmp_path, image="color", annotations=["pose"]).chunks("train")


def test_an_instance_has_one_color_in_all_frames(tmp_path):
    """Ids of KITTI MOTS, 1000 x class + instance: the first leaves, and another one enters."""
    frames = moving(4)
    write_frame_folder(tmp_path / "image/a", frames)
    columns = [(1001, 2005), (1001, 2005), (2005, 3000), (2005, 3000)]
    labels = [np.zeros((32, 48), np.uint16) for _ in frames]
    for label, (left, right) in zip(labels, columns, strict=True):
        label[:, 16:24], label[:, 24:32] = left, right
    write_frame_folder(tmp_path / "instances/a", labels)
    reader = source(tmp_path, layouts=["separate"])
    (example,) = read_all(reader, "train")["video_separate"]
    colors = [{tuple(each) for each in image.reshape(-1, 3)} for image in example.images[4:]]
    black, (first, second, third) = (0, 0, 0), VOC_PALETTE[:3]
    assert colors == 2 * [{black, first, second}] + 2 * [{black, second, third}]


def test_arrange():
    frames = [np.full((2, 1, 1, 3), number) + [[[[0]]], [[[10]]]] for number in range(3)]
    order = {layout: [int(image[0, 0, 0]) for image in arrange(frames, layout)]
             for layout in ("separate", "interleaved")}  # fmt: skip
    assert order == {"separate": [0, 1, 2, 10, 11, 12], "interleaved": [0, 10, 1, 11, 2, 12]}


@pytest.mark.parametrize("annotation", ["mp4", "folder"])
@pytest.mark.parametrize("video", ["mp4", "folder"])
@pytest.mark.slow
def test_files_and_folders_on_either_side(tmp_path, video, annotation):
    frames = moving(10)
    for folder, kind, made in (
        ("image", video, frames), ("depth", annotation, list(map(gray_depth, frames))),
    ):  # fmt: skip
        if kind == "mp4":
            write_video(tmp_path / folder / "a.mp4", made)
        else:
            name = "frame{}.png" if folder == "image" else "depth-{}.png"  # matched by order
            write_frame_folder(tmp_path / folder / "a", made, name)
    for stride, start in ((1, 0), (2, 0)):
        reader = source(tmp_path, stride=stride)
        for task in TASKS:
            examples = read_all(reader, "train")[task]
            assert len(examples) == (2 if stride == 1 else 1)
            assert all(in_step(each, task, annotations=1) for each in examples)
            assert not rejects(reader, "train", task) and not start


def test_cuts_and_strides_are_those_of_the_video(tmp_path):
    frames = [*moving(6), *(255 - frame for frame in moving(7))]
    write_frame_folder(tmp_path / "image/a", frames)
    # The annotation has no cut, and one that the video does not have is none.
    write_frame_folder(tmp_path / "depth/a", [depth_of(frame) for frame in moving(13)])
    for settings in ({}, {"strides": [1, 2]}, {"overlap": 1}, {"random_start": True, "seed": 3}):
        alone = source(tmp_path / "image", Video, **settings)
        expected = keys(alone, "train", "video")
        if "random_start" not in settings:  # which goes by the path
            assert keys(source(tmp_path, **settings), "train", TASKS[0]) == expected
        else:
            assert keys(source(tmp_path, **settings), "train", TASKS[0])


def test_a_frame_without_annotation_breaks_the_clip(tmp_path):
    write_annotated_clip(tmp_path, "a", 13)
    (tmp_path / "depth/a/frame0005.png").unlink()
    save_array(tmp_path / "seg/a/frame0099.png", labels_of(moving(1)[0]))
    reader = source(tmp_path)
    assert keys(reader, "train", TASKS[1]) == ["a-000000", "a-000006"]
    assert all(in_step(each, TASKS[1]) for each in read_all(reader, "train")[TASKS[1]][:1])
    found = [each.reason for each in read_all(reader, "train")[TASKS[1]] if hasattr(each, "reason")]
    assert found == [
        "frame 5: depth: missing",
        "frame 12: seg: 1 frames without an image, such as frame0099.png",
    ]


@pytest.mark.parametrize("kind", ["mp4", "folder"])
def test_an_annotation_of_one_frame_less_is_rejected(tmp_path, kind):
    frames = moving(9)
    for folder, count in (("image", 9), ("depth", 8)):
        made = [gray_depth(frame) for frame in frames[:count]]
        made = frames if folder == "image" else made
        if kind == "mp4":
            write_video(tmp_path / folder / "a.mp4", made)
        else:
            write_frame_folder(tmp_path / folder / "a", made, folder + "{}.png")
    write_annotated_clip(tmp_path, "b", 4)
    (reader := source(tmp_path, annotations=["depth"])).validate()
    path = "image/a.mp4" if kind == "mp4" else "image/a"
    assert rejects(reader, "train", TASKS[0]) == {path: "has 9 frames, and depth 8"}
    assert keys(reader, "train", TASKS[0]) == ["b-000000"]


def test_bad_input_is_rejected_and_the_rest_is_read(tmp_path):
    frames = moving(12)
    for name in ("a", "b", "c", "d", "e"):
        write_annotated_clip(tmp_path, name, 12)
    bad_files.truncated_jpeg(tmp_path / "seg/a/frame0003.png")
    save_array(tmp_path / "depth/b/frame0004.png", np.ones((32, 40), np.uint16))
    for path in (tmp_path / "depth/c").iterdir():
        path.unlink()
    for path in (tmp_path / "image/d").iterdir():
        path.unlink()
    bad_files.zero_bytes(tmp_path / "image/e/frame0000.png")
    write_video(tmp_path / "image/f.mp4", frames)
    bad_files.truncated_mp4(tmp_path / "depth/f.mp4", list(map(gray_depth, frames)))
    write_frame_folder(tmp_path / "seg/f", list(map(labels_of, frames)))
    reader = source(tmp_path)
    found = rejects(reader, "train", TASKS[0])
    expected = {
        "image/a": "frame 3: seg: frame0003.png cannot be read as an image",
        "image/b": "frame 4: images of one example have different shapes: 48 x 32 and 40 x 32",
        "image/c": "missing depth",
        "depth/d": "missing image",
        "image/e": "frame 0: frame0000.png cannot be read as an image",
        "image/f.mp4": "frame 0: depth: cannot be read as a video",
    }
    assert found.keys() == expected.keys()
    for name, message in expected.items():
        assert message in found[name] and "\n" not in found[name], name
    assert keys(reader, "train", TASKS[0]) == [
        "a-000004", "a-000008", "b-000000", "b-000005", "e-000001", "e-000005",
    ]  # fmt: skip


def test_grays_of_depth_mean_the_same_in_all_frames(tmp_path):
    """A square is far at first, and near from the fourth frame on: the rest keeps its gray."""
    frames = moving(8)
    depth = [depth_of(frame) for frame in frames]
    for number in range(4):
        depth[number] = np.where(square_of(frames[number]), 3900, 4000).astype(np.uint16)
    write_frame_folder(tmp_path / "image/a", frames)
    write_frame_folder(tmp_path / "depth/a", depth)

    def grays(reader):
        clips = read_all(reader, "train")["video_separate"]
        return [image[..., 0] for clip in clips for image in clip.images[LENGTH:]]

    own = grays(source(tmp_path))
    assert {int(gray.min()) for gray in own} == {1}
    assert max(gray.max() for gray in own[:4]) < 8 and {int(g.max()) for g in own[4:]} == {255}
    assert max(gray.max() for gray in grays(source(tmp_path, depth_range=[500, 4000]))[:4]) < 8


def test_tasks_are_never_mirrored_or_turned():
    for task in map(tasks.get, TASKS):
        assert not task.allows_hflip and task.max_degrees == 0


@pytest.mark.parametrize("by_video", [False, True])
@pytest.mark.slow
def test_prepare(tmp_path, by_video):
    for number in range(6):
        write_annotated_clip(tmp_path / "raw", f"v{number}", 8, by_video=by_video)
    reader = source(tmp_path / "raw", val_fraction=0.2, test_fraction=0.2)
    made = prepared(reader, tmp_path / "out")
    assert {task for _, task in made} == {*TASKS}
    assert {each.images_per_example for each in made.values()} == {12}
    for task in TASKS:
        assert sum(each.count for (_, name), each in made.items() if name == task) == 12
        videos = [{key[:2] for key in keys(reader, split, task)} for split in ("train", "val")]
        assert all(videos) and not videos[0] & videos[1]


@pytest.mark.parametrize("by_video", [False, True])
def test_an_annotation_that_does_not_exist_is_an_error(tmp_path, by_video):
    write_annotated_clip(tmp_path, "a", 4, by_video=by_video)
    with pytest.raises(UserError, match="'depths', which is nowhere next to .*mean 'depth'"):
        source(tmp_path, annotations=["depths"]).chunks("train")


def test_contact_sheet_shows_complete_examples(tmp_path):
    """Of a clip of 4 frames with 2 annotations, all 12 images."""
    for name in "ab":
        write_annotated_clip(tmp_path / "raw", name, 4)
    prepare(source(tmp_path / "raw"), tmp_path / "out", ["train"])
    sheet = Image.open(tmp_path / "out/contact_sheet.png")
    assert 12 * 128 < sheet.width < 14 * 140


def test_settings_errors(tmp_path):
    write_annotated_clip(tmp_path, "a", 4)
    for change, message in (
        ({"layouts": ["both"]}, "layouts has 'both'"),
        ({"layouts": []}, r"layouts=\[\] is empty"),
        ({"clip_length": 1}, "source.clip_length=1 is below 2"),
        ({"image": "frames"}, r"contains neither frames/NAME nor NAME/frames"),
        ({"kinds": {"flow": "image"}}, "kinds has 'flow', which does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            source(tmp_path, **change).chunks("train")


def test_named_pipe_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "a.mp4")
    file = os.open(tmp_path / "a.mp4", os.O_RDWR | os.O_NONBLOCK)
    os.write(file, bytes(60_000))  # so that who reads it all the same does not wait forever
    assert count_frames(tmp_path / "a.mp4") is None
    assert list(read_video(tmp_path / "a.mp4", 1)) == [(0, "cannot be read as a video: not a file")]
    os.close(file)
