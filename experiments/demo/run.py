"""The whole pipeline on two CPU cores: from raw pictures to scored answers and a report.

Each stage is one `delvm` command, which can be typed alone as well.
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

# Name of a stage, which is the folder it fills below OUT, and its command.
STAGES = (
    (
        "pairs",
        "prepare source.size=32 source.train.segmentation=4000 source.train.pose=2000 "
        "source.train.derain=500 source.train.deblur=500 output=OUT/pairs",
    ),
    ("tokenizer", "train experiment=demo_tokenizer data.path=OUT/pairs output=OUT/tokenizer"),
    (
        "tokens",
        "encode balance=augment input=OUT/pairs tokenizer=OUT/tokenizer output=OUT/tokens",
    ),
    ("teacher", "train experiment=demo_teacher data.path=OUT/tokens output=OUT/teacher"),
    (
        "student",
        "train experiment=demo_student data.path=OUT/tokens output=OUT/student "
        "teacher.checkpoint=OUT/teacher",
    ),
    ("alone", "train experiment=demo_alone data.path=OUT/tokens output=OUT/alone"),
    (
        "report",
        "evaluate input=OUT/pairs tokenizer=OUT/tokenizer students.teacher=OUT/teacher "
        "students.distilled=OUT/student students.alone=OUT/alone title=Demo output=OUT",
    ),
)

# Added to a stage's command for a run of a minute that learns nothing.
_STEPS = "trainer.max_steps=2 trainer.val_every=2 trainer.log_every=1 data.batch_size=4"
_COUNTS = "segmentation=12", "pose=8", "derain=6", "deblur=6"
SMOKE = {
    "pairs": " ".join(f"source.train.{count}" for count in _COUNTS) + " source.val=6 source.test=4",
    "tokenizer": f"{_STEPS} data.num_val_examples=2",
    "teacher": f"{_STEPS} data.num_val_examples=4",
    "student": f"{_STEPS} data.num_val_examples=4",
    "alone": f"{_STEPS} data.num_val_examples=4",
    "report": "queries=4",
}

# Threads that wait for each other by spinning slow small networks down some twenty times as soon as
# another program wants a core too; sleeping at once costs a third of the speed. So: spin briefly.
_ENVIRONMENT = {"GOMP_SPINCOUNT": "30000"} | os.environ


@dataclass(frozen=True)
class Ran:
    """What a stage cost.

    Attributes:
        command: As typed.
        seconds: Wall time.
        peak_mib: Most memory that one of its processes held, in MiB.
    """

    stage: str
    command: str
    seconds: float
    peak_mib: float


def commands(out: Path, smoke: bool) -> dict[str, list[str]]:
    """Stage -> the words after `delvm`."""
    return {
        name: [
            word.replace("OUT", str(out))
            for word in f"{command} {SMOKE.get(name, '') if smoke else ''}".split()
        ]
        for name, command in STAGES
    }


def run_stage(name: str, words: Sequence[str]) -> Ran:
    """Run one command to its end, with its output where ours goes.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    start = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "delvm", *words], env=_ENVIRONMENT)
    try:
        # Popen.wait would throw away what the process used.
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        process.terminate()
        process.wait()
        raise
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, words)
    scale = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    return Ran(name, _typed(words), time.monotonic() - start, usage.ru_maxrss / scale)


def _typed(words: Sequence[str]) -> str:
    return shlex.join(["delvm", *words])


def summary(ran: Sequence[Ran], out: Path) -> str:
    """The table of stages, and what was made."""
    lines = [f"{'stage':<12}{'wall':>8}{'peak memory':>14}"]
    lines += [
        f"{r.stage:<12}{tqdm.format_interval(r.seconds):>8}{r.peak_mib:>10,.0f} MiB" for r in ran
    ]
    total, peak = sum(r.seconds for r in ran), max(r.peak_mib for r in ran)
    lines += [f"{'all':<12}{tqdm.format_interval(total):>8}{peak:>10,.0f} MiB", ""]
    made = {
        "report": "report.html",
        "numbers": "metrics.json",
        "this table": "stages.json",
        "tokenizer": "tokenizer/tokenizer",
        "teacher": "teacher/student",
        "student": "student/student",
    }
    return "\n".join([*lines, *(f"{what + ':':<12}{out / name}" for what, name in made.items())])


def run(out: Path, smoke: bool) -> list[Ran]:
    """Run every stage, anew: folders that an earlier run filled are removed first."""
    todo = commands(out, smoke)
    for name in todo:
        shutil.rmtree(out / name, ignore_errors=True)
    ran = []
    for number, (name, words) in enumerate(todo.items(), start=1):
        print(f"\n[{number}/{len(todo)}] {name}: {_typed(words)}", flush=True)
        ran.append(run_stage(name, words))
    write_json(out / "stages.json", [asdict(each) for each in ran])
    return ran


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; the exit code is 0, or that of the stage that failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("outputs/demo"), help="folder to fill")
    parser.add_argument("--smoke", action="store_true", help="a minute's run that learns nothing")
    given = parser.parse_args(argv)
    try:
        ran = run(given.output, given.smoke)
    except subprocess.CalledProcessError as error:
        print(f"demo: stopped, `{_typed(error.cmd)}` failed", file=sys.stderr)
        return int(error.returncode) if error.returncode > 0 else 1
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        return 130
    print(f"\n{summary(ran, given.output)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
