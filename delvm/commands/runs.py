"""`delvm runs`: the training runs below a folder in one table."""

from pathlib import Path

from delvm.commands.schema import GatherConfig
from delvm.evaluation.run_table import collect_runs, format_table, write_table
from delvm.progress import log


def run(cfg: GatherConfig) -> None:
    """Write the table, show the means of it, and say which runs lack something."""
    runs, output = collect_runs(Path(cfg.input)), Path(cfg.output)
    write_table(runs, output)
    print("\n".join(format_table(runs)))
    print(f"table: {output}, {len(runs)} run{'s' if len(runs) != 1 else ''}")
    for each in runs:
        for error in each.errors:
            log(f"runs: {each.name}: {error}")
