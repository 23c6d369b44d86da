"""Does a student read its prompt? How well does it do what it was never trained for?"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

import delvm
from delvm import tasks
from delvm.data.image_io import to_tensor
from delvm.evaluation.queries.query_set import QuerySet, build_query_set, decode
from delvm.evaluation.scores.scoring import generate_answers
from delvm.inference import Engine, SamplingConfig
from delvm.models.protocols import TokenizerNet
from delvm.models.teacher_forcing import next_token_nll
from delvm.storage import as_path
from experiments.studies.corpora import HELD_OUT, TASKS, corpus
from experiments.studies.measure import SEEDS, Estimate, Row, markdown, values
from experiments.studies.runs import training
from experiments.studies.stages import Stage, out

QUESTION = "Does a student read its prompt, and what does it make of tasks it was not trained on?"
QUERIES = 128
SHOTS = (1, 2, 3, 5)
# What the pairs before a query are.
PROMPTS = ("true", "shuffled", "wrong")
TUNING_PAIRS = (16, 64, 256)
TUNINGS = {"full": "optimizer.lr=1.0e-3", "lora": "module/adapter=lora optimizer.lr=4.0e-3"}
_SENTENCES = "data.pairs_per_sentence=6"


def stages() -> Iterator[Stage]:
    """A student of sentences of six pairs, and its fine-tunings on held-out tasks."""
    yield from corpus("full")
    for pairs in TUNING_PAIRS:
        yield from corpus(f"held_out_{pairs}")
    for seed in SEEDS:
        yield base_stage(seed)
        yield from (tuned_stage(t, pairs, seed) for t in TUNINGS for pairs in TUNING_PAIRS)


def base_stage(seed: int) -> Stage:
    """The student, of the size of those of `distill`, trained longer and on longer sentences."""
    return training(
        f"prompts/base_{seed}",
        "distill_alone",
        seed=seed,
        overrides=f"trainer.max_steps=1600 trainer.val_check_interval=1600 {_SENTENCES}",
    )


def tuned_stage(tuning: str, pairs: int, seed: int) -> Stage:
    """The student, fine-tuned on so many pairs of each held-out task."""
    return training(
        f"prompts/{tuning}_{pairs}_{seed}",
        "distill_alone",
        seed=seed,
        corpus=f"held_out_{pairs}",
        start=base_stage(seed),
        overrides=f"trainer.max_steps=150 trainer.val_check_interval=150 {_SENTENCES} "
        f"{TUNINGS[tuning]}",
    )


def measure() -> list[Row]:
    """One row per student, task, number of pairs and kind of prompt."""
    tokenizer = delvm.load_tokenizer(out() / "tokenizer")
    rows = []
    for seed in SEEDS:
        for task in (*TASKS, *HELD_OUT):
            sets = {shots: query_set(tokenizer, task, shots, seed) for shots in SHOTS}
            rows.append(
                {"run": "ceiling", "task": task, "seed": seed} | ceiling(tokenizer, sets[1])
            )
            for shots in SHOTS:
                for kind in PROMPTS:
                    labels = {"run": "base", "task": task, "seed": seed, "shots": shots}
                    prompts = with_prompts(tokenizer, sets[shots], kind, shots, seed)
                    found = answer(tokenizer, base_stage(seed), prompts, seed)
                    rows.append(labels | {"prompts": kind} | found)
            for tuning in TUNINGS if task in HELD_OUT else ():
                for pairs in TUNING_PAIRS:
                    labels = {"run": f"{tuning}_{pairs}", "task": task, "seed": seed, "shots": 3}
                    found = answer(tokenizer, tuned_stage(tuning, pairs, seed), sets[3], seed)
                    rows.append(labels | {"prompts": "true"} | found)
    return rows


def query_set(tokenizer: TokenizerNet, task: str, shots: int, seed: int) -> QuerySet:
    """The queries of a task, each with its prompt."""
    root = as_path(str(out() / "pairs" / "full"))
    options: Any = {"num_queries": QUERIES, "num_shots": shots, "seed": seed, "batch_size": 128}
    return build_query_set(root, task, tokenizer, **options)


def with_prompts(
    tokenizer: TokenizerNet, original: QuerySet, kind: str, shots: int, seed: int
) -> QuerySet:
    """The same queries after other pairs.

    Args:
        kind: "true": as they are; "shuffled": each input with the target of another pair of the
            task; "wrong": pairs of the next task.
        shots: Pairs of a prompt.
    """
    if kind == "true":
        return original
    if kind == "shuffled":
        targets = original.pool_targets
        moved = replace(targets, images=np.roll(targets.images, 1, 0), ids=targets.ids.roll(1, 0))
        return replace(original, pool_targets=moved)
    names = (*TASKS, *HELD_OUT)
    task = names[(names.index(original.task) + 1) % len(names)]
    other = query_set(tokenizer, task, shots, seed)
    return replace(original, pool_inputs=other.pool_inputs, pool_targets=other.pool_targets)


def answer(tokenizer: TokenizerNet, stage: Stage, queries: QuerySet, seed: int) -> Row:
    """The mean score of a student's answers, and its loss over the true ones."""
    student = delvm.load_student(out() / stage.output)
    sampling, rows = SamplingConfig(seed=seed), slice(0, QUERIES)
    ids = generate_answers(Engine(student, max_prefixes=0), tokenizer, queries, rows, sampling)
    losses, _ = next_token_nll(student, queries.sentences(rows))
    length = queries.ground_truth.ids.shape[1]
    return _score(queries, decode(tokenizer, ids)) | {
        "answer_loss": float(losses[:, -length:].mean())
    }


