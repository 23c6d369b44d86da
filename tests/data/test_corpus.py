"""Preparing and encoding a small corpus, with a source and a tokenizer made for the test."""

from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from delvm.data.augment import Balance, BalanceConfig, augment
from delvm.data.corpus import prepare
from delvm.data.encoding import encode
from delvm.data.examples import Example, Part, Reject, in_parts
from delvm.data.images import to_pixels
from delvm.data.manifest import load_manifests, read_codebook
from delvm.data.parts import read_rejects
from delvm.data.shards import read_examples, read_tokens
from delvm.errors import Suspicious, UserError

PART = 4
AUGMENT = BalanceConfig(Balance.augment)


@dataclass
class FakeSource:
    """Pairs of noise; the target is the inverted input."""

    name: str = "fake"
    size: int = 16
    seed: int = 0
    asked: list = field(default_factory=list)
    fail_at: int | None = None

    def settings(self, split, task):
        return {}

    def parts(self, split):
        trained = {"derain": 7, "pose": 3}
        counts = trained if split == "train" else dict.fromkeys([*trained, "edges"], 2)
        return {task: in_parts(count, PART) for task, count in counts.items()}

    def read(self, split, task, part):
        first = int(part.name) * PART
        for index in range(first, first + part.count):
            yield self.pair(split, task, index)

    def pair(self, split, task, index):
        if len(self.asked) == self.fail_at:
            raise KeyboardInterrupt
        self.asked.append((split, task, index))
        seeds = [self.seed, len(split), *task.encode(), index]
        picture = np.random.default_rng(seeds).integers(0, 256, (self.size,) * 2 + (3,), np.uint8)
        return Example(f"{index:06d}", task, (picture, 255 - picture))


class FakeTokenizer:
    """Four tokens a picture: the mean brightness of each quarter, as one of 256 codes."""

    fast = False

    def __init__(self, size=16, fail_at=None):
        self.config = SimpleNamespace(resolution=size, tokens_per_image=4)
        self.codebook = torch.linspace(0, 1, 256)[:, None]
        self.batches, self.fail_at = [], fail_at

    def encode(self, pixels):
        assert torch.is_inference_mode_enabled()
        if len(self.batches) == self.fail_at:
            raise KeyboardInterrupt
        self.batches.append(len(pixels))
        quarters = torch.nn.functional.adaptive_avg_pool2d(pixels.mean(1, keepdim=True), 2)
        return (quarters.flatten(1) * 255).round().long()


def tokens_of(pairs):
    with torch.inference_mode():
        sides = [FakeTokenizer().encode(to_pixels([p.input, p.target])) for p in pairs]
    return torch.stack(sides).numpy()


def stored(root, split, task):
    return np.concatenate(list(read_tokens(root, split, task)))


def contents(root):
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


@pytest.fixture
def pairs(tmp_path):
    prepare(FakeSource(), tmp_path / "pairs", shard_size=4)
    return tmp_path / "pairs"


# ---------------------------------------------------------------- prepare


def test_prepare_writes_every_pair_of_every_split(tmp_path):
    source = FakeSource()
    manifests = prepare(source, tmp_path, shard_size=4)
    assert [(m.split, m.task, m.count) for m in manifests] == [
        ("train", "derain", 7),
        ("train", "pose", 3),
        *(("val", task, 2) for task in ("derain", "pose", "edges")),
        *(("test", task, 2) for task in ("derain", "pose", "edges")),
    ]
    assert len(source.asked) == len(set(source.asked)) == 22
    for manifest in manifests:
        found = list(read_examples(tmp_path, manifest.split, manifest.task))
        assert len(found) == manifest.count
        for index, pair in enumerate(found):
            wanted = FakeSource().pair(manifest.split, manifest.task, index)
            assert np.array_equal(pair.input, wanted.input)
            assert np.array_equal(pair.target, wanted.target)


