"""Sentences: their contents, their order, and which rank gets which."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from delvm.data.datasets.images import ImagesConfig
from delvm.data.datasets.sentences import SentenceDataset, SentencesConfig, validation_sentences
from delvm.data.shards import codebook as codebooks
from delvm.data.shards import manifest, writer
from delvm.errors import UserError
from delvm.training.data.datamodules import SentenceDataModule

TOKENS = 4
COUNTS = {"derain": 11, "images": 24, "segmentation": 40, "video": 10}
KINDS = {"derain": 2, "images": 1, "segmentation": 2, "video": 3}
OFFSET = {task: 500 * number for number, task in enumerate(COUNTS)}


def write(root, tasks):
    """Token shards whose ids encode task, example and image: one id repeated over an image."""
    codebooks.write_codebook(root, torch.randn(2000, 2), "f" * 16)
    for split, scale in (("train", 1), ("val", 2)):
        for task in tasks:
            k = KINDS[task]
            plan = manifest.plan_tokens(
                manifest.plan_images(split, task, source="s", seed=0, image_size=8),
                COUNTS[task] // scale,
                tokens_per_image=TOKENS,
                vocab_size=2000,
                fingerprint="f" * 16,
            )
            plan.images_per_example = k

            def ids(start, stop, task=task, k=k):
                first = OFFSET[task] + k * np.arange(start, stop)
                images = first[:, None] + np.arange(k)
                yield np.repeat(images[:, :, None], TOKENS, axis=2).astype(np.uint16)

            writer.write_tokens(root, plan, ids)


@pytest.fixture
def root(tmp_path):
    write(tmp_path, ("derain", "segmentation"))
    return tmp_path


def config(root, **changes):
    return SentencesConfig(**({"path": str(root), "pairs_per_sentence": 3} | changes))


def take(data, count, start=0):
    """(ids, number of the task) of the sentences from start on."""
    batch = data[np.arange(start, start + count)]
    assert batch["next_index"] == start + count
    return list(zip(batch["input_ids"].tolist(), batch["task"].tolist(), strict=True))


def examples_of(sentence, task):
    """First id of each example, after checking that its images are complete and in order."""
    images = np.array(sentence).reshape(-1, KINDS[task], TOKENS)
    assert (images == images[:, :, :1]).all()
    assert (images[:, :, 0] == images[:, :1, 0] + np.arange(KINDS[task])).all()
    assert (images // 500 == OFFSET[task] // 500).all()
    return images[:, 0, 0].tolist()


def test_sentence_holds_complete_pairs_of_one_task(root):
    data = SentenceDataset(config(root), seed=0)
    for ids, number in take(data, 50):
        assert len(ids) == 3 * 2 * TOKENS
        assert len(examples_of(ids, data.tasks[number])) == 3


@pytest.mark.parametrize(("images", "held"), [(6, (3, 6, 3, 2)), (12, (6, 12, 6, 4))])
def test_mixture_of_pairs_clips_and_single_images(tmp_path, images, held):
    """Pairs, clips of three and single images, in sentences of one length."""
    write(tmp_path, COUNTS)
    data = SentenceDataset(config(tmp_path, images_per_sentence=images), seed=0)
    seen = {task: [] for task in COUNTS}
    for ids, number in take(data, 80):
        task = data.tasks[number]
        found = examples_of(ids, task)
        assert len(found) == dict(zip(COUNTS, held, strict=True))[task]
        seen[task] += found
    for task, count in COUNTS.items():  # each once, before any comes twice
        every = [OFFSET[task] + KINDS[task] * n for n in range(count)]
        assert sorted(seen[task][:count]) == every
    kinds = data[np.arange(4)]["images_per_example"].tolist()
    assert sorted(kinds) == [1, 2, 2, 3]


@pytest.mark.parametrize("window", [1, 32])
def test_each_pair_comes_once_per_epoch(root, window):
    data = SentenceDataset(config(root, pairs_per_sentence=1, shuffle_window_shards=window), seed=0)
    taken = [(ids, data.tasks[n]) for ids, n in take(data, 80)]
    firsts = [f for ids, task in taken if task != "derain" for f in examples_of(ids, task)]
    assert sorted(firsts) == list(range(1000, 1080, 2))
    assert firsts != sorted(firsts)


def test_pairs_are_shuffled_again_each_epoch(root):
    data = SentenceDataset(
        config(root, task_weights={"segmentation": 1.0}, pairs_per_sentence=4), seed=0
    )
    sentences = [frozenset(examples_of(ids, "segmentation")) for ids, _ in take(data, 20)]
    assert data.sentences_per_epoch == 10
    assert set(sentences[:10]) != set(sentences[10:])
    assert set.union(*map(set, sentences[:10])) == set.union(*map(set, sentences[10:]))


def test_order_is_a_function_of_the_seed(root):
    assert take(SentenceDataset(config(root), 1), 30) == take(SentenceDataset(config(root), 1), 30)
    assert take(SentenceDataset(config(root), 1), 30) != take(SentenceDataset(config(root), 2), 30)


def test_a_batch_equals_its_sentences_one_by_one(root):
    data = SentenceDataset(config(root), 0)
    assert take(data, 40, 7) == [take(data, 1, n)[0] for n in range(7, 47)]


def test_mixture_is_exact_over_an_epoch(root):
    weights = {"segmentation": 0.99, "derain": 0.01}
    data = SentenceDataset(config(root, task_weights=weights), 0)
    counts = Counter(data.tasks[n] for _, n in take(data, 10_000))
    assert counts["derain"] == pytest.approx(100, abs=1)


class _Trainer:
    def __init__(self, rank, ranks):
        self.global_rank, self.world_size = rank, ranks
        self.strategy = SimpleNamespace(root_device=torch.device("cpu"))


def module(root, rank=0, ranks=1, state=None, **changes):
    """The data module of a rank, as Lightning would have it."""
    settings = {"pairs_per_sentence": 3, "batch_size": 4, "seed": 0} | changes
    data = SentenceDataModule(str(root), **settings)
    data.trainer = _Trainer(rank, ranks)
    if state is not None:
        data.load_state_dict(state)
    return data


def pull(data, batches):
    """Train on so many batches: the sentences seen."""
    seen = []
    loader = iter(data.train_dataloader())
    for _ in range(batches):
        batch = next(loader)
        data.advance(batch)
        seen += [tuple(ids) for ids in batch["input_ids"].tolist()]
    return seen


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_continues_with_the_next_batch(root, workers):
    uninterrupted = pull(module(root), 12)
    first = module(root, num_workers=workers)
    assert pull(first, 5) == uninterrupted[:20]  # what workers have prefetched does not count
    again = module(root, num_workers=2 - workers, state=first.state_dict())
    assert pull(again, 7) == uninterrupted[20:]


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 3), (2, 2)])
def test_resume_with_another_number_of_ranks(root, before, after):
    """Nothing is lost and nothing comes twice when another number of ranks resumes."""
    uninterrupted = pull(module(root), 18)
    first = [module(root, rank, before) for rank in range(before)]
    seen = [pull(rank, 6 // before) for rank in first]
    states = [rank.state_dict() for rank in first]
    assert all(state == states[0] for state in states)  # any rank's will do
    rest = [module(root, rank, after, states[0]) for rank in range(after)]
    seen += [pull(rank, 12 // after) for rank in rest]
    assert sorted(sum(seen, [])) == sorted(uninterrupted)


def test_resume_with_another_batch_size(root):
    uninterrupted = pull(module(root), 12)
    first = module(root)
    pull(first, 5)
    assert pull(module(root, batch_size=7, state=first.state_dict()), 4) == uninterrupted[20:48]


def test_resume_refuses_another_order(root):
    state = module(root).state_dict()
    with pytest.raises(UserError, match="images_per_sentence 6 != 4.*init_from=PATH"):
        module(root, pairs_per_sentence=2, state=state)
    with pytest.raises(UserError, match="mixture_weights"):
        module(root, task_weights={"derain": 1.0}, state=state)


def test_validation_is_fixed_and_finite(root):
    val = validation_sentences(config(root, num_val_examples=9))
    assert val.tasks == ["derain", "segmentation"]
    assert val.input_ids.shape == (1 + 3, 3 * 2 * TOKENS)  # 5 and 9 pairs, 3 a sentence
    assert val.task.tolist() == [0, 1, 1, 1] and val.images_per_example.tolist() == [2] * 4
    assert torch.equal(
        val.input_ids, validation_sentences(config(root, num_val_examples=9)).input_ids
    )


def test_ranks_validate_each_sentence_once(root):
    ranks = [module(root, rank, 3, num_val_examples=9) for rank in range(3)]
    rank_batches = [list(rank.val_dataloader()) for rank in ranks]
    assert len({sum(len(batch["input_ids"]) for batch in batches) for batches in rank_batches}) == 1
    counted = [
        tuple(ids)
        for batches in rank_batches
        for batch in batches
        for ids, task in zip(batch["input_ids"].tolist(), batch["task"].tolist(), strict=True)
        if task >= 0
    ]
    assert sorted(counted) == sorted(map(tuple, ranks[0].val.input_ids.tolist()))


def test_invalid_configs_are_refused(root, tmp_path_factory):
    with pytest.raises(UserError, match="did you mean 'derain'"):
        SentenceDataset(config(root, task_weights={"derian": 1.0}), 0)
    with pytest.raises(UserError, match="data.pairs_per_sentence=11"):
        SentenceDataset(config(root, pairs_per_sentence=12), 0)
    with pytest.raises(UserError, match="'derain' has 2 images, a sentence 5: set data.images_per"):
        SentenceDataset(config(root, images_per_sentence=5), 0)
    with pytest.raises(UserError, match="delvm encode"):
        SentenceDataset(config(tmp_path_factory.mktemp("empty")), 0)


@pytest.mark.parametrize(
    ("changes", "errors"),
    [
        ({}, []),
        ({"batch_size": 0}, ["batch_size=0 is below 1: set it to 1 or more"]),
        ({"images_per_sentence": 0}, ["images_per_sentence=0 is below 1: set it to 1 or more"]),
        (
            {"num_workers": -1, "pairs_per_sentence": 0},
            [
                "pairs_per_sentence=0 is below 1: set it to 1 or more",
                "num_workers=-1 is below 0: set it to 0 or more",
            ],
        ),
    ],
)
def test_config_validation_reports_each_error(changes, errors):
    assert SentencesConfig(**changes).validate() == errors


def test_image_config_validation_reports_each_error():
    assert ImagesConfig().validate() == []
    assert ImagesConfig(shuffle_window_shards=0, num_val_examples=0).validate() == [
        "num_val_examples=0 is below 1: set it to 1 or more",
        "shuffle_window_shards=0 is below 1: set it to 1 or more",
    ]
