"""Evaluate students on held-out pairs: from shards and models to metrics and a report."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Unpack

from delvm import tasks as all_tasks
from delvm.data.encode.executors.base import Rank, rank_from_env
from delvm.data.shards.manifest import load_manifests
from delvm.errors import UserError, did_you_mean
from delvm.evaluation import results
from delvm.evaluation.answer_store import AnswerStore, Part, concatenate
from delvm.evaluation.bootstrap import CONFIDENCE, RESAMPLES
from delvm.evaluation.experiment_log import ResultLogger
from delvm.evaluation.prompt_selection import PromptSelection
from delvm.evaluation.provenance import (
    circumstances,
    data_fingerprints,
    model_info,
    student_fingerprints,
    versions,
)
from delvm.evaluation.query_set import QuerySet, build_query_set, validate
from delvm.evaluation.report.student_report import render_report
from delvm.evaluation.scoring import combine_draws, score_rows
from delvm.evaluation.student_files import EvaluatedTask, evaluated_task, log_files, write_files
from delvm.evaluation.training_curves import read_history
from delvm.inference.decoding import SamplingConfig, SamplingOptions
from delvm.inference.engine import Engine
from delvm.inference.prompter import max_pairs, set_eval_mode
from delvm.interop.fingerprint import check_tokenizer_match, fingerprint
from delvm.models.protocols import StudentNet, TokenizerNet
from delvm.progress import Progress, log
from delvm.storage import StoragePath, as_path, remove_tree

Students = Mapping[str, StudentNet]


@dataclass(frozen=True)
class _Options:
    """The arguments of an evaluation, as metrics.json repeats them."""

    input_dir: str
    num_queries: int
    num_shots: int
    num_prompts: int
    num_draws: int
    prompt_selection: str
    shared_prompt: bool
    batch_size: int
    compile: bool
    sampling: SamplingConfig

    @property
    def settings(self) -> dict[str, Any]:
        settings = asdict(self)
        sampling: dict[str, Any] = settings.pop("sampling")
        return settings | sampling


def evaluate_students(
    input_dir: StoragePath,
    tokenizer: TokenizerNet,
    students: Students,
    *,
    output_dir: Path,
    tasks: list[str] | None = None,
    num_queries: int = 100,
    num_shots: int = 3,
    num_prompts: int = 1,
    num_draws: int = 1,
    prompt_selection: str = PromptSelection.random,
    shared_prompt: bool = False,
    batch_size: int = 32,
    compile: bool = False,
    overwrite: bool = False,
    histories: Mapping[str, Path] | None = None,
    origins: Mapping[str, str] | None = None,
    title: str = "Evaluation",
    loggers: Sequence[ResultLogger] = (),
    **sampling: Unpack[SamplingOptions],
) -> dict[str, Any]:
    """Score students on held-out pairs, between trivial baselines and the tokenizer's ceiling.

    Answers are kept in output_dir/answers, from which it continues if it was killed. Each of the
    processes of torchrun answers its own batches, and rank 0 writes the results.

    Args:
        input_dir: Root of image shards. The first pairs of "test" are the queries, and prompts are
            sampled from "val".
        students: Name in the report -> model.
        output_dir: For the files of `delvm.evaluation.student_files`, and the answers.
        tasks: None or empty: all tasks of the shards.
        num_queries: Queries per task.
        num_shots: Example pairs per prompt.
        num_prompts: Prompts that vote on each answer, see `delvm.inference.Engine`.
        num_draws: Times that the prompts are sampled; scores are means, with their spread.
        prompt_selection: random, or nearest: the pairs most similar to the query, by the
            tokenizer's features.
        shared_prompt: Whether all queries of a task have the same prompts, which is faster.
        compile: Whether to compile what computes the tokens, see `delvm.inference.static_step`.
        overwrite: Whether to answer all queries again.
        histories: Name of a student, or "tokenizer" -> metrics.csv of its training, for curves.
        origins: Name of a student, or "tokenizer" -> where its weights come from.
        loggers: Of Lightning, see `delvm.evaluation.experiment_log`.

    Returns:
        The content of metrics.json: title, settings, tokenizer, students (origin, parameters,
        summary) and tasks (see `delvm.evaluation.results`). Empty in ranks other than 0.

    Raises:
        UserError: Shards, tasks or models are missing or do not fit together.
    """
    counts = (num_queries, num_shots, num_prompts, num_draws)
    how = (str(prompt_selection), shared_prompt, batch_size, compile)
    options = _Options(str(input_dir), *counts, *how, SamplingConfig(**sampling))
    selected = _select_tasks(input_dir, tasks)
    _validate(options, selected, tokenizer, students)
    report = _Report(title, dict(histories or {}), dict(origins or {}), loggers)
    return _evaluate(options, selected, tokenizer, students, Path(output_dir), report, overwrite)


@dataclass(frozen=True)
class _Report:
    """What a report shows besides the results, and the loggers that get it too."""

    title: str
    histories: dict[str, Path]
    origins: dict[str, str]
    loggers: Sequence[ResultLogger]


def _evaluate(
    options: _Options,
    tasks: list[str],
    tokenizer: TokenizerNet,
    students: Students,
    output_dir: Path,
    about: _Report,
    overwrite: bool,
) -> dict[str, Any]:
    """Answer, score and write everything; the content of metrics.json."""
    started, rank = time.monotonic(), rank_from_env()
    curves = {name: read_history(path) for name, path in about.histories.items()}
    sources = _sources(options, tasks, tokenizer, students)
    folder = output_dir / "answers"
    if overwrite and rank.rank == 0:
        remove_tree(folder)
    store = AnswerStore(folder, sources, first_rank=rank.rank == 0)
    evaluated = _score_tasks(options, tasks, tokenizer, students, store, rank)
    if rank.rank:
        return {}
    provenance = sources | circumstances(str(tokenizer.codebook.device), rank.world_size, started)
    task_results = {task: each.results for task, each in evaluated.items()}
    metrics = {
        "title": about.title,
        "settings": options.settings | _derived_settings(tokenizer),
        **_model_info(tokenizer, students, task_results, about.origins),
        "tasks": task_results,
    }
    examples = {task: each.examples for task, each in evaluated.items()}
    report = render_report(metrics, examples, curves)
    write_files(output_dir, metrics, provenance, evaluated, report)
    if about.loggers:
        log_files(about.loggers, output_dir, metrics, evaluated)
    return metrics


def _sources(
    options: _Options, tasks: list[str], tokenizer: TokenizerNet, students: Students
) -> dict[str, Any]:
    """What the answers depend on: another value of any of these makes others."""
    sources = {
        "versions": versions(),
        "settings": options.settings,
        "metrics": {task: _metric_names(task) for task in tasks},
        "seeds": {"prompts": options.sampling.seed, "samples": options.sampling.seed},
        "tokenizer": fingerprint(tokenizer),
        "students": student_fingerprints(students),
        "data": data_fingerprints(as_path(options.input_dir), tasks),
        "device": tokenizer.codebook.device.type,
    }
    plain: dict[str, Any] = json.loads(json.dumps(sources))  # as it is read back
    return plain


def _metric_names(task: str) -> list[str]:
    known = all_tasks.get_or_default(task)
    return [*known.metrics, *known.set_metrics]


def _select_tasks(root: StoragePath, names: list[str] | None) -> list[str]:
    """The tasks to evaluate, without duplicates, trained ones first.

    Without names, examples that are not pairs, such as clips of videos, are left out and listed.

    Raises:
        UserError: A task is unknown or its examples are not pairs.
    """
    manifests = load_manifests(root, "test", "images")
    paired = [name for name, manifest in manifests.items() if manifest.images_per_example == 2]
    selected = set(names or paired)
    for name in sorted(selected):
        if name not in manifests:
            raise UserError(f"no task '{name}' in {root}/test: {did_you_mean(name, manifests)}")
        if name not in paired:
            raise UserError(
                f"task '{name}' has examples of {manifests[name].images_per_example} images, but "
                f"prompts need pairs: set tasks=[{','.join(paired)}]"
            )
    if not selected:
        raise UserError(f"{root}/test holds no pairs, which prompts need: set input_dir=FOLDER")
    if others := [name for name in manifests if name not in paired and not names]:
        log(f"evaluate: left out, since prompts need pairs: {', '.join(others)}")
    known = [name for name in all_tasks.NAMES if name in selected]
    return known + sorted(selected - set(known))


def _validate(
    options: _Options, tasks: list[str], tokenizer: TokenizerNet, students: Students
) -> None:
    """Refuse impossible requests before any work is done."""
    for name in ("num_queries", "num_shots", "num_prompts", "num_draws", "batch_size"):
        if (value := getattr(options, name)) < 1:
            raise UserError(f"{name}={value} is below 1: set {name}=1 or more")
    _validate_selection(options)
    if not students:
        raise UserError("no students to evaluate: set students.NAME=PATH")
    validate(
        as_path(options.input_dir),
        tasks,
        tokenizer.resolution,
        num_queries=options.num_queries,
        num_shots=options.num_shots,
    )
    for name, student in students.items():
        _validate_student(name, student, tokenizer, options.num_shots)
        _compare_resize(name, student, as_path(options.input_dir), tasks)


def _validate_selection(options: _Options) -> None:
    selection = options.prompt_selection
    if selection not in list(PromptSelection):
        valid = did_you_mean(selection, list(PromptSelection))
        raise UserError(f"prompt_selection={selection} is unknown: {valid}")
    if selection == PromptSelection.random:
        return
    if options.num_draws > 1:
        raise UserError(
            f"num_draws={options.num_draws}, but prompt_selection={selection} always finds the "
            "same prompts: set num_draws=1"
        )
    if options.shared_prompt:
        raise UserError(
            f"shared_prompt=true, but prompt_selection={selection} finds other prompts for each "
            "query: set shared_prompt=false"
        )


def _compare_resize(name: str, student: StudentNet, root: StoragePath, tasks: list[str]) -> None:
    """Log where a student was trained on images that were made square in another way."""
    trained_on = str(getattr(student, "resize", ""))  # students of other packages have none
    manifests = load_manifests(root, "test", "images")
    given = {manifests[task].resize for task in tasks} - {"", trained_on}
    if trained_on and given:
        log(
            f"evaluate: student '{name}' was trained on images of resize={trained_on}, those in "
            f"{root} are of {', '.join(sorted(given))}: to compare it fairly, prepare them with "
            f"source.resize={trained_on}"
        )


def _validate_student(
    name: str, student: StudentNet, tokenizer: TokenizerNet, num_shots: int
) -> None:
    try:
        check_tokenizer_match(tokenizer, student)
    except UserError as error:
        raise UserError(f"student '{name}': {error}, or students.{name}=PATH") from None
    tokens, context = tokenizer.tokens_per_image, student.max_seq_len
    if (needed := (2 * num_shots + 2) * tokens) > context:
        most = max_pairs(tokenizer, student)
        fix = f"set num_shots={most}" if most > 0 else f"set students.{name}=PATH"
        raise UserError(
            f"{num_shots} pairs, a query and its answer are {needed} tokens, the context of "
            f"student '{name}' is {context}: {fix}"
        )


def _score_tasks(
    options: _Options,
    tasks: list[str],
    tokenizer: TokenizerNet,
    students: Students,
    store: AnswerStore,
    rank: Rank,
) -> dict[str, EvaluatedTask]:
    """Answer what is missing of this rank's batches; in rank 0, the results of all tasks."""
    set_eval_mode(tokenizer, *students.values())
    kept = options.num_prompts if options.shared_prompt else 0
    engines = {
        name: Engine(student, kept, compile=options.compile) for name, student in students.items()
    }
    parts = [
        Part(task, draw, start, min(start + options.batch_size, options.num_queries))
        for task in tasks
        for draw in range(options.num_draws)
        for start in range(0, options.num_queries, options.batch_size)
    ]
    own = parts[rank.rank :: rank.world_size]
    missing = [part for part in own if store.load(part) is None]
    answered = sum(part.stop - part.start for part in own if part not in missing)
    total = sum(part.stop - part.start for part in own) * len(students)
    evaluated: dict[str, EvaluatedTask] = {}
    with Progress(total, "evaluate", "answers") as bar:
        if answered:
            log(f"evaluate: {answered} of {total // len(students)} queries were answered before")
            bar.skip(answered * len(students))
        for task in tasks:
            todo = [part for part in missing if part.task == task]
            if not todo and rank.rank:
                continue
            query_set = _query_set(options, task, tokenizer)
            mean_target = query_set.mean_target()

            def on_answered(n: int, name: str, task: str = task) -> None:
                bar.update(n, f"{task}, {name}")

            for part in todo:
                arguments = (mean_target, tokenizer, engines, options.sampling, on_answered)
                rows = score_rows(query_set.of_draw(part.draw), part.rows, *arguments)
                store.save(part, rows)
            if rank.rank:
                continue
            of_task = [part for part in parts if part.task == task]
            draws = [
                concatenate(store.wait_for(part for part in of_task if part.draw == draw))
                for draw in range(options.num_draws)
            ]
            scores = combine_draws(query_set, draws, tokenizer)
            evaluated[task] = evaluated_task(query_set, scores, options.sampling.seed)
    return evaluated