def test_prepare_draws_a_contact_sheet_of_every_task(pairs):
    sheet = Image.open(pairs / "contact_sheet.png")
    assert sheet.width > 4 * 128 and sheet.height > 3 * 128


def test_prepare_again_keeps_what_is_there(tmp_path, capsys):
    prepare(FakeSource(), tmp_path)
    before, source = contents(tmp_path), FakeSource()
    prepare(source, tmp_path)
    assert source.asked == [] and contents(tmp_path) == before
    assert "kept in" in capsys.readouterr().err


def test_a_killed_prepare_ends_like_an_uninterrupted_one(tmp_path, capsys):
    prepare(FakeSource(), tmp_path / "whole", shard_size=2)
    with pytest.raises(KeyboardInterrupt):
        prepare(FakeSource(fail_at=5), tmp_path / "killed", shard_size=2)
    source = FakeSource()
    prepare(source, tmp_path / "killed", shard_size=2)
    assert source.asked[0] == ("train", "derain", 4)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert "train/derain, 1 of 2 parts are there" in capsys.readouterr().err


def test_a_source_that_has_grown_adds_its_new_parts(tmp_path, capsys):
    class Smaller(FakeSource):
        def parts(self, split):
            return {task: parts[:1] for task, parts in super().parts(split).items()}

    prepare(FakeSource(), tmp_path / "whole", ["train"], shard_size=4)
    prepare(Smaller(), tmp_path / "grown", ["train"], shard_size=4)
    source = FakeSource()
    prepare(source, tmp_path / "grown", ["train"], shard_size=4)
    assert source.asked == [("train", "derain", index) for index in (4, 5, 6)]
    assert contents(tmp_path / "grown") == contents(tmp_path / "whole")
    with pytest.raises(UserError, match="holds part 000001 of 3 examples, which is gone"):
        prepare(Smaller(), tmp_path / "grown", ["train"], shard_size=4)


def test_a_part_that_has_changed_since_a_kill_is_read_again(tmp_path):
    class Smaller(FakeSource):
        def parts(self, split):
            return {"derain": [Part("000000", 3), Part("000001", 4)]}

    with pytest.raises(KeyboardInterrupt):
        prepare(Smaller(fail_at=5), tmp_path, ["train"], shard_size=4)
    assert (tmp_path / "train/derain/parts/000000.json").exists()
    prepare(FakeSource(), tmp_path, ["train"], shard_size=4)
    assert len(list(read_examples(tmp_path, "train", "derain"))) == 7


@dataclass
class Damaged(FakeSource):
    """One in three items cannot be read."""

    def read(self, split, task, part):
        for example in super().read(split, task, part):
            broken = int(example.key) % 3 == 1
            yield Reject(f"raw/{example.key}.jpg", "truncated") if broken else example


def test_rejects_are_listed_and_counted(tmp_path, capsys):
    whole = tmp_path / "whole"
    manifests = prepare(Damaged(), whole, ["train"], shard_size=4, max_reject_fraction=0.5)
    assert [(m.task, m.count, m.rejected) for m in manifests] == [("derain", 5, 2), ("pose", 2, 1)]
    rejects = read_rejects(whole / "train/derain")
    assert rejects == [Reject(f"raw/00000{n}.jpg", "truncated") for n in (1, 4)]
    assert "train/derain: 2 of 7 raw items rejected (28.6%)" in capsys.readouterr().err
    assert len(list(read_examples(whole, "train", "derain"))) == 5
    with pytest.raises(KeyboardInterrupt):
        prepare(
            Damaged(fail_at=5),
            tmp_path / "killed",
            ["train"],
            shard_size=4,
            max_reject_fraction=0.5,
        )
    prepare(Damaged(), tmp_path / "killed", ["train"], shard_size=4, max_reject_fraction=0.5)
    assert contents(tmp_path / "killed") == contents(whole)


