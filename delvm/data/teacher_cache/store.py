"""The files of a teacher's distributions, which several processes may write and read.

    DIR/manifest.json          of what teacher, and of which sentences; written first
    DIR/PLAN-000000.npy ...    sentences in order: an array of the records of `record`

PLAN is a hash of the manifest, so files of an earlier plan are never taken for those of this one.
A cache is finished when all files of its plan are there.
"""

import json
from collections import OrderedDict
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt

from delvm.data.teacher_cache.record import Float32, dequantize, record_dtype
from delvm.errors import UserError
from delvm.storage import StoragePath, as_path, atomic_path, local_copy, read_json, write_json

FORMAT = "delvm-teacher-cache-1"
MANIFEST = "manifest.json"
SHARD_BYTES = 64 << 20  # about, of a file
MAX_OPEN_FILES = 64
_MAX_SENTENCE_LENGTH, _MAX_VOCAB_SIZE = 1 << 20, 1 << 16
_SCHEMA = {
    "format": str, "teacher": str, "precision": str, "tokenizer": str, "vocab_size": int,
    "top_k": int, "sentence_length": int, "num_sentences": int, "sentences_per_file": int,
    "order": dict,
}  # fmt: skip


@dataclass(frozen=True)
class CachePlan:
    """All that the contents of a cache depend on.

    Attributes:
        teacher: fingerprint of its weights.
        precision: in which it computed.
        tokenizer: fingerprint of the tokenizer whose ids the sentences are of.
        vocab_size: V.
        top_k: tokens kept of each distribution, from 1 to V - 1.
        sentence_length: tokens of a sentence, T.
        num_sentences: the first so many of the data set.
        sentences_per_file: how they are divided.
        order: `SentenceDataset.order`: all that these sentences depend on besides the tokens.
    """

    teacher: str
    precision: str
    tokenizer: str
    vocab_size: int
    top_k: int
    sentence_length: int
    num_sentences: int
    sentences_per_file: int
    order: dict[str, Any]

    @property
    def dtype(self) -> np.dtype[np.void]:
        """Of the record of a sentence."""
        return record_dtype(self.sentence_length, self.top_k)

    @property
    def files(self) -> list[str]:
        """The names of all files of records, in order."""
        digest = blake2b(json.dumps(asdict(self), sort_keys=True).encode(), digest_size=4)
        count = -(-self.num_sentences // self.sentences_per_file)
        return [f"{digest.hexdigest()}-{number:06d}.npy" for number in range(count)]

    def sentences(self, file: int) -> range:
        """The sentences of a file."""
        start = file * self.sentences_per_file
        return range(start, min(start + self.sentences_per_file, self.num_sentences))

    def save(self, folder: StoragePath) -> None:
        """Write it as JSON, atomically."""
        write_json(folder / MANIFEST, {"format": FORMAT} | asdict(self))

    @classmethod
    def load(cls, folder: StoragePath) -> "CachePlan":
        """Read and check a manifest.

        Raises:
            UserError: it is missing, damaged, or of another format.
        """
        path = folder / MANIFEST
        values = read_json(path, "manifest of a teacher's distributions", _SCHEMA)
        if (found := values.pop("format")) != FORMAT:
            raise UserError(f"{path}: format {found!r} is not {FORMAT!r}")
        limits = {
            "vocab_size": (2, _MAX_VOCAB_SIZE),
            "top_k": (1, values["vocab_size"] - 1),
            "sentence_length": (2, _MAX_SENTENCE_LENGTH),
            "num_sentences": (1, 1 << 40),
            "sentences_per_file": (1, SHARD_BYTES),
        }
        for name, (least, most) in limits.items():
            if not least <= values[name] <= most:
                raise UserError(f"{path}: {name} {values[name]} is not from {least} to {most}")
        return cls(**values)


def checksums(input_ids: npt.NDArray[Any]) -> npt.NDArray[np.uint32]:
    """A CRC-32 of the tokens (B, T) of each sentence, (B,)."""
    return np.array([crc32(row.tobytes()) for row in input_ids.astype("<u2")], np.uint32)


def write_file(folder: StoragePath, plan: CachePlan, file: int, records: npt.NDArray[Any]) -> None:
    """Write the records of one file's sentences, atomically."""
    assert records.dtype == plan.dtype and len(records) == len(plan.sentences(file))
    with atomic_path(folder / plan.files[file]) as tmp, tmp.open("wb") as out:
        np.lib.format.write_array(out, records, version=(1, 0), allow_pickle=False)


def missing_files(folder: StoragePath, plan: CachePlan) -> list[int]:
    """The numbers of the files that are still to be written."""
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return [number for number, name in enumerate(plan.files) if name not in found]


class TeacherCache:
    """The stored distributions of a teacher: what `teacher=offline` trains from.

    Attributes:
        path: where it is.
        plan: what it holds.
    """

    def __init__(self, path: str) -> None:
        """Read the manifest.

        Args:
            path: a directory that `delvm encode teacher=PATH` wrote, or a URL of one.

        Raises:
            UserError: there is none, it is damaged, or it is not finished.
        """
        self.path, self._folder = path, as_path(path)
        if not (self._folder / MANIFEST).exists():
            raise UserError(
                f"teacher.path={path} holds no distributions of a teacher: run "
                "`delvm encode teacher=PATH`, or set teacher.path=PATH"
            )
        self.plan = CachePlan.load(self._folder)
        if missing := missing_files(self._folder, self.plan):
            raise UserError(
                f"teacher.path={path} is not finished, {len(missing)} of {len(self.plan.files)} "
                "files are missing: run the same `delvm encode teacher=PATH` again to continue"
            )
        self._open: OrderedDict[int, npt.NDArray[Any]] = OrderedDict()

    def read(
        self, indices: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint16], Float32]:
        """The distributions of the predicted tokens of sentences.

        Args:
            indices: (B,), each below ``plan.num_sentences``.

        Returns:
            checksums (B,) of the sentences, ids (B, T - 1, k) uint16 of the most likely tokens, and
            log-probabilities (B, T - 1, k + 1) float32 of these and of all others together.

        Raises:
            UserError: a file is damaged.
        """
        records = np.empty(len(indices), self.plan.dtype)
        files, offsets = np.divmod(indices, self.plan.sentences_per_file)
        for row, (file, offset) in enumerate(zip(files.tolist(), offsets.tolist(), strict=True)):
            records[row] = self._records(file)[offset]
        name = str(self._folder / self.plan.files[int(files[0])])
        if (worst := int(records["ids"].max())) >= self.plan.vocab_size:
            raise UserError(f"{name} is damaged: id {worst} is outside [0, {self.plan.vocab_size})")
        log_probs = dequantize(records["codes"], records["tail"], name)
        return records["checksum"], records["ids"], log_probs

    def _records(self, file: int) -> npt.NDArray[Any]:
        """The records of a file, mapped into memory."""
        if file in self._open:
            self._open.move_to_end(file)
            return self._open[file]
        path = self._folder / self.plan.files[file]
        shape = (len(self.plan.sentences(file)),)
        try:
            found: npt.NDArray[Any] = np.load(local_copy(path), mmap_mode="r", allow_pickle=False)
            if found.dtype != self.plan.dtype or found.shape != shape:
                raise ValueError(f"{found.shape} records are not {shape}, or of another form")
        except Exception as error:  # numpy parses the header as Python, whose errors are many
            raise UserError(
                f"{path} is damaged: {error}: remove it and run the same "
                "`delvm encode teacher=PATH` again"
            ) from None
        self._open[file] = found
        if len(self._open) > MAX_OPEN_FILES:
            self._open.popitem(last=False)
        return found

    def __getstate__(self) -> dict[str, Any]:
        """The state without open files: a worker process opens its own."""
        return vars(self) | {"_open": OrderedDict()}
