"""`delvm evaluate`: score students, or a tokenizer, on held-out pairs and write a report."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from delvm.commands.app import verb_main
from delvm.commands.build import build, options_of
from delvm.commands.output_check import check_output_dir
from delvm.configs.evaluate import EvaluateConfig, EvaluationMode
from delvm.storage import as_path

PERPLEXITIES = ("perplexity", "sentence_perplexity", "image_perplexity")


def run(cfg: EvaluateConfig) -> None:
    """Evaluate, and print where the report is."""
    check_output_dir(cfg.output_dir, "output_dir")
    if cfg.compare:
        _compare(cfg)
        return
    if cfg.mode is EvaluationMode.perplexity:
        _perplexity(cfg)
        return
    if cfg.mode is EvaluationMode.tokenizer:
        table = _tokenizer(cfg)
    else:
        evaluate = _video if cfg.mode is EvaluationMode.video else _students
        with _started_loggers(cfg) as loggers:
            table = evaluate(cfg, loggers)
    if not table:
        return  # another rank writes the report
    print("\n".join(table))
    print(f"report: {cfg.output_dir}/report.html")
    print(f"metrics: {cfg.output_dir}/metrics.json, {cfg.output_dir}/scores.csv")


def _compare(cfg: EvaluateConfig) -> None:
    from delvm.evaluation.comparison import compare
    from delvm.interop.load import load_tokenizer
    from delvm.models.precision import resolve_device

    tokenizer = load_tokenizer(cfg.tokenizer, resolve_device(cfg.device))
    compare(cfg.compare, Path(cfg.output_dir), tokenizer, cfg.seed)
    print(f"comparison: {cfg.output_dir}/comparison.html")
    print(f"differences: {cfg.output_dir}/comparison.json, {cfg.output_dir}/comparison.csv")


def _perplexity(cfg: EvaluateConfig) -> None:
    from delvm.evaluation.perplexity import evaluate_perplexity

    assert cfg.jsonl is not None  # which validate holds
    models, options = _loader(cfg, cfg.device)(), options_of(evaluate_perplexity, cfg)
    metrics = evaluate_perplexity(cfg.jsonl, *models, **options)
    for name, found in metrics["students"].items():
        values = (f"{key} {found[key]['mean']:.4g}" for key in PERPLEXITIES)
        print(f"{name}: {', '.join(values)}")
    print(f"metrics: {cfg.output_dir}/metrics.json, {cfg.output_dir}/scores.csv")


def _tokenizer(cfg: EvaluateConfig) -> list[str]:
    from delvm.evaluation.reconstruction import evaluate_tokenizer
    from delvm.evaluation.report.terminal import tokenizer_table
    from delvm.interop.load import describe_source, load_tokenizer
    from delvm.models.precision import resolve_device

    tokenizer = load_tokenizer(cfg.tokenizer, resolve_device(cfg.device))
    options = options_of(evaluate_tokenizer, cfg)
    origin = describe_source(cfg.tokenizer)
    found = evaluate_tokenizer(as_path(cfg.input_dir), tokenizer, origin=origin, **options)
    return tokenizer_table(found["tasks"], found["all"])


@contextmanager
def _started_loggers(cfg: EvaluateConfig) -> Iterator[list[Any]]:
    """The loggers, before any work: whether wandb can be reached is known then.

    Other ranks than 0 have none, since it has the results.
    """
    if not cfg.logger:
        yield []
        return
    from delvm.data.encode.executors.base import rank_from_env
    from delvm.training.loggers import finish_loggers, start_wandb

    if rank_from_env().rank:
        yield []
        return
    loggers = [build(node, f"logger.{name}") for name, node in cfg.logger.items()]
    start_wandb(loggers, Path(cfg.output_dir), resumes=False)
    failed = True
    try:
        yield loggers
        failed = False
    finally:
        finish_loggers(loggers, failed)


def _students(cfg: EvaluateConfig, loggers: list[Any]) -> list[str]:
    from delvm.evaluation.report.terminal import students_table
    from delvm.evaluation.students import evaluate_students
    from delvm.evaluation.training_curves import find_history

    histories = {name: find_history(path) for name, path in _model_paths(cfg).items()}
    found = {name: path for name, path in histories.items() if path}
    metrics = _evaluate(evaluate_students, cfg, loggers, histories=found)
    return students_table(metrics["tasks"]) if metrics else []


def _video(cfg: EvaluateConfig, loggers: list[Any]) -> list[str]:
    from delvm.evaluation.report.terminal import video_table
    from delvm.evaluation.video import evaluate_video

    metrics = _evaluate(evaluate_video, cfg, loggers)
    return video_table(metrics["tasks"]) if metrics else []


def _evaluate(
    evaluate: Callable[..., dict[str, Any]], cfg: EvaluateConfig, loggers: list[Any], **more: Any
) -> dict[str, Any]:
    from delvm.interop.load import describe_source

    workers = _workers(cfg)
    return evaluate(
        as_path(cfg.input_dir),
        *_models(cfg, workers),
        origins={name: describe_source(path) for name, path in _model_paths(cfg).items()},
        loggers=loggers,
        workers=workers,
        **options_of(evaluate, cfg),
        **cfg.sampling,
        **more,
    )


def _model_paths(cfg: EvaluateConfig) -> dict[str, str]:
    """ "tokenizer" and the name of each student -> where its weights are."""
    return {"tokenizer": cfg.tokenizer, **(cfg.students or {"student": "shapes"})}


def _models(cfg: EvaluateConfig, workers: Any) -> tuple[Any, Any]:
    """The tokenizer and the students, on the GPU of this rank where there is one."""
    from delvm.data.encode.executors.base import rank_from_env
    from delvm.data.encode.executors.local import local_rank
    from delvm.models.precision import resolve_device

    of_torchrun = workers is None and rank_from_env().world_size > 1
    if of_torchrun and resolve_device(cfg.device) == "cuda":
        models: tuple[Any, Any] = _loader(cfg, f"cuda:{local_rank()}")()
    else:
        models = _loader(cfg, cfg.device)()
    return models


def _loader(cfg: EvaluateConfig, device: str) -> Any:
    # Imported here: torch takes seconds, which a mistake in the config need not wait for.
    from delvm.evaluation.answers.ray_workers import LoadModels

    paths = _model_paths(cfg)
    return LoadModels(paths.pop("tokenizer"), paths, device, cfg.precision)


def _workers(cfg: EvaluateConfig) -> Any:
    """Workers of Ray, where they are asked for with executor=ray."""
    from delvm.evaluation.answers.ray_workers import RayWorkers

    executor = build(cfg.executor, "executor")
    if executor is None or getattr(executor, "in_process", False):
        return None
    return RayWorkers(executor, _loader(cfg, cfg.device))


main = verb_main(__name__)
