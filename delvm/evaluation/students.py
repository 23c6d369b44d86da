"""An evaluation from shards and models to numbers, figures and a report."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from delvm import tasks as all_tasks
from delvm.data.shards.manifest import load_manifests
from delvm.errors import UserError, did_you_mean
from delvm.evaluation import query_set as prompting
from delvm.evaluation import results
from delvm.evaluation.bootstrap import CONFIDENCE, RESAMPLES
from delvm.evaluation.report.student_report import page
from delvm.evaluation.scoring import Example, SamplingConfig, measure
from delvm.evaluation.training_curves import read_history
from delvm.inference.decoding import Decoding, resolve_decoding
from delvm.inference.prompter import check_tokenizer_match
from delvm.interop.fingerprint import fingerprint
from delvm.models.transformer import Transformer
from delvm.models.vqgan import VQGAN
from delvm.progress import Progress
from delvm.storage import StoragePath, as_path, atomic_path, write_json, write_text
from delvm.viz.image_grid import image_grid

UNKNOWN_ORIGIN = "origin not stated"
Students = Mapping[str, Transformer]
Numbers = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class _Settings:
    """What was asked for, as metrics.json repeats it."""

    input: str
    queries: int
    pairs: int
    seed: int
    temperature: float
    top_k: int | None
    top_p: float | None
    decoding: Decoding
    batch_size: int

    @property
    def sampling(self) -> SamplingConfig:
        return SamplingConfig(self.decoding, self.temperature, self.top_k, self.top_p, self.seed)


def run(
    input: StoragePath,
    tokenizer: VQGAN,
    students: Students,
    *,
    output: Path,
    tasks: list[str] | None = None,
    queries: int = 100,
    pairs: int = 3,
    seed: int = 0,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    decoding: Decoding | str | None = None,
    batch_size: int = 32,
    histories: Mapping[str, Path] | None = None,
    origins: Mapping[str, str] | None = None,
    title: str = "Evaluation",
) -> dict[str, Any]:
    """Score students on held-out pairs, beside the tokenizer's ceiling and trivial baselines.

    Args:
        input: Root of image shards: queries are the first pairs of "test", prompts are drawn
            from "val".
        students: Name in the report -> model.
        output: Folder for metrics.json, scores.csv, report.html and a TASK.png for each task.
        tasks: None or empty takes all that the shards hold.
        queries, pairs: Queries a task, example pairs a prompt.
        seed: Of the prompts, of the draws (with a temperature) and of the bootstrap.
        temperature, top_k, top_p: As for `delvm.inference.sampling.generate`.
        decoding: As for `delvm.inference.prompter.Prompter.complete`.
        histories: Name of a model -> metrics.csv of its training, for the loss curves.
        origins: Name of a student, or "tokenizer" -> where its weights come from.

    Returns:
        What metrics.json holds: title, settings, tokenizer, students (origin, parameters,
        standing) and tasks (see `delvm.evaluation.results`).

    Raises:
        UserError: Shards, tasks or models that are missing or do not go together.
    """
    method = resolve_decoding(decoding, temperature)
    asked = _Settings(
        str(input), queries, pairs, seed, temperature, top_k, top_p, method, batch_size
    )
    chosen = _chosen(input, tasks)
    _check(asked, chosen, tokenizer, students)
    curves = {name: read_history(path) for name, path in (histories or {}).items()}
    numbers, examples = _measure(asked, chosen, tokenizer, students)
    metrics = {
        "title": title,
        "settings": asdict(asked) | _fixed(tokenizer),
        **_models(tokenizer, students, numbers, origins or {}),
        "tasks": numbers,
    }
    _write(Path(output), metrics, examples, page(metrics, examples, curves))
    return metrics


def _chosen(root: StoragePath, names: list[str] | None) -> list[str]:
    """The tasks to evaluate, each once, trained ones first; UserError for an unknown one.

    Examples that are no pairs, such as clips, are left out, or refused where they are asked for.
    """
    manifests = load_manifests(root, "test", "images")
    paired = [name for name, manifest in manifests.items() if manifest.images_per_example == 2]
    wanted = set(names or paired)
    for name in sorted(wanted):
        if name not in manifests:
            raise UserError(f"no task '{name}' in {root}/test: {did_you_mean(name, manifests)}")
        if name not in paired:
            raise UserError(
                f"task '{name}' has {manifests[name].images_per_example} images per example, a "
                f"prompt is made of pairs: set tasks=[{','.join(paired)}]"
            )
    if not wanted:
        raise UserError(f"{root}/test holds no pairs, which prompts are made of: set input=FOLDER")
    known = [name for name in all_tasks.NAMES if name in wanted]
    return known + sorted(wanted - set(known))


def _check(asked: _Settings, chosen: list[str], tokenizer: VQGAN, students: Students) -> None:
    """Refuse, before any work, what cannot be done."""
    for name in ("queries", "pairs", "batch_size"):
        if (value := getattr(asked, name)) < 1:
            raise UserError(f"{name}={value} is below 1: set {name}=1 or more")
    if not students:
        raise UserError("no students to evaluate: set students.NAME=PATH")
    root, side = as_path(asked.input), tokenizer.config.resolution
    prompting.check(root, chosen, side, queries=asked.queries, pairs=asked.pairs)
    for name, student in students.items():
        _check_student(name, student, tokenizer, asked.pairs)


def _check_student(name: str, student: Transformer, tokenizer: VQGAN, pairs: int) -> None:
    try:
        check_tokenizer_match(tokenizer, student)
    except UserError as error:
        raise UserError(f"student '{name}': {error}, or students.{name}=PATH") from None
    tokens, context = tokenizer.config.tokens_per_image, student.config.max_seq_len
    if (needed := (2 * pairs + 2) * tokens) > context:
        fitting = context // tokens // 2 - 1
        remedy = f"set pairs={fitting}" if fitting > 0 else f"set students.{name}=PATH"
        raise UserError(
            f"{pairs} pairs, a query and its answer are {needed} tokens, the context of student "
            f"'{name}' is {context}: {remedy}"
        )


def _measure(
    asked: _Settings, chosen: list[str], tokenizer: VQGAN, students: Students
) -> tuple[Numbers, dict[str, list[Example]]]:
    """Numbers and examples by task."""
    for model in (tokenizer, *students.values()):
        model.eval()
    numbers: Numbers = {}
    examples: dict[str, list[Example]] = {}
    with Progress(len(chosen) * asked.queries * len(students), "evaluate", "answers") as bar:
        for task in chosen:
            prompts = prompting.draw(
                as_path(asked.input),
                task,
                tokenizer,
                queries=asked.queries,
                pairs=asked.pairs,
                seed=asked.seed,
                batch_size=asked.batch_size,
            )

            def done(n: int, name: str, task: str = task) -> None:
                bar.update(n, f"{task}, {name}")

            measured = measure(prompts, tokenizer, students, asked.sampling, asked.batch_size, done)
            numbers[task] = results.of_task(measured, asked.seed)
            examples[task] = measured.examples
    return numbers, examples


def _fixed(tokenizer: VQGAN) -> dict[str, Any]:
    """Settings that the tokenizer and this package decide."""
    c = tokenizer.config
    return {
        "image_size": c.resolution,
        "tokens_per_image": c.tokens_per_image,
        "vocab_size": c.num_embeddings,
        "bootstrap_resamples": RESAMPLES,
        "confidence": CONFIDENCE,
    }


def _models(
    tokenizer: VQGAN, students: Students, numbers: Numbers, origins: Mapping[str, str]
) -> dict[str, Any]:
    """What is said of the models themselves."""

    def facts(name: str, model: VQGAN | Transformer) -> dict[str, Any]:
        count = sum(parameter.numel() for parameter in model.parameters())
        return {"origin": origins.get(name, UNKNOWN_ORIGIN), "parameters": count}

    return {
        "tokenizer": facts("tokenizer", tokenizer) | {"fingerprint": fingerprint(tokenizer)},
        "students": {
            name: facts(name, student) | {"standing": results.standing(numbers, name)}
            for name, student in students.items()
        },
    }


def _write(
    output: Path, metrics: dict[str, Any], examples: dict[str, list[Example]], report: str
) -> None:
    """Figures first, the numbers last: where metrics.json is new, all is."""
    for task, shown in examples.items():
        with atomic_path(output / f"{task}.png") as part:
            sheet(shown).save(part)
    write_text(output / "report.html", report)
    results.write_csv(output / "scores.csv", metrics["tasks"])
    write_json(output / "metrics.json", metrics)


def sheet(examples: list[Example]) -> Image.Image:
    """Contact sheet: a row a query, with its prompt, its answers and the truth."""
    first = examples[0]
    titles = [f"{side} {i}" for i in range(1, len(first.pairs) + 1) for side in ("input", "target")]
    titles += ["query", *first.answers, "truth", "round trip"]
    rows = [
        [
            *(picture for pair in e.pairs for picture in pair),
            *(e.query, *e.answers.values(), e.truth, e.round_trip),
        ]
        for e in examples
    ]
    return image_grid(rows, titles)