def ceiling(tokenizer: TokenizerNet, queries: QuerySet) -> Row:
    """The mean score of the true answers after the tokenizer's round trip."""
    return _score(queries, decode(tokenizer, queries.ground_truth.ids))


def _score(queries: QuerySet, images: Any) -> Row:
    task = tasks.get(queries.task)
    found = task.score(images, to_tensor(list(queries.ground_truth.images)))
    metric = task.primary_metric
    return {"metric": metric, "score": float(np.nanmean(found[metric].numpy()))}


def table(rows: Sequence[Row]) -> str:
    """Scores by number of pairs and kind of prompt; then those of held-out tasks after tuning."""
    names = (*TASKS, *HELD_OUT)
    body = []
    for kind in PROMPTS:
        for shots in SHOTS if kind == "true" else (3,):
            where = {"run": "base", "prompts": kind, "shots": str(shots)}
            body.append([f"{shots} pairs, {kind}", *_cells(rows, names, **where)])
    body.append(["ceiling", *_cells(rows, names, run="ceiling")])
    metrics = {row["task"]: row["metric"] for row in rows}
    header = ["prompt", *(f"{task} ({metrics[task]})" for task in names)]
    tuned = [["not tuned", *_cells(rows, HELD_OUT, run="base", prompts="true", shots="3")]]
    for tuning in TUNINGS:
        for pairs in TUNING_PAIRS:
            cells = _cells(rows, HELD_OUT, run=f"{tuning}_{pairs}")
            tuned.append([f"{tuning}, {pairs} pairs", *cells])
    tuned.append(["ceiling", *_cells(rows, HELD_OUT, run="ceiling")])
    titles = ["fine-tuned", *(f"{task} ({metrics[task]})" for task in HELD_OUT)]
    return markdown(header, body) + "\n\n" + markdown(titles, tuned)


def _cells(rows: Sequence[Row], names: Sequence[str], **where: Any) -> list[str]:
    return [Estimate.of(values(rows, "score", task=task, **where)).text() for task in names]


def plot(rows: Sequence[Row], figure: Any) -> None:
    """Loss of the true answers: by number of pairs and kind of prompt, and after tuning."""
    left, right = figure.subplots(1, 2)
    for number, task in enumerate(TASKS):
        for kind, style in zip(PROMPTS, ("-", "--", ":"), strict=True):
            where = {"run": "base", "task": task, "prompts": kind}
            means = [np.mean(values(rows, "answer_loss", shots=str(s), **where)) for s in SHOTS]
            label = f"{task}, {kind}" if kind == "true" or not number else None
            left.plot(SHOTS, means, style, color=f"C{number}", label=label)
    left.set_xlabel("pairs in the prompt")
    left.set_ylabel("loss of the true answer")
    left.set_ylim(top=1.25 * left.get_ylim()[1])  # room for the legend
    left.legend(fontsize=7, ncols=2, loc="upper left")
    for number, task in enumerate(HELD_OUT):
        for tuning, style in zip(TUNINGS, ("o-", "s--"), strict=True):
            base = np.mean(
                values(rows, "answer_loss", run="base", task=task, prompts="true", shots="3")
            )
            means = [
                np.mean(values(rows, "answer_loss", run=f"{tuning}_{pairs}", task=task))
                for pairs in TUNING_PAIRS
            ]
            label = f"{task}, {tuning}"
            right.plot([1, *TUNING_PAIRS], [base, *means], style, color=f"C{number}", label=label)
    right.set_xscale("log", base=2)
    right.set_xticks([1, *TUNING_PAIRS], ["none", *map(str, TUNING_PAIRS)])
    right.set_xlabel("pairs of each held-out task that it was tuned on")
    right.legend(fontsize=7)
