"""`delvm runs`: the training runs below a directory in one table."""

from pathlib import Path

from delvm.commands.app import verb_main
from delvm.commands.output_check import check_output_file
from delvm.configs.verbs import RunsConfig
from delvm.progress import log


def run(cfg: RunsConfig) -> None:
    """Write the table, print its main columns, and report which runs are incomplete."""
    check_output_file(cfg.output, "output")
    from delvm.evaluation.run_table import collect_runs, format_table, write_table

    runs, output = collect_runs(Path(cfg.input_dir)), Path(cfg.output)
    write_table(runs, output)
    print("\n".join(format_table(runs)))
    print(f"table: {output}, {len(runs)} run{'s' if len(runs) != 1 else ''}")
    for each in runs:
        for error in each.errors:
            log(f"runs: {each.name}: {error}")


main = verb_main(__name__)
