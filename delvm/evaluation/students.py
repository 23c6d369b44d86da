"""Evaluate students on held-out pairs: from shards and models to metrics and a report."""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Unpack

from delvm.data.encode.executors.base import Rank
from delvm.evaluation.answers.ray_workers import (
    RayWorkers,
    answer_on_ray,
    check_rank,
    check_same_sources,
)
from delvm.evaluation.answers.run import missing_parts, open_store, plain_json
from delvm.evaluation.answers.store import AnswerStore, Part, concatenate
from delvm.evaluation.answers.student_request import (
    StudentOptions,
    metric_names,
    select_tasks,
    validate_request,
)
from delvm.evaluation.queries.prompt_selection import PromptSelection
from delvm.evaluation.queries.query_set import QuerySet, build_query_set
from delvm.evaluation.report.student_report import render_report
from delvm.evaluation.results.experiment_log import ResultLogger
from delvm.evaluation.results.metrics import Results, summary
from delvm.evaluation.results.provenance import (
    circumstances,
    data_fingerprints,
    model_info,
    student_fingerprints,
    versions,
)
from delvm.evaluation.results.result_files import ReportOptions
from delvm.evaluation.results.student_files import (
    EvaluatedTask,
    evaluated_task,
    log_files,
    write_files,
)
from delvm.evaluation.scores.bootstrap import CONFIDENCE, RESAMPLES
from delvm.evaluation.scores.scoring import combine_draws, score_rows
from delvm.evaluation.training_curves import read_history
from delvm.inference.decoding import SamplingConfig, SamplingOptions
from delvm.inference.engine import Engine
from delvm.inference.prompter import set_eval_mode
from delvm.interop.fingerprint import fingerprint
from delvm.models.protocols import Students, TokenizerNet
from delvm.progress import Progress, log
from delvm.storage import StoragePath, as_path


def evaluate_students(
    input_dir: StoragePath,
    tokenizer: TokenizerNet,
    students: Students,
    *,
    output_dir: str | Path,
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
    workers: RayWorkers | None = None,
    **sampling: Unpack[SamplingOptions],
) -> dict[str, Any]:
    """Score students on held-out pairs, between trivial baselines and the tokenizer's ceiling.

    Answers are kept in output_dir/answers, from which it continues if it was killed.

    Args:
        input_dir: Root of image shards: queries are the first of "test", prompts are from "val".
        students: Name in the report -> model.
        output_dir: For the files of `delvm.evaluation.results.student_files`, and the answers.
        tasks: None or empty: all tasks of the shards.
        num_queries: Queries per task.
        num_shots: Example pairs per prompt.
        num_prompts: Prompts that vote on each answer, see `delvm.inference.Engine`.
        num_draws: Times that prompts are sampled; scores are means, with their spread.
        prompt_selection: random, or nearest: the pairs most similar to the query.
        shared_prompt: Whether all queries of a task have the same prompts, which is faster.
        compile: Whether to compile the step of a token, see `delvm.inference.static_step`.
        overwrite: Whether to answer all queries again.
        histories: Name of a student, or "tokenizer" -> metrics.csv of its training, for curves.
        origins: Name of a student, or "tokenizer" -> where its weights come from.
        loggers: Of Lightning, see `delvm.evaluation.results.experiment_log`.
        workers: Of Ray, which answer in place of this process.

    Returns:
        The content of metrics.json: title, settings, tokenizer, students (origin, parameters,
        summary) and tasks (see `delvm.evaluation.results.metrics`). Empty in ranks other than 0.

    Raises:
        UserError: Shards, tasks or models are missing or do not fit.
    """
    basics = (str(input_dir), num_queries, batch_size, SamplingConfig(**sampling))
    how = (str(prompt_selection), shared_prompt, compile)
    options = StudentOptions(*basics, num_shots, num_prompts, num_draws, *how)
    selected = select_tasks(input_dir, tasks)
    validate_request(options, selected, tokenizer, students)
    about = ReportOptions(title, origins or {}, loggers, histories or {})
    models, where = (tokenizer, students), Path(output_dir)
    return _evaluate(options, selected, *models, where, about, workers, overwrite)