def _query_set(options: _Options, task: str, tokenizer: TokenizerNet) -> QuerySet:
    return build_query_set(
        as_path(options.input_dir),
        task,
        tokenizer,
        num_queries=options.num_queries,
        num_shots=options.num_shots,
        num_prompts=options.num_prompts,
        num_draws=options.num_draws,
        prompt_selection=options.prompt_selection,
        shared_prompt=options.shared_prompt,
        seed=options.sampling.seed,
        batch_size=options.batch_size,
    )


def _derived_settings(tokenizer: TokenizerNet) -> dict[str, Any]:
    """Settings that follow from the tokenizer and from this package."""
    return {
        "image_size": tokenizer.resolution,
        "tokens_per_image": tokenizer.tokens_per_image,
        "codebook_size": tokenizer.codebook_size,
        "bootstrap_resamples": RESAMPLES,
        "confidence": CONFIDENCE,
    }


def _model_info(
    tokenizer: TokenizerNet,
    students: Students,
    task_results: results.Results,
    origins: Mapping[str, str],
) -> dict[str, Any]:
    """Origin and size of each model, and how often each student beats the baselines."""
    about = model_info("tokenizer", tokenizer, origins)
    return {
        "tokenizer": about | {"fingerprint": fingerprint(tokenizer)},
        "students": {
            name: model_info(name, student, origins)
            | {"summary": results.summary(task_results, name)}
            for name, student in students.items()
        },
    }
