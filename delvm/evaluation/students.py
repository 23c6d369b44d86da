"""Evaluate students on held-out pairs: from shards and models to metrics and a report."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Unpack

from PIL import Image

from delvm import tasks as all_tasks
from delvm.data.shards.manifest import load_manifests
from delvm.errors import UserError, did_you_mean
from delvm.evaluation import results
from delvm.evaluation.bootstrap import CONFIDENCE, RESAMPLES
from delvm.evaluation.query_set import build_query_set, validate
from delvm.evaluation.report.student_report import render_report
from delvm.evaluation.scoring import PromptExample, score_task
from delvm.evaluation.training_curves import read_history
from delvm.inference.decoding import SamplingConfig, SamplingOptions
from delvm.inference.engine import Engine
from delvm.inference.prompter import check_tokenizer_match, set_eval_mode
from delvm.interop.fingerprint import fingerprint
from delvm.models.protocols import StudentNet, TokenizerNet
from delvm.progress import Progress, log
from delvm.storage import StoragePath, as_path, atomic_path, write_json, write_text
from delvm.viz.image_grid import image_grid

UNKNOWN_ORIGIN = "origin not stated"
Students = Mapping[str, StudentNet]
Examples = dict[str, list[PromptExample]]  # task -> its first queries


@dataclass(frozen=True)
class _Options:
    """The arguments of an evaluation, as metrics.json repeats them."""

    input_dir: str
    num_queries: int
    num_shots: int
    num_prompts: int
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
    shared_prompt: bool = False,
    batch_size: int = 32,
    compile: bool = False,
    histories: Mapping[str, Path] | None = None,
    origins: Mapping[str, str] | None = None,
    title: str = "Evaluation",
    **sampling: Unpack[SamplingOptions],
) -> dict[str, Any]:
    """Score students on held-out pairs, between trivial baselines and the tokenizer's ceiling.

    Args:
        input_dir: Root of image shards. The first pairs of "test" are the queries, and prompts are
            sampled from "val".
        students: Name in the report -> model.
        output_dir: For metrics.json, scores.csv, report.html and one TASK.png per task.
        tasks: None or empty: all tasks of the shards.
        num_queries: Queries per task.
        num_shots: Example pairs per prompt.
        num_prompts: Prompts that vote on each answer, see `delvm.inference.Engine`.
        shared_prompt: Whether all queries of a task have the same prompts, which is several times
            faster, instead of each its own.
        compile: Whether to compile what computes the tokens, see `delvm.inference.static_step`.
        histories: Name of a student, or "tokenizer" -> metrics.csv of its training, for the loss
            curves.
        origins: Name of a student, or "tokenizer" -> where its weights come from.

    Returns:
        The content of metrics.json: title, settings, tokenizer, students (origin, parameters,
        summary) and tasks (see `delvm.evaluation.results`).

    Raises:
        UserError: Shards, tasks or models are missing or do not fit together.
    """
    config = SamplingConfig(**sampling)
    counts = (num_queries, num_shots, num_prompts)
    options = _Options(str(input_dir), *counts, shared_prompt, batch_size, compile, config)
    selected = _select_tasks(input_dir, tasks)
    _validate(options, selected, tokenizer, students)
    curves = {name: read_history(path) for name, path in (histories or {}).items()}
    task_results, examples = _score_tasks(options, selected, tokenizer, students)
    metrics = {
        "title": title,
        "settings": options.settings | _derived_settings(tokenizer),
        **_model_info(tokenizer, students, task_results, origins or {}),
        "tasks": task_results,
    }
    _write(Path(output_dir), metrics, examples, render_report(metrics, examples, curves))
    return metrics


def _select_tasks(root: StoragePath, names: list[str] | None) -> list[str]:
    """The tasks to evaluate, without duplicates, trained ones first.

    Examples that are not pairs, such as video clips, are skipped unless their task is named.

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
    known = [name for name in all_tasks.NAMES if name in selected]
    return known + sorted(selected - set(known))


def _validate(
    options: _Options, tasks: list[str], tokenizer: TokenizerNet, students: Students
) -> None:
    """Refuse impossible requests before any work is done."""
    for name in ("num_queries", "num_shots", "num_prompts", "batch_size"):
        if (value := getattr(options, name)) < 1:
            raise UserError(f"{name}={value} is below 1: set {name}=1 or more")
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
        most = context // tokens // 2 - 1
        fix = f"set num_shots={most}" if most > 0 else f"set students.{name}=PATH"
        raise UserError(
            f"{num_shots} pairs, a query and its answer are {needed} tokens, the context of "
            f"student '{name}' is {context}: {fix}"
        )


def _score_tasks(
    options: _Options, tasks: list[str], tokenizer: TokenizerNet, students: Students
) -> tuple[results.Results, Examples]:
    set_eval_mode(tokenizer, *students.values())
    kept = options.num_prompts if options.shared_prompt else 0
    engines = {
        name: Engine(student, kept, compile=options.compile) for name, student in students.items()
    }
    task_results: results.Results = {}
    examples: Examples = {}
    total = len(tasks) * options.num_queries * len(students)
    with Progress(total, "evaluate", "answers") as bar:
        for task in tasks:
            query_set = build_query_set(
                as_path(options.input_dir),
                task,
                tokenizer,
                num_queries=options.num_queries,
                num_shots=options.num_shots,
                num_prompts=options.num_prompts,
                shared_prompt=options.shared_prompt,
                seed=options.sampling.seed,
                batch_size=options.batch_size,
            )

            def on_answered(n: int, name: str, task: str = task) -> None:
                bar.update(n, f"{task}, {name}")

            scores = score_task(
                query_set, tokenizer, engines, options.sampling, options.batch_size, on_answered
            )
            task_results[task] = results.task_results(scores, options.sampling.seed)
            examples[task] = scores.examples
    return task_results, examples


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

    def info(name: str, model: TokenizerNet | StudentNet) -> dict[str, Any]:
        parameters = sum(parameter.numel() for parameter in model.parameters())
        return {"origin": origins.get(name, UNKNOWN_ORIGIN), "parameters": parameters}

    return {
        "tokenizer": info("tokenizer", tokenizer) | {"fingerprint": fingerprint(tokenizer)},
        "students": {
            name: info(name, student) | {"summary": results.summary(task_results, name)}
            for name, student in students.items()
        },
    }


def _write(output_dir: Path, metrics: dict[str, Any], examples: Examples, report: str) -> None:
    """Write all files, metrics.json last: a new metrics.json means that all files are new."""
    for task, shown in examples.items():
        with atomic_path(output_dir / f"{task}.png") as tmp:
            example_grid(shown).save(tmp)
    write_text(output_dir / "report.html", report)
    results.write_csv(output_dir / "scores.csv", metrics["tasks"])
    write_json(output_dir / "metrics.json", metrics)


def example_grid(examples: list[PromptExample]) -> Image.Image:
    """Image grid with one row per query: prompt, query, answers, ground truth, reconstruction."""
    first = examples[0]
    titles = [f"{side} {i}" for i in range(1, len(first.pairs) + 1) for side in ("input", "target")]
    titles += ["query", *first.answers, "ground truth", "reconstruction"]
    rows = [
        [
            *(image for pair in example.pairs for image in pair),
            example.query,
            *example.answers.values(),
            example.ground_truth,
            example.reconstruction,
        ]
        for example in examples
    ]
    return image_grid(rows, titles)
