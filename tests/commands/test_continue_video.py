"""`delvm generate video=PATH` on folders, patterns and video files, and every kind of bad input."""

from fractions import Fraction

import pytest
from PIL import Image

from delvm.data.image_io import open_image
from delvm.inference.files.video_files import find_frames, read_frames
from delvm.inference.prompter import Prompter
from delvm.interop.load import load_student, load_tokenizer


@pytest.fixture
def generate(delvm, weights):
    models = (f"tokenizer={weights}", f"student={weights}", "device=cpu")
    return lambda *words: delvm("generate", *models, *words)


def gray(level, size=(20, 30)):
    return Image.new("RGB", size, (level, level, level))


@pytest.fixture
def folder(tmp_path):
    """12 frames, f1 to f12, that get brighter; of two sizes."""
    path = tmp_path / "frames"
    path.mkdir()
    for number in range(1, 13):
        gray(20 * number, (20 + number % 2, 30)).save(path / f"f{number}.png")
    return path


def write_video(path, count):
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(10))
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for number in range(1, count + 1):
            frame = av.VideoFrame.from_image(gray(20 * number, (32, 32)))
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_new_frames_are_those_of_the_prompter(generate, folder, weights, tmp_path):
    output = tmp_path / "new" / "out"
    code, out, err = generate(f"video={folder}", "num_frames=3", f"output={output}", "window=2")
    assert code == 0 and "generate: 3/3 frames" in err
    assert out == (
        f"frames: 3 in {output}, from the last 2 of the video\nimage grid: {output}/grid.png\n"
        f"animation: {output}/video.gif\n"
    )
    prompter = Prompter(load_tokenizer(weights), load_student(weights))
    given = [open_image(folder / f"f{number}.png") for number in (11, 12)]  # not f8 and f9
    for number, expected in enumerate(prompter.extend(given, 3, window=2), 1):
        assert Image.open(output / f"frame_{number:04d}.png").tobytes() == expected.tobytes()
    with Image.open(output / "video.gif") as animation:
        sizes = animation.size
    assert sizes == (136, 136)  # 16 px enlarged, and a border
    assert Image.open(output / "grid.png").height > 2 * 128
    assert len([*output.iterdir()]) == 5


def levels(frames):
    return [round(frame.getpixel((8, 8))[0] / 20) for frame in frames]


def test_folder_pattern_and_video_give_the_last_frames(folder, tmp_path):
    (folder / "notes.txt").touch()
    for video in (folder, folder / "*.png", write_video(tmp_path / "a.mp4", 12)):
        files = find_frames(str(video), str(tmp_path / "out"))
        for most, stride, expected in (
            (3, 1, [10, 11, 12]),
            (3, 4, [4, 8, 12]),
            (9, 5, [2, 7, 12]),
            (99, 1, [*range(1, 13)]),
        ):
            assert levels(read_frames(files, most, stride, lambda frame: frame)) == expected, video


@pytest.mark.slow
def test_one_image_is_a_video_of_one_frame(generate, folder, tmp_path):
    code, out, _ = generate(f"video={folder}/f3.png", f"output={tmp_path}/out")
    assert code == 0 and "frames: 4 in" in out and "from the last 1 of" in out


def test_frames_that_an_earlier_run_left_are_reported(generate, folder, tmp_path):
    assert generate(f"video={folder}", "num_frames=3", f"output={tmp_path}/out")[0] == 0
    code, _, err = generate(f"video={folder}", "num_frames=1", f"output={tmp_path}/out")
    assert code == 0
    assert f"2 frames of an earlier run remain, from {tmp_path}/out/frame_0002.png on" in err


def bad_inputs(folder, tmp_path):
    text, empty, broken = tmp_path / "text.png", tmp_path / "empty", tmp_path / "broken.mp4"
    text.write_text("not an image")
    empty.mkdir()
    broken.write_bytes(write_video(tmp_path / "a.mp4", 12).read_bytes()[:-900])
    gray(1).save(tmp_path / "a.gif", save_all=True, append_images=[gray(200)])
    video = f"video={folder}"
    return {
        "with a prompt": ([video, "prompt=a"], "does not use prompt=a: set prompt=null, or"),
        "with a query": ([video, "query=a"], "does not use query=a: set query=null, or"),
        "with guidance": ([video, "guidance=2"], "does not use guidance=2.0: set guidance=1.0"),
        "no frames": ([video, "num_frames=0"], "num_frames=0 is below 1"),
        "window": ([video, "window=6"], "set window=5 or less"),
        "window below 1": ([video, "window=0"], "window=0 is below 1"),
        "stride": ([video, "stride=0"], "stride=0 is below 1"),
        "missing": ([f"video={tmp_path}/none"], "video not found: "),
        "empty": ([f"video={empty}"], " has no images: set video to another"),
        "no match": ([f"video={folder}/*.jpg"], " matches no images: set video to another"),
        "not an image": ([f"video={text}"], "cannot be read as an image: not an image"),
        "animation": ([f"video={tmp_path}/a.gif"], " is an animation: save its frames"),
        "truncated": ([f"video={broken}"], "cannot be read as a video"),
        "onto itself": ([video, f"output={folder}"], "set output to another directory"),
        "one file": ([video, f"output={tmp_path}/a.png"], "set output=DIR"),
        "window of prompts": (
            ["prompt=a", "query=b", "window=2"],
            "prompt does not use window=2",
        ),
    }


@pytest.mark.slow
def test_bad_input_is_one_line_and_2(generate, folder, tmp_path):
    for name, (words, line) in bad_inputs(folder, tmp_path).items():
        default = [] if any("output=" in word for word in words) else [f"output={tmp_path}/out"]
        code, out, err = generate(*words, *default)
        assert (code, out, err.count("\n")) == (2, "", 1), f"{name}: {err}"
        assert err.startswith("delvm: ") and line in err, f"{name}: {err}"
    assert not (tmp_path / "out").exists()
