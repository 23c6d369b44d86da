"""Evaluate how students continue videos: each frame ahead is scored by itself.

A student sees the tokens of the first frames of a held-out clip and generates the next ones, each
from the frames before it, generated ones included, as LVM does (arXiv 2312.00785).

Notation:
    K given frames    M frames ahead
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Unpack

import torch

from delvm import tasks as all_tasks
from delvm.data.encode.executors.base import Rank
from delvm.data.image_io import to_tensor
from delvm.data.shards.manifest import Manifest, load_manifests
from delvm.data.shards.reader import read_examples
from delvm.data.types import Example
from delvm.errors import UserError, did_you_mean
from delvm.evaluation.answers.ray_workers import (
    RayWorkers,
    answer_on_ray,
    check_rank,
    check_same_sources,
)
from delvm.evaluation.answers.run import (
    AnswerOptions,
    missing_parts,
    open_store,
    plain_json,
)
from delvm.evaluation.answers.store import AnswerStore, Part, concatenate
from delvm.evaluation.queries.query_set import check_manifest
from delvm.evaluation.results import video_files
from delvm.evaluation.results.experiment_log import ResultLogger
from delvm.evaluation.results.provenance import (
    circumstances,
    data_fingerprints,
    model_info,
    student_fingerprints,
    versions,
)
from delvm.evaluation.results.result_files import ReportOptions
from delvm.evaluation.results.video_files import EvaluatedVideo
from delvm.evaluation.scores.video_scoring import score_clips
from delvm.inference.decoding import SamplingConfig, SamplingOptions
from delvm.inference.prompter import set_eval_mode
from delvm.inference.video import resolve_window
from delvm.interop.fingerprint import check_tokenizer_match, fingerprint, weights_fingerprint
from delvm.interop.lpips_file import VGG16, load_lpips
from delvm.models.perceptual import LPIPS, MIN_LPIPS_SIDE
from delvm.models.protocols import Students, TokenizerNet
from delvm.progress import Progress, log
from delvm.storage import StoragePath, as_path


@dataclass(frozen=True)
class _Options(AnswerOptions):
    """The arguments of an evaluation of clips."""

    context_frames: int
    num_frames: int | None
    window: int | None
    vgg_weights: str | None


@dataclass(frozen=True)
class _Models:
    """What frames are made and measured with; the window of each student is resolved."""

    tokenizer: TokenizerNet
    students: Students
    windows: dict[str, int]
    lpips: LPIPS | None


def evaluate_video(
    input_dir: StoragePath,
    tokenizer: TokenizerNet,
    students: Students,
    *,
    output_dir: str | Path,
    tasks: list[str] | None = None,
    num_queries: int = 100,
    context_frames: int = 4,
    num_frames: int | None = None,
    window: int | None = None,
    vgg_weights: str | None = None,
    batch_size: int = 32,
    overwrite: bool = False,
    origins: Mapping[str, str] | None = None,
    title: str = "Evaluation",
    loggers: Sequence[ResultLogger] = (),
    workers: RayWorkers | None = None,
    **sampling: Unpack[SamplingOptions],
) -> dict[str, Any]:
    """Have students continue held-out clips, and score each frame ahead.

    Answers are kept and divided among ranks as by `delvm.evaluation.evaluate_students`.

    Args:
        input_dir: Root of image shards, whose examples are clips (`source=video`); the first ones
            of "test" are continued.
        students: Name in the report -> model.
        output_dir: For the files of `delvm.evaluation.results.video_files`, and the answers.
        tasks: None or empty: all that are sequences.
        num_queries: Clips per task.
        context_frames: K, the frames of a clip that a student sees.
        num_frames: M, the frames that it generates; None: as many as the clip has after these.
        window: Frames that each new one follows at most; None: as many as the context holds.
        vgg_weights: File of a VGG16, which LPIPS needs; None leaves LPIPS out.
        batch_size: Clips that are continued at once.
        overwrite: Whether to continue all clips again.
        origins: Name of a student, or "tokenizer" -> where its weights come from.
        loggers: Of Lightning, see `delvm.evaluation.results.experiment_log`.
        workers: Of Ray, which continue clips in place of this process.

    Returns:
        The content of metrics.json, see `delvm.evaluation.results.video_files`. Empty in ranks
        other than 0.

    Raises:
        UserError: Shards, tasks or models are missing or do not fit together.
    """
    basics = (str(input_dir), num_queries, batch_size, SamplingConfig(**sampling))
    options = _Options(*basics, context_frames, num_frames, window, vgg_weights)
    _validate(options)
    clips = _select_clips(options, tasks, tokenizer)
    models = _check_models(options, tokenizer, students)
    about = ReportOptions(title, origins or {}, loggers)
    return _evaluate(options, clips, models, Path(output_dir), about, workers, overwrite)


def _evaluate(
    options: _Options,
    clips: dict[str, int],
    models: _Models,
    output_dir: Path,
    about: ReportOptions,
    workers: RayWorkers | None,
    overwrite: bool,
) -> dict[str, Any]:
    """Continue, score and write everything; the content of metrics.json."""
    started, rank = time.monotonic(), check_rank(overwrite, workers)
    sources = _sources(options, clips, models)
    store = open_store(output_dir, sources, rank, overwrite=overwrite)
    if workers:
        answer = partial(_answer_rank, options, clips, store.folder, sources)
        parts = [part for task in clips for part in options.batches(task)]
        answer_on_ray(workers, answer, store, parts, models.tokenizer.codebook.device.type)
    _answer(options, clips, models, store, rank)
    if rank.rank:
        return {}
    evaluated = dict(_collect(options, clips, models, store))
    device = str(models.tokenizer.codebook.device)
    provenance = sources | circumstances(device, rank.world_size, started)
    found = {
        "title": about.title,
        "settings": options.settings | {"image_size": models.tokenizer.resolution},
        **_model_info(models, about.origins),
        "tasks": {task: each.results for task, each in evaluated.items()},
    }
    video_files.write_files(output_dir, found, provenance, evaluated)
    if about.loggers:
        video_files.log_files(about.loggers, output_dir, found, evaluated)
    return found


def _validate(options: _Options) -> None:
    """Refuse counts below 1."""
    for name in ("num_queries", "context_frames", "num_frames", "window", "batch_size"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise UserError(f"{name}={value} is below 1: set {name}=1 or more")


def _select_clips(
    options: _Options, names: list[str] | None, tokenizer: TokenizerNet
) -> dict[str, int]:
    """Task -> M, the frames ahead.

    Raises:
        UserError: A task is unknown, its examples are not sequences, or its clips are too few or
            too short.
    """
    root = as_path(options.input_dir)
    manifests = load_manifests(root, "test", "images")
    clips = [
        name for name, each in manifests.items() if _is_clip(name, each, name in (names or ()))
    ]
    for name in names or ():
        if name not in manifests:
            raise UserError(f"no task '{name}' in {root}/test: {did_you_mean(name, manifests)}")
        if name not in clips:
            raise UserError(
                f"the examples of task '{name}' are not sequences of frames, which mode=video "
                f"continues: set tasks=[{','.join(clips)}]"
            )
    selected = [name for name in clips if not names or name in names]
    if not selected:
        raise UserError(
            f"{root}/test holds no clips, which mode=video continues: prepare them with "
            "source=video, or set mode=students"
        )
    if left_out := [name for name in manifests if name not in selected]:
        log(f"evaluate: left out, since mode=video continues clips: {', '.join(left_out)}")
    found = {}
    for name in selected:
        check_manifest(manifests[name], tokenizer.resolution, "num_queries", options.num_queries)
        length = manifests[name].images_per_example
        ahead = options.num_frames or length - options.context_frames
        if ahead < 1 or options.context_frames + ahead > length:
            both = f" and num_frames={ahead}" if options.num_frames else ""
            raise UserError(
                f"context_frames={options.context_frames}{both}, but clips of '{name}' have "
                f"{length} frames: set context_frames={max(1, length // 2)} num_frames=null, or "
                "prepare them with a larger source.clip_length"
            )
        found[name] = ahead
    return found


def _is_clip(name: str, manifest: Manifest, is_named: bool) -> bool:
    """Whether the examples of a task can be continued; nothing is known of unregistered ones."""
    task = all_tasks.get_or_default(name)
    known = name in all_tasks.all_names()
    return task.is_sequence or (is_named and not known and manifest.images_per_example > 2)


def _check_models(options: _Options, tokenizer: TokenizerNet, students: Students) -> _Models:
    """Refuse models that do not fit, before any work is done."""
    if not students:
        raise UserError("no students to evaluate: set students.NAME=PATH")
    windows = {}
    for name, student in students.items():
        try:
            check_tokenizer_match(tokenizer, student)
            tokens = tokenizer.tokens_per_image
            windows[name] = resolve_window(options.window, student.max_seq_len, tokens)
        except UserError as error:
            raise UserError(f"student '{name}': {error}, or students.{name}=PATH") from None
        if windows[name] < options.context_frames:
            log(
                f"evaluate: student '{name}' sees the last {windows[name]} of "
                f"context_frames={options.context_frames} frames, which is all its window holds"
            )
    return _Models(tokenizer, students, windows, _load_lpips(options.vgg_weights, tokenizer))


def _load_lpips(path: str | None, tokenizer: TokenizerNet) -> LPIPS | None:
    if path is None:
        return None
    if tokenizer.resolution < MIN_LPIPS_SIDE:
        raise UserError(
            f"LPIPS needs images of {MIN_LPIPS_SIDE} px or more, and the tokenizer's have "
            f"{tokenizer.resolution}: set vgg_weights=null"
        )
    hint = f"set vgg_weights=PATH to {VGG16}, or vgg_weights=null to leave LPIPS out"
    return load_lpips(path, "vgg_weights", hint).to(tokenizer.codebook.device).eval()


def _sources(options: _Options, clips: dict[str, int], models: _Models) -> dict[str, Any]:
    """What the answers depend on: another value of any of these makes others."""
    sources = {
        "mode": "video",
        "versions": versions(),
        "settings": options.settings,
        "frames_ahead": clips,
        "windows": models.windows,
        "seeds": {"samples": options.sampling.seed},
        "metrics": {task: list(all_tasks.get_or_default(task).metric_fns) for task in clips},
        "lpips": models.lpips and weights_fingerprint(models.lpips),
        "tokenizer": fingerprint(models.tokenizer),
        "students": student_fingerprints(models.students),
        "data": data_fingerprints(as_path(options.input_dir), list(clips), ("test",)),
        "device": models.tokenizer.codebook.device.type,
    }
    return plain_json(sources)


def _answer(
    options: _Options, clips: dict[str, int], models: _Models, store: AnswerStore, rank: Rank
) -> None:
    """Continue the clips that are missing of this rank's batches."""
    set_eval_mode(models.tokenizer, *models.students.values())
    parts = [part for task in clips for part in options.batches(task)]
    missing, done, total = missing_parts(parts, rank, store)
    with Progress(total * len(models.students), "evaluate", "clips") as bar:
        if done:
            log(f"evaluate: {done} of {total} clips are continued already")
            bar.skip(done * len(models.students))
        for part in missing:
            clips_of_part = [to_tensor(list(each.images)) for each in _read(options, part)]
            rows = score_clips(
                all_tasks.get_or_default(part.task),
                torch.stack(clips_of_part),
                options.context_frames,
                clips[part.task],
                models.tokenizer,
                models.students,
                models.windows,
                options.sampling,
                lpips=models.lpips,
                first=part.start,
                on_continued=lambda n, name: bar.update(n, name),
            )
            store.save(part, rows)


