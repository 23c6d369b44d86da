"""Sentences: what is in them, in which order, and who gets which."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch

from delvm.data import manifest, shards
from delvm.data.sentences import Sentences, SentencesConfig, shares, turns, validation_sentences
from delvm.errors import UserError

COUNTS = {"derain": 11, "segmentation": 40}
TOKENS = 4


@pytest.fixture
def root(tmp_path):
    """Token shards whose ids tell task, pair and side: every pair can be recognised."""
    manifest.write_codebook(tmp_path, torch.randn(1000, 2), "f" * 16)
    for split, scale in (("train", 1), ("val", 2)):
        for offset, (task, count) in enumerate(COUNTS.items()):
            pairs = manifest.plan_pairs(split, task, source="s", seed=0, image_size=8)
            plan = manifest.plan_tokens(
                pairs,
                count // scale,
                tokens_per_image=TOKENS,
                vocab_size=1000,
                fingerprint="f" * 16,
            )

            def ids(start, stop, offset=offset):
                first = 500 * offset + 2 * np.arange(start, stop)
                sides = np.stack((first, first + 1), axis=1)
                yield np.repeat(sides[:, :, None], TOKENS, axis=2).astype(np.uint16)

            shards.write_tokens(tmp_path, plan, ids)
    return tmp_path


def config(root, **changes):
    return SentencesConfig(**({"path": str(root), "pairs_per_sentence": 3} | changes))


def take(data, count):
    return [(ids.tolist(), number) for ids, number in islice(data, count)]


def pairs_of(sentence):
    """First id of each pair, having checked that inputs and targets alternate, whole."""
    pictures = np.array(sentence).reshape(-1, 2, TOKENS)
    assert (pictures == pictures[:, :, :1]).all()
    assert (pictures[:, 1, 0] == pictures[:, 0, 0] + 1).all()
    return pictures[:, 0, 0].tolist()


def test_a_sentence_is_whole_pairs_of_one_task(root):
    data = Sentences(config(root), seed=0)
    for ids, number in take(data, 50):
        assert len(ids) == 3 * 2 * TOKENS
        offsets = {first // 500 for first in pairs_of(ids)}
        assert offsets == {list(COUNTS).index(data.tasks[number])}


@pytest.mark.parametrize("buffer", [50_000, 8])
def test_each_pair_comes_once_an_epoch(root, buffer):
    data = Sentences(config(root, pairs_per_sentence=1, buffer=buffer), seed=0)
    firsts = [f for ids, n in take(data, 80) for f in pairs_of(ids) if data.tasks[n] != "derain"]
    assert sorted(firsts) == list(range(500, 580, 2))
    assert firsts != sorted(firsts)


def test_pairs_are_redrawn_each_epoch(root):
    data = Sentences(config(root, weights={"segmentation": 1.0}, pairs_per_sentence=4), seed=0)
    sentences = [frozenset(pairs_of(ids)) for ids, _ in take(data, 20)]
    assert set(sentences[:10]) != set(sentences[10:])


def test_order_is_a_function_of_the_seed(root):
    assert take(Sentences(config(root), 1), 30) == take(Sentences(config(root), 1), 30)
    assert take(Sentences(config(root), 1), 30) != take(Sentences(config(root), 2), 30)


def test_ranks_share_what_one_would_get(root):
    whole = take(Sentences(config(root), 0), 40)
    parts = [take(Sentences(config(root), 0, rank, 2), 20) for rank in (0, 1)]
    assert [item for both in zip(*parts, strict=True) for item in both] == whole


def test_workers_share_what_one_would_get(root):
    loader = torch.utils.data.DataLoader(Sentences(config(root), 0), batch_size=1, num_workers=2)
    got = [tuple(ids[0].tolist()) for ids, _ in islice(loader, 20)]
    assert got == [tuple(ids) for ids, _ in take(Sentences(config(root), 0), 20)]


def test_mixture_is_exact(root):
    data = Sentences(config(root, weights={"segmentation": 3.0, "derain": 1.0}), 0)
    counts = Counter(data.tasks[n] for _, n in take(data, 400))
    assert counts == {"segmentation": 300, "derain": 100}


def test_turns_never_lag_by_more_than_one():
    share = {"a": 0.5, "b": 0.3, "c": 0.2}
    seen = Counter()
    for n, task in enumerate(islice(turns(share), 500), start=1):
        seen[task] += 1
        assert all(abs(seen[t] - n * s) <= 1 for t, s in share.items())


def test_validation_is_fixed_and_finite(root):
    ids, numbers, tasks = validation_sentences(config(root, val_pairs=9))
    assert tasks == ["derain", "segmentation"]
    assert ids.shape == (1 + 3, 3 * 2 * TOKENS)  # 5 and 9 pairs, 3 a sentence
    assert numbers.tolist() == [0, 1, 1, 1]
    assert torch.equal(ids, validation_sentences(config(root, val_pairs=9))[0])


def test_faults(root, tmp_path_factory):
    with pytest.raises(UserError, match="did you mean 'derain'"):
        Sentences(config(root, weights={"derian": 1.0}), 0)
    with pytest.raises(UserError, match="negative"):
        shares({"derain": -1.0}, ["derain"])
    with pytest.raises(UserError, match="all 0"):
        shares({"derain": 0.0}, ["derain"])
    with pytest.raises(UserError, match="data.pairs_per_sentence=11"):
        Sentences(config(root, pairs_per_sentence=12), 0)
    with pytest.raises(UserError, match="delvm encode"):
        Sentences(config(tmp_path_factory.mktemp("empty")), 0)
