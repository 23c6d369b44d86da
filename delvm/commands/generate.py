"""`delvm generate`: prompt a student with example pairs and generate the answers to queries."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from delvm.commands.app import verb_main
from delvm.commands.continue_video import continue_video
from delvm.commands.output_check import check_output_dir
from delvm.configs.generate import GenerateConfig
from delvm.data.image_io import open_image
from delvm.inference.decoding import Decoding, SamplingConfig
from delvm.inference.files.answer_files import (
    OutputPaths,
    Question,
    plan_line_outputs,
    plan_outputs,
)
from delvm.inference.files.answer_record import IDS, AnswerRecord, settings_of
from delvm.inference.files.answer_writer import AnswerWriter
from delvm.inference.files.prompt_files import (
    PromptLine,
    check_line_images,
    is_jsonl,
    open_pairs,
    read_lines,
    read_prompt,
)
from delvm.inference.files.query_files import check_queries
from delvm.progress import log, track

if TYPE_CHECKING:
    from delvm.inference.prompter import Answer, Pairs, Prompter


MAX_LISTED = 4  # image grids


def run(cfg: GenerateConfig) -> None:
    """Write an answer for each query, and image grids of prompt, queries and answers."""
    if cfg.video is not None:
        return continue_video(cfg, cfg.video)
    lines: list[PromptLine] = []
    prompts: list[Pairs] = []
    if is_jsonl(cfg.prompts[0]):
        lines = read_lines(cfg.prompts[0], cfg.prompt_dir)
        files = plan_line_outputs(lines, cfg.output)
    else:
        files = plan_outputs(str(cfg.query), cfg.output)
    check_output_dir(str(files.grids[0].parent), "output")
    if lines:
        check_line_images(lines)
        _log_more_targets(lines)
    else:
        prompts = [read_prompt(each, cfg.prompt_dir) for each in cfg.prompts]
        check_queries(each.query for each in files.questions)
    prompter = _load_prompter(cfg)
    if lines:
        _check_context(prompter, lines)
    images = [image for prompt in prompts for pair in prompt for image in pair]
    shown = prompter.to_squares(images)
    record = None
    if files.folder is not None:
        record = _open_record(cfg, prompter, shown, list(map(len, prompts)), files.folder)
    writer = AnswerWriter(files, shown, prompter.to_squares, record)
    answers = _answers(cfg, prompter, prompts, files.questions, writer.todo)
    if len(writer.todo) > cfg.batch_size:
        answers = track(answers, len(writer.todo), "generate", "answers")
    for answer in answers:
        writer.write(answer)
    writer.finish()
    _print_result(cfg, files)
    if cfg.draft is not None and writer.todo:
        print(prompter.engine.speculation.summary())


def _load_prompter(cfg: GenerateConfig) -> "Prompter":
    # Imported here: torch takes seconds, which a mistake before need not wait for.
    from delvm.inference.prompter import Prompter
    from delvm.interop.load import load_student, load_tokenizer
    from delvm.models.precision import resolve_device

    device = resolve_device(cfg.device)
    tokenizer = load_tokenizer(cfg.tokenizer, device)
    student = load_student(cfg.student, device, cfg.precision)
    draft = None
    if cfg.draft is not None:
        draft = load_student(cfg.draft, device, cfg.precision, key="draft")
    return Prompter(
        tokenizer,
        student,
        resize=cfg.resize,
        draft=draft,
        draft_tokens=cfg.draft_tokens,
        compile=cfg.compile,
    )


def _open_record(
    cfg: GenerateConfig,
    prompter: "Prompter",
    prompt: Sequence[Image.Image],
    lengths: list[int],
    folder: Path,
) -> AnswerRecord:
    from delvm.interop.fingerprint import fingerprint, weights_fingerprint

    pixels = hashlib.sha256(b"".join(image.tobytes() for image in prompt))
    if len(lengths) > 1:  # the same pairs in one prompt are another prompt
        pixels.update(repr(lengths).encode())
    models = {
        "tokenizer": fingerprint(prompter.tokenizer),
        "student": weights_fingerprint(prompter.student),
        "prompt": pixels.hexdigest()[:16] if prompt else None,
        "resize": str(prompter.resize),
        "precision": str(cfg.precision),
    }
    sampling = SamplingConfig(**cfg.sampling)
    if (draft := prompter.engine.draft) is not None and sampling.decoding is Decoding.sample:
        # It changes which tokens are sampled, though not how likely each is.
        models["draft"] = f"{weights_fingerprint(draft)} {cfg.draft_tokens}"
    return AnswerRecord(
        folder,
        settings_of(models, sampling),
        codebook_size=prompter.tokenizer.codebook_size,
        tokens_per_image=prompter.tokenizer.tokens_per_image,
        overwrite=cfg.overwrite,
    )


def _answers(
    cfg: GenerateConfig,
    prompter: "Prompter",
    prompts: "list[Pairs]",
    questions: Sequence[Question],
    rows: Sequence[int],
) -> "Iterator[Answer]":
    """The answers to some of the questions, whose images are opened as they are needed."""
    if not rows:
        return iter(())
    options: Any = {"batch_size": cfg.batch_size, "row_ids": rows, **cfg.sampling}
    chosen = (questions[row] for row in rows)
    if prompts:
        return prompter.stream(prompts, (open_image(each.query) for each in chosen), **options)
    examples = ((open_pairs(each.pairs), open_image(each.query)) for each in chosen)
    return prompter.stream_each(examples, **options)


def _check_context(prompter: "Prompter", lines: Sequence[PromptLine]) -> None:
    """Raise a UserError if the longest line does not fit into the student's context."""
    longest = max(lines, key=lambda line: len(line.pairs))
    prompter.check_context_length(len(longest.pairs), f"{longest.where}: ")


def _log_more_targets(lines: Sequence[PromptLine]) -> None:
    more = sum(len(line.targets) > 1 for line in lines)
    if more:
        log(
            f"generate: {more} of {len(lines)} lines have several targets: the first is the true "
            "answer, the others are not shown"
        )


def _print_result(cfg: GenerateConfig, files: OutputPaths) -> None:
    total, first = len(files.questions), files.questions[0].answer
    print(f"answer: {first}" if total == 1 else f"answers: {total} in {cfg.output}")
    grids = files.grids
    listed = map(str, grids) if len(grids) <= MAX_LISTED else (grids[0], "...", grids[-1])
    print(f"image grid: {', '.join(map(str, listed))}")
    if files.folder is not None:
        print(f"ids: {files.folder / IDS}")


main = verb_main(__name__)
