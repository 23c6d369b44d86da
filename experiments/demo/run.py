"""Run the complete pipeline on two CPU cores: from raw images to scored answers and a report.

Each stage is one `delvm` command that can also be typed by itself.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from delvm.storage import write_json

# (name, command) of each stage; the name is also its directory in OUT.
STAGES = (
    (
        "pairs",
        "prepare source.size=32 source.train.segmentation=4000 source.train.pose=2000 "
        "source.train.derain=500 source.train.deblur=500 output_dir=OUT/pairs",
    ),
    ("tokenizer", "train experiment=demo_tokenizer data.path=OUT/pairs output_dir=OUT/tokenizer"),
    (
        "tokens",
        "encode balance=augment input_dir=OUT/pairs tokenizer=OUT/tokenizer output_dir=OUT/tokens",
    ),
    ("teacher", "train experiment=demo_teacher data.path=OUT/tokens output_dir=OUT/teacher"),
    (
        "student",
        "train experiment=demo_student data.path=OUT/tokens output_dir=OUT/student "
        "teacher.checkpoint=OUT/teacher",
    ),
    (
        "student_no_kd",
        "train experiment=demo_student_no_kd data.path=OUT/tokens output_dir=OUT/student_no_kd",
    ),
    (
        "report",
        "evaluate input_dir=OUT/pairs tokenizer=OUT/tokenizer students.teacher=OUT/teacher "
        "students.student_kd=OUT/student "
        "students.student_no_kd=OUT/student_no_kd title=Demo output_dir=OUT",
    ),
)

# Overrides that reduce each stage to seconds, to test the pipeline.
_STEPS = (
    "trainer.max_steps=2 trainer.val_check_interval=2 trainer.log_every_n_steps=1 data.batch_size=4"
)
_COUNTS = "segmentation=12", "pose=8", "derain=6", "deblur=6"
SMOKE = {
    "pairs": " ".join(f"source.train.{count}" for count in _COUNTS)
    + " source.num_val=6 source.num_test=4",
    "tokenizer": f"{_STEPS} data.num_val_examples=2",
    "teacher": f"{_STEPS} data.num_val_examples=4",
    "student": f"{_STEPS} data.num_val_examples=4",
    "student_no_kd": f"{_STEPS} data.num_val_examples=4",
    "report": "num_queries=4",
}

# Threads that spin while they wait make small networks some twenty times slower as soon as another
# program uses a core; threads that sleep at once cost a third of the speed. So: spin briefly.
_ENVIRONMENT = {"GOMP_SPINCOUNT": "30000"} | os.environ


@dataclass(frozen=True)
class StageResult:
    """Time and memory of a stage.

    Attributes:
        stage: Name.
        command: As typed.
        seconds: Wall time.
        peak_mib: Peak memory of its largest process, in MiB.
    """

    stage: str
    command: str
    seconds: float
    peak_mib: float


def commands(out: Path, smoke: bool) -> dict[str, list[str]]:
    """Name of a stage -> the arguments of `delvm`.

    Args:
        out: Replaces OUT.
        smoke: Whether to add the overrides of SMOKE.
    """
    return {
        name: [
            word.replace("OUT", str(out))
            for word in f"{command} {SMOKE.get(name, '') if smoke else ''}".split()
        ]
        for name, command in STAGES
    }


def run_stage(name: str, words: Sequence[str]) -> StageResult:
    """Run one command; its output goes to this terminal.

    Raises:
        subprocess.CalledProcessError: It failed.
    """
    start = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "delvm", *words], env=_ENVIRONMENT)
    try:
        # wait4 also returns the resource usage, which Popen.wait discards.
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        process.terminate()
        process.wait()
        raise
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, words)
    scale = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    return StageResult(
        name, _command_line(words), time.monotonic() - start, usage.ru_maxrss / scale
    )


def _command_line(words: Sequence[str]) -> str:
    return shlex.join(["delvm", *words])


def summary(results: Sequence[StageResult], out: Path) -> str:
    """A table of the stages, and the paths of the results."""
    lines = [f"{'stage':<12}{'wall':>8}{'peak memory':>14}"]
    for r in results:
        wall = tqdm.format_interval(r.seconds)
        lines.append(f"{r.stage:<12}{wall:>8}{r.peak_mib:>10,.0f} MiB")
    total, peak = sum(r.seconds for r in results), max(r.peak_mib for r in results)
    lines += [f"{'all':<12}{tqdm.format_interval(total):>8}{peak:>10,.0f} MiB", ""]
    outputs = {
        "report": "report.html",
        "metrics": "metrics.json",
        "this table": "stages.json",
        "tokenizer": "tokenizer/tokenizer",
        "teacher": "teacher/student",
        "student": "student/student",
    }
    return "\n".join([*lines, *(f"{what + ':':<12}{out / name}" for what, name in outputs.items())])


def run(out: Path, smoke: bool) -> list[StageResult]:
    """Run all stages from the start: the directories of an earlier run are removed first."""
    stages = commands(out, smoke)
    for name in stages:
        shutil.rmtree(out / name, ignore_errors=True)
    results = []
    for number, (name, words) in enumerate(stages.items(), start=1):
        print(f"\n[{number}/{len(stages)}] {name}: {_command_line(words)}", flush=True)
        results.append(run_stage(name, words))
    write_json(out / "stages.json", [asdict(each) for each in results])
    return results


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit code, which is that of the stage that failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/demo"), help="output directory"
    )
    parser.add_argument("--smoke", action="store_true", help="test the pipeline in a minute")
    arguments = parser.parse_args(argv)
    try:
        results = run(arguments.output, arguments.smoke)
    except subprocess.CalledProcessError as error:
        print(f"demo: stopped, `{_command_line(error.cmd)}` failed", file=sys.stderr)
        return int(error.returncode) if error.returncode > 0 else 1
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        return 130
    print(f"\n{summary(results, arguments.output)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
