"""Packed rows: what they hold, their order, and that packing changes nothing for a document."""

from collections import Counter

import numpy as np
import pytest
import torch

from delvm.data.datasets.packing import PADDING, PackedDataset, PackedSchedule, packed_validation
from delvm.data.datasets.sampler import SCHEDULE_PERIOD
from delvm.data.datasets.sentences import SentencesConfig
from delvm.errors import UserError
from delvm.models.transformer import Transformer, TransformerConfig
from delvm.training.losses import token_weights
from tests.data.datasets.test_sentences import COUNTS, KINDS, OFFSET, TOKENS, write
from tests.training.runs import curve, student_config, train, write_ids

K = 7  # images in a row: no multiple of a pair or of a clip of 3


@pytest.fixture
def root(tmp_path):
    write(tmp_path, tuple(COUNTS))
    return tmp_path


def config(root, **changes):
    values = {"path": str(root), "images_per_sentence": K, "packing": True, "batch_size": 4}
    return SentencesConfig(**(values | changes))


def documents(batch):
    """(task, first id of each image, target flags) of each document of a batch, in order."""
    tasks = sorted(COUNTS)
    found = []
    for row in range(len(batch["input_ids"])):
        ids = batch["input_ids"][row].view(K, TOKENS)
        for number in batch["document"][row].unique(sorted=True).tolist():
            mine = batch["document"][row] == number
            if number == PADDING:
                assert not batch["input_ids"][row].view(K, TOKENS)[mine].any()
                continue
            (task,) = batch["task"][row][mine].unique().tolist()
            assert (ids[mine] == ids[mine][:, :1]).all()  # each image is complete
            found.append(
                (tasks[task], ids[mine][:, 0].tolist(), batch["is_target"][row][mine].tolist())
            )
    return found


