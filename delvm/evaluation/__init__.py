"""Evaluating students and tokenizers, inspecting shards, and comparing runs."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = [
    "collect_runs",
    "evaluate_students",
    "evaluate_tokenizer",
    "evaluate_video",
    "inspect_shards",
    "read_metrics",
]

if TYPE_CHECKING:
    from delvm.evaluation.reconstruction import evaluate_tokenizer
    from delvm.evaluation.results.metrics import read_metrics
    from delvm.evaluation.run_table import collect_runs
    from delvm.evaluation.shard_inspection import inspect_shards
    from delvm.evaluation.students import evaluate_students
    from delvm.evaluation.video import evaluate_video

_MODULES = {
    "collect_runs": "run_table",
    "evaluate_students": "students",
    "evaluate_tokenizer": "reconstruction",
    "evaluate_video": "video",
    "inspect_shards": "shard_inspection",
    "read_metrics": "results.metrics",
}


def __getattr__(name: str) -> Any:
    # Imported on first use, since torch takes seconds.
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
