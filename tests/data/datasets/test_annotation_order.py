"""Another order of the annotations in each sentence, in every reader."""

import itertools

import numpy as np
import pytest
import torch

from delvm.data.datasets.packing import PackedDataset
from delvm.data.datasets.sentences import (
    SentenceDataset,
    SentencesConfig,
    sentence_sizes,
    validation_sentences,
)
from delvm.data.datasets.streaming_sentences import StreamingSentences, StreamingSentencesConfig
from delvm.data.shards import codebook as codebooks
from delvm.data.shards import manifest, writer
from delvm.errors import UserError

TOKENS, IMAGES = 3, 8
KINDS = {"depth_and_more": 4, "derain": 2, "tuple": 4, "video": 4}
COUNT = 12


@pytest.fixture
def root(tmp_path):
    """Token shards whose ids are 10 x example + number of the image."""
    codebooks.write_codebook(tmp_path, torch.randn(1000, 2), "f" * 16)
    for split, (task, k) in itertools.product(("train", "val"), KINDS.items()):
        source = "annotated" if task == "depth_and_more" else "other"
        images = manifest.plan_images(split, task, source=source, seed=0, image_size=8)
        images.images_per_example = k
        plan = manifest.plan_tokens(
            images, COUNT, tokens_per_image=TOKENS, vocab_size=1000, fingerprint="f" * 16
        )

        def ids(start, stop, k=k):
            found = 10 * np.arange(start, stop)[:, None] + np.arange(k)
            yield np.repeat(found[:, :, None], TOKENS, axis=2).astype(np.uint16)

        writer.write_tokens(tmp_path, plan, ids)
    return tmp_path


def sentences(data, count=48, start=0):
    """(task, order of the images of each of its examples, numbers of the examples)."""
    batch = data[np.arange(start, start + count)]
    for ids, task in zip(batch["input_ids"].numpy(), batch["task"].tolist(), strict=True):
        name = data.tasks[task]
        images = ids.reshape(-1, KINDS[name], TOKENS)
        assert (images == images[:, :, :1]).all()
        orders = (images[:, :, 0] % 10).tolist()
        yield name, orders, (images[:, 0, 0] // 10).tolist()


def config(root, **settings):
    return SentencesConfig(str(root), images_per_sentence=IMAGES, **settings)


def test_each_sentence_has_one_order_and_sentences_differ(root):
    data = SentenceDataset(config(root, shuffle_annotations=True), seed=0)
    seen = {task: set() for task in KINDS}
    for task, orders, _ in sentences(data, 96):
        assert orders[0][0] == 0 and all(order == orders[0] for order in orders)
        seen[task].add(tuple(orders[0]))
    assert seen["derain"] == {(0, 1)} and seen["video"] == {(0, 1, 2, 3)}
    for task in ("depth_and_more", "tuple"):  # all six
        assert seen[task] == {(0, *order) for order in itertools.permutations((1, 2, 3))}


def test_orders_are_a_function_of_the_number_of_the_sentence(root):
    data = SentenceDataset(config(root, shuffle_annotations=True), seed=0)
    expected = list(sentences(data, 48))
    assert list(sentences(data, 20, start=28)) == expected[28:]
    other = SentenceDataset(config(root, shuffle_annotations=True), seed=1)
    assert [o for _, o, _ in sentences(other)] != [o for _, o, _ in expected]
    # Of the same two examples, as they come in a later epoch, the order may be another.
    few = SentenceDataset(
        config(root, shuffle_annotations=True, task_weights={t: 0 for t in KINDS if t != "tuple"}),
        seed=0,
    )
    assert len({str(orders) for _, orders, _ in sentences(few, 60)}) == 6


def test_without_it_the_order_is_that_of_the_shards(root):
    data = SentenceDataset(config(root), seed=0)
    shuffled = SentenceDataset(config(root, shuffle_annotations=True), seed=0)
    for (task, orders, numbers), (_, _, same) in zip(
        sentences(data), sentences(shuffled), strict=True
    ):
        assert orders == [[*range(KINDS[task])]] * len(orders) and numbers == same
    assert "shuffle_annotations" not in data.order and shuffled.order["shuffle_annotations"]
    val = validation_sentences(config(root, shuffle_annotations=True))
    assert (val.input_ids == validation_sentences(config(root)).input_ids).all()


def test_streams(root):
    settings = {"images_per_sentence": IMAGES, "batch_size": 4, "num_workers": 1}
    data = StreamingSentences(
        StreamingSentencesConfig(str(root), shuffle_annotations=True, **settings), 0
    )
    indexed = SentenceDataset(config(root, shuffle_annotations=True), seed=0)
    expected = [(task, orders) for task, orders, _ in sentences(indexed, 24)]
    found = []
    for batch in itertools.islice(data, 6):
        for ids, task in zip(batch["input_ids"].numpy(), batch["task"].tolist(), strict=True):
            name = data.tasks[task]
            images = ids.reshape(-1, KINDS[name], TOKENS)[:, :, 0]
            found.append((name, (images % 10).tolist()))
    assert found == expected


@pytest.mark.slow
def test_packed_documents(root):
    data = PackedDataset(config(root, shuffle_annotations=True, packing=True), seed=0)
    batch = data[np.arange(40)]
    seen = {task: set() for task in KINDS}
    for row in range(40):
        ids = batch["input_ids"][row].reshape(IMAGES, TOKENS)[:, 0]
        for document in batch["document"][row].unique().tolist():
            if document < 0:
                continue
            part = batch["document"][row] == document
            task = data.tasks[int(batch["task"][row][part][0])]
            orders = (ids[part] % 10).reshape(-1, KINDS[task]).tolist()
            assert all(order == orders[0] for order in orders)
            seen[task].add(tuple(orders[0]))
    assert len(seen["tuple"]) == len(seen["depth_and_more"]) == 6
    assert seen["derain"] == {(0, 1)} and seen["video"] == {(0, 1, 2, 3)}


def test_examples_longer_than_the_context_name_the_length_they_need(root):
    """A clip with annotations may be longer than the context of every student so far."""
    images = manifest.plan_images("train", "video_separate", source="s", seed=0, image_size=8)
    images.images_per_example, images.count = 12, 20
    with pytest.raises(UserError, match=r"has 12 images, a sentence 8: set data.images_per_sent"):
        sentence_sizes(config(root), [images, images], max_images=8)
    images.count = 0
    with pytest.raises(UserError, match="prepare and encode more of it"):
        sentence_sizes(config(root), [images, images], max_images=8)
