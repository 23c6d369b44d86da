"""Fill a cache with a teacher's distributions over the first sentences of a data set."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from delvm.data.datasets.sentences import SentenceDataset
from delvm.data.shards.codebook import read_codebook
from delvm.data.teacher_cache.record import quantize, record_dtype
from delvm.data.teacher_cache.store import (
    MANIFEST,
    SHARD_BYTES,
    CachePlan,
    checksums,
    missing_files,
    write_file,
)
from delvm.errors import UserError
from delvm.interop.fingerprint import codebook_matches, weights_fingerprint
from delvm.models.transformer import Transformer
from delvm.progress import Progress
from delvm.storage import StoragePath, as_path
from delvm.training.losses import MAX_LOGITS_BYTES, document_ids
from delvm.training.losses.top_k import with_tail


def plan_cache(
    sentences: SentenceDataset,
    teacher: Transformer,
    precision: str,
    num_sentences: int | None,
    top_k: int,
) -> CachePlan:
    """What a cache of a teacher and the first sentences of a data set holds.

    Args:
        sentences: the data set.
        teacher: frozen, in its precision.
        precision: its name.
        num_sentences: None = those of one epoch.
        top_k: tokens kept of each distribution.

    Raises:
        UserError: the teacher cannot read these sentences, or top_k is not below its vocabulary.
    """
    layout, path = sentences.token_layout, sentences.config.path
    assert layout.tokens_per_image is not None and layout.fingerprint is not None
    length = sentences.config.num_images * layout.tokens_per_image
    known = teacher.tokenizer_fingerprint
    matches = known == layout.fingerprint if known else codebook_matches(teacher, _codebook(path))
    if not matches:
        raise UserError(
            f"teacher=PATH was trained on ids of tokenizer {known or 'with other codes'}, "
            f"output_dir={path} holds those of {layout.fingerprint}: set teacher=PATH"
        )
    if teacher.vocab_size != layout.vocab_size:
        raise UserError(
            f"vocab_size {teacher.vocab_size} (teacher) != {layout.vocab_size} (ids in {path}): "
            "set teacher=PATH to one of the same tokenizer"
        )
    if teacher.max_seq_len < length:
        raise UserError(
            f"a sentence has {length} tokens, the teacher's max_seq_len is {teacher.max_seq_len}: "
            "set teacher_cache.pairs_per_sentence lower, or teacher=PATH"
        )
    if not 1 <= top_k < teacher.vocab_size:
        raise UserError(
            f"teacher_cache.top_k={top_k} is not from 1 to {teacher.vocab_size - 1}, below the "
            "teacher's vocabulary: set teacher_cache.top_k=16"
        )
    return CachePlan(
        teacher=weights_fingerprint(teacher),
        precision=precision,
        tokenizer=layout.fingerprint,
        vocab_size=teacher.vocab_size,
        top_k=top_k,
        sentence_length=length,
        num_sentences=num_sentences or sentences.sentences_per_epoch,
        sentences_per_file=max(1, SHARD_BYTES // record_dtype(length, top_k).itemsize),
        order=json.loads(json.dumps(sentences.order)),
    )


def write_cache(
    path: str,
    plan: CachePlan,
    sentences: SentenceDataset,
    teacher: Transformer,
    *,
    batch_size: int,
    overwrite: bool = False,
    rank: int = 0,
    world_size: int = 1,
) -> None:
    """Write the files that are missing; of several processes, each writes every so many-th.

    Args:
        path: a directory or URL.
        plan: from `plan_cache`, of these sentences and this teacher.
        batch_size: sentences per forward pass.
        overwrite: replace a cache that was made with another plan.
        rank, world_size: which process this is, and how many there are.

    Raises:
        UserError: the directory holds a cache of another plan.
    """
    folder = as_path(path)
    _begin(folder, plan, overwrite)
    pending = missing_files(folder, plan)
    counts = {file: len(plan.sentences(file)) for file in range(len(plan.files))}
    mine = [file for file in pending if file % world_size == rank]
    total = sum(counts[file] for file in counts if file % world_size == rank)
    with Progress(total, "teacher", "sentences") as progress:
        progress.skip(total - sum(counts[file] for file in mine))
        for file in mine:
            parts = []
            for part in _records(plan, file, sentences, teacher, batch_size):
                parts.append(part)
                progress.update(len(part))
            write_file(folder, plan, file, np.concatenate(parts))


def _begin(folder: StoragePath, plan: CachePlan, overwrite: bool) -> None:
    """Write the manifest, and remove the files of another plan."""
    found = None
    if (folder / MANIFEST).exists() and not overwrite:
        found = CachePlan.load(folder)
    if found is not None and found != plan:
        old, new = vars(found), vars(plan)
        names = [name for name in new if old[name] != new[name] and name != "sentences_per_file"]
        made, asked = (", ".join(f"{n}={each[n]}" for n in names) for each in (old, new))
        raise UserError(
            f"{folder} was made with {made}, requested is {asked}: set overwrite=true to replace "
            "it, or teacher_cache.path=PATH"
        )
    if found is None:
        folder.mkdir(parents=True, exist_ok=True)
        plan.save(folder)
        kept = {*plan.files}
        for each in folder.glob("*-*.npy"):
            if each.name not in kept:
                each.unlink(missing_ok=True)


def _records(
    plan: CachePlan, file: int, sentences: SentenceDataset, teacher: Transformer, batch_size: int
) -> Iterator[npt.NDArray[Any]]:
    """The records of a file's sentences, some at a time."""
    indices = np.array(plan.sentences(file))
    for start in range(0, len(indices), batch_size):
        batch = sentences[indices[start : start + batch_size]]
        input_ids = batch["input_ids"]
        ids, log_probs = top_k_of_sentences(teacher, batch, sentences, plan.top_k)
        records = np.empty(len(input_ids), plan.dtype)
        records["checksum"] = checksums(input_ids.numpy())
        records["ids"] = ids.cpu().numpy()
        records["codes"], records["tail"] = quantize(log_probs.cpu().numpy())
        yield records


