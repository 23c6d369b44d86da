"""How the answers in a directory were made, so that a later run makes only those that are missing.

answers.jsonl grows as answers come. Its first line states the settings of all answers, and each
other line one answer: its file, its number among the queries, hashes of what it was made from and
of its image, and its ids; or an image grid and a hash of what it shows. At the end, all ids are
written to ids.npz:

    names        (n,) text: the file of each answer, relative to the directory
    ids          (n, N) uint16, or int32 where the codebook has more than 65,536 codes
    tokenizer    text: fingerprint of the tokenizer that decodes them
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from delvm.errors import UserError
from delvm.inference.decoding import Decoding, SamplingConfig
from delvm.inference.files.answer_files import Question
from delvm.progress import log
from delvm.storage import atomic_path, write_text
from delvm.untrusted import parse_json

RECORD, IDS = "answers.jsonl", "ids.npz"
MAX_LINE_BYTES = 2**24

Settings: TypeAlias = Mapping[str, str | float | None]

_ANSWER = {"answer": str, "row": int, "inputs": str, "image": str, "ids": [int]}
_GRID = {"grid": str, "shows": str}


class _Made(NamedTuple):
    """One answer: the row that it samples as, hashes of its inputs and its image, its ids (N,)."""

    row: int
    inputs: str
    image: str
    ids: npt.NDArray[Any]


def settings_of(models: Mapping[str, str | None], sampling: SamplingConfig) -> Settings:
    """All that answers depend on, apart from their own inputs.

    Args:
        models: what else than `sampling` matters, as text: tokenizer, student, prompt.
        sampling: its seed counts only where it has an effect.
    """
    seed = sampling.seed if sampling.decoding is Decoding.sample else None
    return {**models, **asdict(sampling), "seed": seed}


class AnswerRecord:
    """The record of a directory of answers."""

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        *,
        codebook_size: int,
        tokens_per_image: int,
        overwrite: bool = False,
    ) -> None:
        """Read what an earlier run has left.

        Args:
            folder: the directory.
            settings: of `settings_of`.
            codebook_size, tokens_per_image: of the tokenizer.
            overwrite: whether an earlier record is ignored.

        Raises:
            UserError: the answers that are there were made with other settings, or the record is
                damaged in its first line.
        """
        self.folder, self.settings = folder, settings
        self.codebook_size, self.tokens_per_image = codebook_size, tokens_per_image
        self.made: dict[str, _Made] = {}
        self.grids: dict[str, str] = {}  # what each shows, as a hash
        self._damaged = self._valid_bytes = 0
        if not overwrite and (folder / RECORD).exists():
            self._read()

    @property
    def path(self) -> Path:
        """The file of the record."""
        return self.folder / RECORD

    def _read(self) -> None:
        """Read all complete lines; damaged ones are counted."""
        lines = self._lines()
        header = next(lines, b"")
        try:
            found = parse_json(header, f"record {self.path}", {"version": int, "settings": dict})
        except UserError as error:
            raise UserError(
                f"{error}: set overwrite=true, or output to another directory"
            ) from None
        if changes := _changes(found["settings"], self.settings):
            raise UserError(
                f"the answers in {self.folder} were made with other settings ({changes}): set "
                "overwrite=true, or output to another directory"
            )
        for line in lines:
            try:
                self._parse(line)
            except UserError:
                self._damaged += 1

    def _lines(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            while (line := file.readline(MAX_LINE_BYTES)).endswith(b"\n"):
                self._valid_bytes += len(line)
                yield line

    def _parse(self, line: bytes) -> None:
        if b'"grid"' in line[:10]:
            grid = parse_json(line, "line", _GRID)
            self.grids[grid["grid"]] = grid["shows"]
            return
        found = parse_json(line, "line", _ANSWER)
        ids = found["ids"]
        if len(ids) != self.tokens_per_image or not 0 <= min(ids) <= max(ids) < self.codebook_size:
            raise UserError("ids of another tokenizer")
        self.made[found["answer"]] = _Made(
            found["row"], found["inputs"], found["image"], np.array(ids, self.dtype)
        )

    @property
    def dtype(self) -> type[np.integer[Any]]:
        """The type of ids in ids.npz."""
        return np.uint16 if self.codebook_size <= 2**16 else np.int32

    def kept(self, questions: Sequence[Question]) -> set[int]:
        """The rows of the questions whose answers need not be made again; logs how many.

        An answer is kept if neither its file nor any of its inputs has changed since and, where it
        was sampled, its row is the same, since rows sample with seeds of their own.
        """
        kept = {row for row, question in enumerate(questions) if self._is_current(row, question)}
        again = sum(
            row not in kept and self._name(question.answer) in self.made
            for row, question in enumerate(questions)
        )
        if kept or again or self._damaged:
            text = f"{len(kept)} of {len(questions)} answers exist, {len(questions) - len(kept)} "
            text += "to make"
            if again:
                text += f", {again} of them again, since their files or queries have changed"
            if self._damaged:
                text += f" ({self._damaged} lines of {self.path} are damaged)"
            log(f"generate: {text}")
        return kept

    def _is_current(self, row: int, question: Question) -> bool:
        made = self.made.get(self._name(question.answer))
        return (
            made is not None
            and (made.row == row or self.settings["seed"] is None)
            and question.answer.is_file()
            and made.image == file_hash(question.answer)
            and made.inputs == _inputs_hash(question)
        )

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def start(self) -> None:
        """Prepare to add answers: begin a new record, or cut off a line that was not completed.

        ids.npz is removed until all answers are there; the record has their ids.
        """
        (self.folder / IDS).unlink(missing_ok=True)
        if not self._valid_bytes:
            header = {"version": 1, "settings": dict(self.settings)}
            write_text(self.path, f"{json.dumps(header)}\n")
        elif self.path.stat().st_size > self._valid_bytes:
            os.truncate(self.path, self._valid_bytes)

    def add(self, row: int, question: Question, ids: Sequence[int]) -> None:
        """Record an answer whose image is written."""
        name = self._name(question.answer)
        made = _Made(
            row,
            _inputs_hash(question),
            file_hash(question.answer),
            np.asarray(ids, self.dtype),
        )
        self.made[name] = made
        self._append({"answer": name, **made._asdict(), "ids": list(ids)})

    def has_grid(self, path: Path, questions: Sequence[Question]) -> bool:
        """Whether an image grid exists that shows these answers as they are."""
        return path.is_file() and self.grids.get(self._name(path)) == self._shown(questions)

    def add_grid(self, path: Path, questions: Sequence[Question]) -> None:
        """Record an image grid of answers that is written."""
        shows = self.grids[self._name(path)] = self._shown(questions)
        self._append({"grid": self._name(path), "shows": shows})

    def remove_grids_but(self, current: Sequence[Path]) -> None:
        """Remove numbered image grids of an earlier list of queries, with fewer or more grids."""
        names = {self._name(path) for path in current}
        for name in self.grids:
            if re.fullmatch(r"grid(_\d+)?\.png", name) and name not in names:
                with suppress(FileNotFoundError):
                    (self.folder / name).unlink()
                    log(f"generate: removed {name}, the image grid of an earlier list of queries")

    def _shown(self, questions: Sequence[Question]) -> str:
        digest = hashlib.sha256()
        for question in questions:
            made = self.made[self._name(question.answer)]
            target = "" if question.target is None else file_hash(question.target)
            digest.update(f"{made.inputs} {made.image} {target} ".encode())
        return digest.hexdigest()[:32]

    def _append(self, value: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps(value)}\n")

    def write_ids(self, questions: Sequence[Question]) -> Path:
        """Write ids.npz, atomically; returns its path."""
        names = [self._name(question.answer) for question in questions]
        path = self.folder / IDS
        with atomic_path(path) as tmp:
            np.savez(
                tmp,
                names=np.array(names),
                ids=np.stack([self.made[name].ids for name in names]),
                tokenizer=np.array(self.settings["tokenizer"]),
            )
        return path


def _changes(there: Mapping[str, Any], now: Settings) -> str:
    """The settings that differ; what a record does not state has its default."""
    defaults = asdict(SamplingConfig())
    return ", ".join(
        f"{key} {there.get(key, defaults.get(key))} is now {now.get(key)}"
        for key in sorted({*there, *now})
        if there.get(key, defaults.get(key)) != now.get(key)
    )


def _inputs_hash(question: Question) -> str:
    return hashlib.sha256(" ".join(map(file_hash, question.inputs)).encode()).hexdigest()[:32]


def file_hash(path: Path) -> str:
    """The first 32 hexadecimal digits of the SHA-256 of a file."""
    stat = path.stat()
    return _file_hash(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4096)  # lines may share the images of their pairs
def _file_hash(path: Path, size: int, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]