def test_too_many_rejects_end_the_job_and_leave_what_is_done(tmp_path):
    with pytest.raises(Suspicious, match=r"2 of 7 raw .* more than max_reject_fraction=0.1"):
        prepare(Damaged(), tmp_path, ["train"], max_reject_fraction=0.1)
    assert Suspicious.exit_code == 3
    assert len(list(read_examples(tmp_path, "train", "derain"))) == 5


@dataclass
class Clips(FakeSource):
    """Examples of three pictures."""

    def pair(self, split, task, index):
        example = super().pair(split, task, index)
        return replace(example, pictures=(*example.pictures, example.input // 2))


def test_examples_of_more_than_two_pictures(tmp_path):
    (derain, _) = prepare(Clips(), tmp_path / "clips", ["train"])
    assert derain.pictures == 3
    found = list(read_examples(tmp_path / "clips", "train", "derain"))
    wanted = Clips().pair("train", "derain", 6)
    assert all(map(np.array_equal, found[6].pictures, wanted.pictures))
    encode(tmp_path / "clips", tmp_path / "t", FakeTokenizer(), "abc", splits=["train"])
    ids = stored(tmp_path / "t", "train", "derain")
    assert ids.shape == (7, 3, 4)
    with torch.inference_mode():
        tokens = FakeTokenizer().encode(to_pixels(list(wanted.pictures)))
    assert np.array_equal(ids[6], tokens)


def test_prepare_with_other_settings_touches_nothing(pairs):
    before, source = contents(pairs), FakeSource(seed=1)
    with pytest.raises(UserError, match="seed=0, asked for is seed=1: set overwrite=true"):
        prepare(source, pairs, shard_size=4)
    assert source.asked == [] and contents(pairs) == before
    prepare(source, pairs, shard_size=4, overwrite=True)
    assert len(source.asked) == 22


def test_unknown_splits_and_sizes_are_refused(tmp_path):
    with pytest.raises(UserError, match="unknown split 'tset': did you mean 'test'"):
        prepare(FakeSource(), tmp_path, ["tset"])
    with pytest.raises(UserError, match="no splits given: set splits="):
        prepare(FakeSource(), tmp_path, [])
    with pytest.raises(UserError, match="shard_size=0 is below 1"):
        prepare(FakeSource(), tmp_path, shard_size=0)


# ---------------------------------------------------------------- encode


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_encode_stores_the_tokens_of_every_pair_in_order(pairs, tmp_path, batch_size):
    tokenizer = FakeTokenizer()
    manifests = encode(pairs, tmp_path / "t", tokenizer, "abc", batch_size=batch_size)
    assert max(tokenizer.batches) <= 2 * batch_size
    assert len(manifests) == 8
    for manifest in manifests:
        wanted = tokens_of(read_examples(pairs, manifest.split, manifest.task))
        assert np.array_equal(stored(tmp_path / "t", manifest.split, manifest.task), wanted)
        assert (manifest.fingerprint, manifest.vocab_size) == ("abc", 256)
        assert (manifest.source, manifest.seed, manifest.balance) == ("fake", 0, None)
    codebook, fingerprint = read_codebook(tmp_path / "t")
    assert torch.equal(codebook, tokenizer.codebook) and fingerprint == "abc"


def test_resampling_repeats_the_rare_task_in_train_alone(pairs, tmp_path):
    encode(pairs, tmp_path / "t", FakeTokenizer(), "abc", balance=BalanceConfig(Balance.resample))
    once = tokens_of(read_examples(pairs, "train", "pose"))
    assert np.array_equal(stored(tmp_path / "t", "train", "pose"), once[[0, 1, 2, 0, 1, 2, 0]])
    assert len(stored(tmp_path / "t", "train", "derain")) == 7
    assert len(stored(tmp_path / "t", "test", "pose")) == 2
    assert load_manifests(tmp_path / "t", "test", "tokens")["pose"].balance is None


@pytest.mark.parametrize(("task", "flip"), [("pose", False), ("derain", True)])
def test_augmenting_makes_each_item_from_its_pair_and_copy(pairs, tmp_path, task, flip):
    balance = BalanceConfig(Balance.augment, target=17)
    encode(pairs, tmp_path / "t", FakeTokenizer(), "abc", balance=balance, seed=5, batch_size=4)
    originals = list(read_examples(pairs, "train", task))
    count = len(originals)
    items = [augment(originals[i % count], 5, i // count, flip=flip) for i in range(17)]
    wanted = tokens_of(items)
    assert np.array_equal(stored(tmp_path / "t", "train", task), wanted)
    assert len(np.unique(wanted.reshape(17, -1), axis=0)) == 17


def test_a_task_above_the_target_is_kept_whole_and_said_so(pairs, tmp_path, capsys):
    balance = BalanceConfig(Balance.augment, target=5)
    encode(pairs, tmp_path / "t", FakeTokenizer(), "abc", balance=balance)
    counts = load_manifests(tmp_path / "t", "train", "tokens")
    assert {task: manifest.count for task, manifest in counts.items()} == {"derain": 7, "pose": 5}
    assert "train/derain keeps its 7 pairs, above 5" in capsys.readouterr().err


def test_a_killed_encode_ends_like_an_uninterrupted_one(pairs, tmp_path, monkeypatch):
    monkeypatch.setattr("delvm.data.manifest.TOKENS_PER_RECORD", 8)
    monkeypatch.setattr("delvm.data.manifest.RECORDS_PER_SHARD", 2)  # so 2 pairs a shard
    settings = {"balance": AUGMENT, "batch_size": 8}
    encode(pairs, tmp_path / "whole", FakeTokenizer(), "abc", **settings)
    with pytest.raises(KeyboardInterrupt):
        encode(pairs, tmp_path / "killed", FakeTokenizer(fail_at=6), "abc", **settings)
    tokenizer = FakeTokenizer()
    encode(pairs, tmp_path / "killed", tokenizer, "abc", **settings)
    assert len(tokenizer.batches) == 8 + 6 - 6  # shards of train and of the rest, less those done
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_encode_again_keeps_and_other_settings_are_refused(pairs, tmp_path):
    encode(pairs, tmp_path / "t", FakeTokenizer(), "abc", balance=AUGMENT)
    before, tokenizer = contents(tmp_path / "t"), FakeTokenizer()
    encode(pairs, tmp_path / "t", tokenizer, "abc", balance=AUGMENT)
    with pytest.raises(UserError, match="fingerprint=abc, asked for is fingerprint=def"):
        encode(pairs, tmp_path / "t", tokenizer, "def", balance=AUGMENT)
    with pytest.raises(UserError, match="balance={'mode': 'augment'.*, asked for is .*None"):
        encode(pairs, tmp_path / "t", tokenizer, "abc")
    assert tokenizer.batches == [] and contents(tmp_path / "t") == before
    encode(pairs, tmp_path / "t", tokenizer, "def", overwrite=True)
    assert read_codebook(tmp_path / "t")[1] == "def"
    assert load_manifests(tmp_path / "t", "val", "tokens")["edges"].fingerprint == "def"


def test_what_does_not_go_together_is_said_before_any_work(pairs, tmp_path):
    out = tmp_path / "t"
    with pytest.raises(UserError, match=r"image size 16 .* != resolution 32 .*source.size=32"):
        encode(pairs, out, FakeTokenizer(32), "abc")
    with pytest.raises(UserError, match="no pairs in .*run `delvm prepare"):
        encode(tmp_path / "nothing", out, FakeTokenizer(), "abc")
    with pytest.raises(UserError, match="input and output are both"):
        encode(pairs, pairs, FakeTokenizer(), "abc", overwrite=True)
    with pytest.raises(UserError, match="batch_size=0 is below 1"):
        encode(pairs, out, FakeTokenizer(), "abc", batch_size=0)
    assert not out.exists()
