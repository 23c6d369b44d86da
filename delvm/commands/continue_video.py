"""`delvm generate video=PATH`: continue the frames of a video."""

from delvm.commands.output_check import check_output_dir
from delvm.configs.generate import GenerateConfig
from delvm.inference.files.video_files import FrameWriter, find_frames, read_frames
from delvm.progress import track


def continue_video(cfg: GenerateConfig, video: str) -> None:
    """Write the frames that follow a video, a grid of given and new frames, and an animation."""
    files = find_frames(video, cfg.output)
    check_output_dir(cfg.output, "output")
    # Imported here: torch takes seconds, which a mistake above need not wait for.
    from delvm.inference.prompter import Prompter
    from delvm.inference.video import resolve_window
    from delvm.interop.load import load_student, load_tokenizer
    from delvm.models.precision import resolve_device

    device = resolve_device(cfg.device)
    tokenizer = load_tokenizer(cfg.tokenizer, device)
    student = load_student(cfg.student, device, cfg.precision)
    prompter = Prompter(tokenizer, student, resize=cfg.resize)
    window = resolve_window(cfg.window, student.max_seq_len, tokenizer.tokens_per_image)
    given = read_frames(files, window, cfg.stride, lambda frame: prompter.to_squares([frame])[0])
    writer = FrameWriter(cfg.output, given)
    frames = prompter.stream_frames(
        given,
        cfg.num_frames,
        window=window,
        **cfg.sampling,
    )
    for frame in track(frames, cfg.num_frames, "generate", "frames"):
        writer.write(frame.image)
    grid, animation = writer.finish()
    print(f"frames: {cfg.num_frames} in {cfg.output}, from the last {len(given)} of the video")
    print(f"image grid: {grid}")
    print(f"animation: {animation}")