def _answer_rank(
    options: _Options,
    clips: dict[str, int],
    folder: Path,
    sources: dict[str, Any],
    tokenizer: TokenizerNet,
    students: Students,
    rank: Rank,
) -> None:
    """Continue what is missing of a rank's batches, in a worker that is started for that."""
    models = _check_models(options, tokenizer, students)
    check_same_sources(_sources(options, clips, models), sources)
    _answer(options, clips, models, AnswerStore(folder, sources, first_rank=False), rank)


def _read(options: _Options, part: Part) -> Iterator[Example]:
    examples = read_examples(as_path(options.input_dir), "test", part.task, part.start)
    return islice(examples, part.size)


def _collect(
    options: _Options, clips: dict[str, int], models: _Models, store: AnswerStore
) -> Iterator[tuple[str, EvaluatedVideo]]:
    """The results of each task, of all ranks."""
    for task in clips:
        rows = concatenate(store.wait_for(options.batches(task)))
        shown = video_files.shown_clips(rows)
        keys, shown_examples = [], {}
        for row, example in enumerate(_read(options, Part(task, 0, 0, options.num_queries))):
            keys.append(example.key)
            if row in shown:
                shown_examples[row] = example
        given = options.context_frames, models.tokenizer
        examples = [
            video_files.clip_example(row, reason, shown_examples[row], rows, *given)
            for row, reason in shown.items()
        ]
        yield (
            task,
            video_files.evaluated_video(
                task, keys, rows, examples, options.context_frames, options.sampling.seed
            ),
        )


def _model_info(models: _Models, origins: Mapping[str, str]) -> dict[str, Any]:
    about = model_info("tokenizer", models.tokenizer, origins)
    return {
        "tokenizer": about | {"fingerprint": fingerprint(models.tokenizer)},
        "students": {
            name: model_info(name, student, origins) | {"window": models.windows[name]}
            for name, student in models.students.items()
        },
    }
