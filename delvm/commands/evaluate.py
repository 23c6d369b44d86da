"""`delvm evaluate`: score students, or a tokenizer, on held-out pairs and write a report."""

from pathlib import Path

from delvm.commands.devices import pick
from delvm.commands.schema import EvaluateConfig, Subject
from delvm.storage import as_path


def run(cfg: EvaluateConfig) -> None:
    """Evaluate, and say where the report is."""
    if cfg.subject is Subject.tokenizer:
        _tokenizer(cfg)
    else:
        _students(cfg)
    print(f"report: {cfg.output}/report.html")
    print(f"numbers: {cfg.output}/metrics.json, {cfg.output}/scores.csv")


def _tokenizer(cfg: EvaluateConfig) -> None:
    from delvm.evaluation.reconstruction import evaluate_tokenizer
    from delvm.interop.load import load_tokenizer

    evaluate_tokenizer(
        as_path(cfg.input),
        load_tokenizer(cfg.tokenizer, pick(cfg.device)),
        output_dir=Path(cfg.output),
        tasks=cfg.tasks or None,
        num_queries=cfg.queries,
        seed=cfg.seed,
        batch_size=cfg.batch_size,
        fid_features=Path(cfg.extractor) if cfg.extractor else None,
        origin=origin(cfg.tokenizer),
        title=cfg.title,
    )


def _students(cfg: EvaluateConfig) -> None:
    # Imported here: torch takes seconds, which a mistake in the config need not wait for.
    from delvm.evaluation.students import evaluate_students
    from delvm.interop.load import load_student, load_tokenizer

    device = pick(cfg.device)
    students = cfg.students or {"student": "shapes"}
    places = {"tokenizer": cfg.tokenizer, **students}
    evaluate_students(
        as_path(cfg.input),
        load_tokenizer(cfg.tokenizer, device),
        {name: load_student(path, device) for name, path in students.items()},
        output_dir=Path(cfg.output),
        tasks=cfg.tasks or None,
        num_queries=cfg.queries,
        num_shots=cfg.pairs,
        seed=cfg.seed,
        temperature=cfg.temperature,
        top_k=cfg.top_k,
        top_p=cfg.top_p,
        decoding=None if cfg.expected or cfg.temperature > 0 else "greedy",
        batch_size=cfg.batch_size,
        histories={name: path for name in places if (path := history(places[name]))},
        origins={name: origin(path) for name, path in places.items()},
        title=cfg.title,
    )


def history(weights: str) -> Path | None:
    """The curves of the run that made these weights, where they lie in a run's folder."""
    place = Path(weights)
    # The run's folder, RUN/student, or RUN/checkpoints/last.ckpt.
    for folder in (place, place.parent, place.parent.parent):
        if (folder / "metrics.csv").is_file() and (folder / "checkpoints").is_dir():
            return folder / "metrics.csv"
    return None


def origin(weights: str) -> str:
    """Where weights come from, in the report's words."""
    from delvm.interop.load import SHIPPED_DIR

    shipped = not Path(weights).exists() and (SHIPPED_DIR / weights).is_dir()
    return f"weights that ship with DeLVM: {weights}" if shipped else weights