def _evaluate(
    options: StudentOptions,
    tasks: list[str],
    tokenizer: TokenizerNet,
    students: Students,
    output_dir: Path,
    about: ReportOptions,
    workers: RayWorkers | None,
    overwrite: bool,
) -> dict[str, Any]:
    """Answer, score and write everything; the content of metrics.json."""
    started, rank = time.monotonic(), check_rank(overwrite, workers)
    curves = {name: read_history(path) for name, path in about.histories.items()}
    sources = _sources(options, tasks, tokenizer, students)
    store = open_store(output_dir, sources, rank, overwrite=overwrite)
    if workers:
        answer = partial(_answer_rank, options, tasks, store.folder, sources)
        parts = [part for task in tasks for part in _parts(options, task)]
        answer_on_ray(workers, answer, store, parts, tokenizer.codebook.device.type)
    evaluated = _score_tasks(
        options, tasks, tokenizer, students, store, rank, collect=rank.rank == 0
    )
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
    options: StudentOptions, tasks: list[str], tokenizer: TokenizerNet, students: Students
) -> dict[str, Any]:
    """What the answers depend on: another value of any of these makes others."""
    sources = {
        "versions": versions(),
        "settings": options.settings,
        "metrics": {task: metric_names(task) for task in tasks},
        "seeds": {"prompts": options.sampling.seed, "samples": options.sampling.seed},
        "tokenizer": fingerprint(tokenizer),
        "students": student_fingerprints(students),
        "data": data_fingerprints(as_path(options.input_dir), tasks),
        "device": tokenizer.codebook.device.type,
    }
    return plain_json(sources)


def _answer_rank(
    options: StudentOptions,
    tasks: list[str],
    folder: Path,
    sources: dict[str, Any],
    tokenizer: TokenizerNet,
    students: Students,
    rank: Rank,
) -> None:
    """Answer what is missing of a rank's batches, in a worker that is started for that."""
    check_same_sources(_sources(options, tasks, tokenizer, students), sources)
    store = AnswerStore(folder, sources, first_rank=False)
    _score_tasks(options, tasks, tokenizer, students, store, rank, collect=False)


def _parts(options: StudentOptions, task: str) -> list[Part]:
    """The batches of a task: those of the first draw, of the second, and so on."""
    return [part for draw in range(options.num_draws) for part in options.batches(task, draw)]


def _score_tasks(
    options: StudentOptions,
    tasks: list[str],
    tokenizer: TokenizerNet,
    students: Students,
    store: AnswerStore,
    rank: Rank,
    *,
    collect: bool,
) -> dict[str, EvaluatedTask]:
    """Answer what is missing of a rank's batches; to collect, also the results of all tasks."""
    set_eval_mode(tokenizer, *students.values())
    kept = options.num_prompts if options.shared_prompt else 0
    engines = {
        name: Engine(student, kept, compile=options.compile) for name, student in students.items()
    }
    parts = [part for task in tasks for part in _parts(options, task)]
    missing, answered, total = missing_parts(parts, rank, store)
    evaluated: dict[str, EvaluatedTask] = {}
    with Progress(total * len(students), "evaluate", "answers") as bar:
        if answered:
            log(f"evaluate: {answered} of {total} queries are answered already")
            bar.skip(answered * len(students))
        for task in tasks:
            todo = [part for part in missing if part.task == task]
            if not todo and not collect:
                continue
            query_set = _query_set(options, task, tokenizer)
            mean_target = query_set.mean_target()

            def on_answered(n: int, name: str, task: str = task) -> None:
                bar.update(n, f"{task}, {name}")

            for part in todo:
                arguments = (mean_target, tokenizer, engines, options.sampling, on_answered)
                rows = score_rows(query_set.of_draw(part.draw), part.rows, *arguments)
                store.save(part, rows)
            if not collect:
                continue
            draws = [
                concatenate(store.wait_for(options.batches(task, draw)))
                for draw in range(options.num_draws)
            ]
            scores = combine_draws(query_set, draws, tokenizer)
            evaluated[task] = evaluated_task(query_set, scores, options.sampling.seed)
    return evaluated


def _query_set(options: StudentOptions, task: str, tokenizer: TokenizerNet) -> QuerySet:
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
    task_results: Results,
    origins: Mapping[str, str],
) -> dict[str, Any]:
    """Origin and size of each model, and how often each student beats the baselines."""
    about = model_info("tokenizer", tokenizer, origins)
    return {
        "tokenizer": about | {"fingerprint": fingerprint(tokenizer)},
        "students": {
            name: model_info(name, student, origins) | {"summary": summary(task_results, name)}
            for name, student in students.items()
        },
    }