@pytest.mark.slow
def test_rows_hold_complete_examples_of_every_kind(root):
    found = documents(PackedDataset(config(root), 0)[np.arange(40)])
    for task, ids, targets in found:
        k = KINDS[task]
        assert len(ids) % k == 0
        for first in range(0, len(ids), k):  # the images of an example follow each other
            assert (ids[first] - OFFSET[task]) % k == 0
            assert ids[first : first + k] == list(range(ids[first], ids[first] + k))
        assert targets == ([False, True] * (len(ids) // 2) if k == 2 else [True] * len(ids))
    assert {task for task, *_ in found} == set(COUNTS)
    assert all(len(ids) == 1 for task, ids, _ in found if task == "images")


def test_each_epoch_of_a_task_holds_each_example_once(root):
    data = PackedDataset(config(root, task_weights={"derain": 1, "video": 1}), 0)
    seen = [
        first
        for task, ids, _ in documents(data[np.arange(60)])
        if task == "derain"
        for first in ids[::2]
    ]
    count = COUNTS["derain"]
    for epoch in range(len(seen) // count):
        part = seen[epoch * count : (epoch + 1) * count]
        assert sorted(part) == [OFFSET["derain"] + 2 * i for i in range(count)]


@pytest.mark.slow
def test_any_row_is_computed_directly(root):
    data, again = PackedDataset(config(root), 3), PackedDataset(config(root), 3)
    far = SCHEDULE_PERIOD * 3 + 17
    ahead = data[np.arange(far - 3, far + 3)]
    one = [again[np.array([row])] for row in range(far - 3, far + 3)]
    for name in ("input_ids", "task", "document", "is_target"):
        assert torch.equal(ahead[name], torch.cat([each[name] for each in one]))
    located = data.locate(np.arange(4))
    assert Counter(each["task"] for each in located) == Counter(
        task
        for task, ids, _ in documents(data[np.arange(4)])
        for _ in range(len(ids) // KINDS[task])
    )


@pytest.mark.slow
def test_mixture_and_padding_are_those_of_the_rows(root):
    data = PackedDataset(config(root), 0)
    rows = len(data.packed._rows)
    batch = data[np.arange(min(rows, 500))]
    images = {task: int((batch["task"] == i).sum()) for i, task in enumerate(sorted(COUNTS))}
    mixture = data.mixture(min(rows, 500))
    for task, part in mixture.items():
        assert part == pytest.approx(images[task] / sum(images.values()))
    padding = (batch["task"] == PADDING).float().mean().item()
    assert padding == pytest.approx(data.padding, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_padding_is_only_where_no_example_fits(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 6, 3).tolist()
    weights = {str(i): w for i, w in enumerate(rng.dirichlet(np.ones(3)))}
    per_row = int(rng.integers(5, 12))
    schedule = PackedSchedule(weights, sizes, [per_row // size for size in sizes], per_row)
    rows = [schedule(row) for row in range(300)]
    flat = [document for row in rows for document in row]
    done = [0, 0, 0]
    for document in flat:  # examples of a task follow each other, none is left out or repeated
        assert document.first == done[document.task]
        done[document.task] += document.num_examples
    for row, following in zip(rows, rows[1:], strict=False):
        used = sum(document.num_examples * sizes[document.task] for document in row)
        assert used <= per_row
        assert per_row - used < sizes[following[0].task]
        starts = np.cumsum([0, *(d.num_examples * sizes[d.task] for d in row)])[:-1].tolist()
        assert [document.start for document in row] == starts
    assert schedule.images(300).tolist() == [n * size for n, size in zip(done, sizes, strict=True)]


@pytest.mark.slow
def test_an_example_longer_than_a_row_is_refused(root):
    with pytest.raises(
        UserError, match=r"'video' has 3 images, a sentence 2: set data.images_per_se"
    ):
        PackedDataset(config(root, images_per_sentence=2), 0)
    data = PackedDataset(config(root, images_per_sentence=2, task_weights={"derain": 1}), 0)
    assert set(data.mixture_weights) == {"derain"}


def test_validation_rows_are_one_document_and_padding(root):
    batch, tasks = packed_validation(config(root, num_val_examples=4))
    assert tasks == sorted(COUNTS)
    assert all(len(values) == len(batch["input_ids"]) for values in batch.values())
    for task in range(len(tasks)):
        rows = (batch["task"] == task).any(1)
        assert rows.any()
        k = KINDS[tasks[task]]
        assert ((batch["task"][rows] == task).sum(1) == K // k * k).all()


def test_a_packed_document_is_predicted_as_if_it_were_alone():
    """Logits of a document do not depend on what stands before it in its row."""
    torch.manual_seed(0)
    net = TransformerConfig(
        vocab_size=32, dim=32, n_layers=2, n_heads=2, max_seq_len=32, codebook_dim=4
    )
    model = Transformer(net, torch.randn(32, 4)).eval()
    ids = torch.randint(32, (1, 28))
    document = torch.tensor([[0] * 8 + [8] * 12 + [PADDING] * 8])
    packed = model(ids, document_ids=document)
    assert torch.allclose(packed[:, :8], model(ids[:, :8]), atol=1e-5)
    assert torch.allclose(packed[:, 8:20], model(ids[:, 8:20]), atol=1e-5)
    weights = token_weights(torch.ones(1, 28, dtype=torch.bool), 1.0, document)
    assert weights[0].nonzero()[:, 0].tolist() == [*range(7), *range(8, 19)]


@pytest.mark.slow
def test_training_on_packed_rows_resumes_exactly(tmp_path):
    write_ids(tmp_path / "tokens")
    words = ("data.packing=true", "data.images_per_sentence=5", "optimizer.lr=1e-3")
    train(student_config(tmp_path / "tokens", 6, *words), tmp_path / "one")
    stop = ("callbacks.stop_at_step.step=3", *words)
    train(student_config(tmp_path / "tokens", 6, *stop), tmp_path / "two")
    train(student_config(tmp_path / "tokens", 6, *words, "resume=auto"), tmp_path / "two")
    losses = curve(tmp_path / "one", "train/loss")
    assert len(losses) == 6 and losses == curve(tmp_path / "two", "train/loss")
    assert curve(tmp_path / "one", "train/padding") == [pytest.approx(0.2)] * 6
    assert curve(tmp_path / "one", "val/pose/loss")
