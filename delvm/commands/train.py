"""`delvm train`: train a tokenizer or a student, or distil a teacher into a student."""

from pathlib import Path

from delvm.training.config import TrainConfig


def run(cfg: TrainConfig) -> None:
    """Train, and say where the weights are."""
    # Imported here: Lightning takes seconds, which a mistake in the config need not wait for.
    from delvm.training.run import train
    from delvm.training.strategies import is_first

    try:
        weights = train(cfg, Path(cfg.output))
    except SystemExit as stop:
        # Lightning saves what it must at Ctrl-C, then exits with a code of its own.
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    if is_first():
        print(f"weights: {weights}")
