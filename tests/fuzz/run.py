"""Read mutants of every kind of file: ``python -m tests.fuzz.run [mutants] [FORMAT ...]``.

Each mutant is read in a child process with bounded memory and time. It may be accepted, or refused
by a UserError of one line that names the file. All else is a failure: another exception, more
memory than 4 times the file plus a constant, more than 10 seconds, or the end of the process.
"""

import faulthandler
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from delvm.errors import UserError
from tests.fuzz.formats import FORMATS, Format

TIMEOUT_S = 10
MEMORY = 512 * 2**20  # the constant; libraries map files and start threads


@dataclass(frozen=True)
class Failure:
    """A mutant that was not read as it should be.

    Attributes:
        format, number: which mutant; it is made again from these.
        kind: exception, memory, hang, crash or message.
        detail: the exception and the last line of DeLVM in its traceback, or the message.
    """

    format: str
    number: int
    kind: str
    detail: str


def mutant(each: Format, data: bytes, number: int) -> bytes:
    """Mutant ``number`` of a valid file."""
    return each.mutate(data, np.random.default_rng([zlib.crc32(each.name.encode()), number]))


def fuzz(each: Format, numbers: Sequence[int]) -> tuple[list[Failure], Counter[str]]:
    """Read mutants of a format; the failures, and how many were accepted and refused."""
    failures: list[Failure] = []
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as tmp:
        folder = Path(tmp, "sample")
        folder.mkdir()
        each.make(folder)
        left = list(numbers)
        while left:
            for number, kind, detail in _in_child(each, folder, Path(tmp, "work"), left):
                left.remove(number)
                counts[kind] += 1
                if kind not in ("accepted", "refused"):
                    failures.append(Failure(each.name, number, kind, detail))
    return failures, counts


def _in_child(
    each: Format, folder: Path, work: Path, numbers: list[int]
) -> Iterator[tuple[int, str, str]]:
    """Results until all are done or the child has died, which is a result of the mutant it read."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(each, folder, work, numbers, theirs), daemon=True)
    child.start()
    theirs.close()
    current = numbers[0]
    try:
        while ours.poll(2 * TIMEOUT_S):
            number, kind, detail = ours.recv()
            if kind == "begin":
                current = number
            else:
                yield number, kind, detail
        yield current, "hang", f"no answer after {2 * TIMEOUT_S} s, not even to a signal"
    except EOFError:
        child.join()
        if child.exitcode:
            yield current, "crash", f"exit code {child.exitcode}"
    finally:
        child.kill()
        child.join()


def _child(each: Format, folder: Path, work: Path, numbers: list[int], pipe: Connection) -> None:
    faulthandler.disable()
    warnings.simplefilter("ignore")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    signal.signal(signal.SIGALRM, _alarm)
    data = (folder / each.file).read_bytes()
    # What the first reading imports and keeps does not count.
    valid = _read(each, folder, work, data)
    if valid[0] != "accepted":
        pipe.send((numbers[0], "exception", f"the valid sample is not accepted: {valid}"))
        numbers = numbers[1:]
    for number in numbers:
        pipe.send((number, "begin", ""))
        pipe.send((number, *_read(each, folder, work, mutant(each, data, number))))


def _alarm(number: int, frame: object) -> None:
    raise TimeoutError(f"more than {TIMEOUT_S} s")


def _read(each: Format, folder: Path, work: Path, data: bytes) -> tuple[str, str]:
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(folder, work)
    (work / each.file).write_bytes(data)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = used + MEMORY + 4 * len(data)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    signal.alarm(TIMEOUT_S)
    try:
        each.read(work)
    except UserError as error:
        text = str(error)
        if "\n" in text or len(text) > 2_000 + len(str(work)):
            return "message", f"{len(text)} characters: {text[:200]!r}"
        return (
            ("refused", text) if _names(text, each, work) else ("message", f"names no file: {text}")
        )
    except MemoryError as error:
        return "memory", _where(error)
    except TimeoutError as error:
        return "hang", _where(error)
    except Exception as error:
        kind = "memory" if "memory" in str(error).lower() else "exception"
        return kind, f"{type(error).__name__}: {str(error)[:160]!r} {_where(error)}"
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return "accepted", ""


def _names(text: str, each: Format, work: Path) -> bool:
    """Whether a message names the file, or the directory that it is the whole of."""
    return str(work) in text or Path(each.file).name in text


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if f"{os.sep}delvm{os.sep}" in frame.filename] or frames
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno} {ours[-1].name}" if ours else ""


def main(words: Sequence[str]) -> int:
    """Fuzz all formats, or those named; exit code 1 if anything failed."""
    total = int(words[0]) if words and words[0].isdigit() else 10_000
    names = [word for word in words if not word.isdigit()] or list(FORMATS)
    per_format = max(1, total // len(names))
    found: list[Failure] = []
    for name in names:
        start = time.monotonic()
        failures, counts = fuzz(FORMATS[name], range(per_format))
        found += failures
        listed = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
        print(f"{name:<20} {listed} ({time.monotonic() - start:.0f} s)", flush=True)
        for where, count in Counter((f.kind, f.detail) for f in failures).most_common(12):
            number = next(f.number for f in failures if (f.kind, f.detail) == where)
            print(f"    {count:>4} x {where[0]}: {where[1]} (mutant {number})", flush=True)
    print(f"{per_format * len(names):,} mutants of {len(names)} formats, {len(found)} failures")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