@torch.inference_mode()
def top_k_of_sentences(
    teacher: Transformer, batch: dict[str, Tensor], sentences: SentenceDataset, top_k: int
) -> tuple[Tensor, Tensor]:
    """The teacher's k most likely tokens after each token but the last.

    Args:
        teacher: on its device.
        batch: of the data set.
        sentences: the data set.
        top_k: k.

    Returns:
        ids (B, T - 1, k) int64, and log-probabilities (B, T - 1, k + 1) float32, the last of all
        other tokens together.
    """
    head = teacher.head.weight
    input_ids = batch["input_ids"].to(head.device)
    document = _document_ids(batch, sentences)
    if document is not None:
        document = document[:, :-1].to(head.device)
    hidden = teacher.forward_hidden(input_ids[:, :-1], document_ids=document)
    shape = (*hidden.shape[:2], -1)
    rows = max(1, MAX_LOGITS_BYTES // (4 * teacher.vocab_size))
    parts = []
    for chunk in torch.split(hidden.flatten(0, 1), rows):
        log_probs = F.log_softmax(F.linear(chunk, head).float(), dim=-1)
        ids = log_probs.topk(top_k, dim=-1).indices
        parts.append((ids, with_tail(log_probs, ids)))
    ids, kept = (torch.cat(each).reshape(shape) for each in zip(*parts, strict=True))
    return ids, kept


def _document_ids(batch: dict[str, Tensor], sentences: SentenceDataset) -> Tensor | None:
    """The document of each token (B, T), as in training; None where each row is one document."""
    tokens = sentences.token_layout.tokens_per_image
    assert tokens is not None
    if "document" in batch:  # of each image of a packed row
        return batch["document"].repeat_interleave(tokens, dim=1)
    if not (batch["images_per_example"] == 1).any():
        return None
    return document_ids(batch["images_per_example"], batch["input_ids"].shape[1], tokens)


def _codebook(path: str) -> Tensor:
    return read_codebook(as_path(path))[0]
