"""Sentences and packed documents of training are the prompts of inference, token for token."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from delvm.data.datasets.packing import PADDING, PackedDataset
from delvm.data.datasets.sentences import SentenceDataset, SentencesConfig
from delvm.data.encode.encode import encode
from delvm.inference.prompter import Prompter
from delvm.interop.fingerprint import fingerprint
from delvm.interop.load import load_student, load_tokenizer
from delvm.models.attention import PackedDocuments
from delvm.training.student import StudentModule
from tests.data.shard_makers import make_pairs, write_examples

SIZE, TOKENS = 64, 64
# A document has at most as many pairs as its task, so rows of 8 images hold several.
COUNTS = {"derain": 1, "edges": 3, "segmentation": 2}


@pytest.fixture(scope="module")
def prompter() -> Prompter:
    return Prompter(load_tokenizer("shapes"), load_student("shapes"))


@pytest.fixture(scope="module")
def examples() -> dict[str, Any]:
    """Pairs of each task, with their two images."""
    return {
        task: [pair.images for pair in make_pairs(count, task, SIZE, seed=number)]
        for number, (task, count) in enumerate(COUNTS.items())
    }


@pytest.fixture(scope="module")
def root(prompter, tmp_path_factory):
    """Token shards of these pairs."""
    folder: Any = tmp_path_factory.mktemp("corpus")
    for number, (task, count) in enumerate(COUNTS.items()):
        pairs = make_pairs(count, task, SIZE, seed=number)
        settings: dict[str, Any] = {"source": "fake", "seed": 0, "image_size": SIZE}
        write_examples(folder / "pairs", "train", task, pairs, **settings)
    tokenizer: Any = prompter.tokenizer
    encode(folder / "pairs", folder / "tokens", tokenizer, fingerprint(tokenizer), splits=["train"])
    return folder / "tokens"


def prompt_tokens(prompter, monkeypatch, images):
    """Ids of the prompt, and of query and answer, as `Prompter` hands them to its engine."""
    opened = [Image.fromarray(image) for image in images]
    seen: list[Any] = []

    def record(prompts, queries, *rest, **options):
        seen.append((prompts, queries))
        return queries  # an answer of some kind

    with monkeypatch.context() as patch:
        patch.setattr(prompter.engine, "generate", record)
        pairs = list(zip(opened[:-2:2], opened[1:-2:2], strict=True))
        prompter.complete(pairs, [opened[-2]])
    [([prompt], queries)] = seen
    return prompt, torch.cat((queries[0], prompter.encode(opened[-1:])[0]))


def images_of(data, row, examples, start, count):
    """The images of ``count`` examples of a row, by where they are on disk."""
    found = data.locate(np.array([row]))[start : start + count]
    return [image for each in found for image in examples[each["task"]][each["index"]]]


def cached_logits(student, prompt, rest):
    """Logits of query and answer after a prompt whose keys and values are shared."""
    if not len(prompt):
        return student(rest[None], student.make_kv_cache(1))[0]
    prefix = student.make_kv_cache(1, len(prompt))
    student.forward_hidden(prompt[None], prefix)
    return student(rest[None], student.make_kv_cache(1, prefix=prefix))[0]


def test_sentences_of_pairs_are_prompts(prompter, examples, root, monkeypatch):
    task = "edges"
    weights = {each: float(each == task) for each in COUNTS}
    data = SentenceDataset(
        SentencesConfig(str(root), pairs_per_sentence=3, task_weights=weights), seed=0
    )
    batch = data[np.arange(4)]
    for row in range(4):
        images = images_of(data, row, examples, 0, 3)
        prompt, rest = prompt_tokens(prompter, monkeypatch, images)
        assert len(prompt) == 4 * TOKENS
        assert torch.equal(batch["input_ids"][row], torch.cat((prompt, rest)))


@pytest.mark.slow
@torch.inference_mode()
def test_packed_documents_are_prompts(prompter, examples, root, monkeypatch):
    config = SentencesConfig(str(root), images_per_sentence=8, packing=True)
    data, student = PackedDataset(config, seed=0), prompter.student
    batch = data[np.arange(9)]
    module: Any = SimpleNamespace(data=SimpleNamespace(tokens_per_image=TOKENS))
    documents = StudentModule.document_ids(module, batch)
    packed = student(batch["input_ids"], document_ids=documents)
    lengths = []
    for row in range(9):
        done = 0  # examples of the row
        for number in batch["document"][row].unique(sorted=True).tolist():
            if number == PADDING:
                continue
            mine = documents[row] == number
            length = int(mine.sum()) // (2 * TOKENS)
            images = images_of(data, row, examples, done, length)
            prompt, rest = prompt_tokens(prompter, monkeypatch, images)
            tokens = torch.cat((prompt, rest))
            assert torch.equal(batch["input_ids"][row][mine], tokens)
            positions = PackedDocuments(documents).positions[row][mine]
            assert torch.equal(positions, torch.arange(len(tokens)))
            logits = packed[row][mine]
            assert torch.allclose(logits, student(tokens[None])[0], atol=1e-5)
            found = cached_logits(student, prompt, rest)
            assert torch.allclose(logits[len(prompt) :], found, atol=1e-5)
            lengths.append(length)
            done += length
    assert {1, 2, 3} <= set(lengths) and len(lengths) > 6  # rows hold several
