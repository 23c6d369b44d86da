"""The corpora of the studies: procedural images of 32 px, 16 tokens each.

All have the same tokenizer, and the same validation and test images. Of a smaller corpus, the
training images of a task are the first ones of the larger.
"""

from collections.abc import Iterator

from experiments.studies.stages import Stage

TASKS = ("segmentation", "pose", "derain", "deblur")
HELD_OUT = ("colorization", "inpainting", "edges")
TOKENIZER = "tokenizer/tokenizer"
_FULL = 8000  # training pairs of a task

# Training pairs of each task.
PAIRS = {
    "full": dict.fromkeys(TASKS, _FULL),
    "tenth": dict.fromkeys(TASKS, _FULL // 10),
    "hundredth": dict.fromkeys(TASKS, _FULL // 100),
    # As in the paper: a task of many images, and rare ones.
    "long_tail": {"segmentation": _FULL, "pose": 400, "derain": 80, "deblur": 40},
    # Tasks that the others hold out.
    **{f"held_out_{count}": dict.fromkeys(HELD_OUT, count) for count in (16, 64, 256)},
}


def corpus(name: str, balance: str = "none") -> Iterator[Stage]:
    """The stages up to the tokens of a corpus.

    Args:
        name: In PAIRS.
        balance: An option of ``delvm encode balance=``.
    """
    yield from _pairs("full")
    yield Stage(
        TOKENIZER,
        "train experiment=demo_tokenizer data.path=OUT/pairs/full output_dir=OUT/tokenizer "
        "trainer.max_steps=2000 trainer.val_check_interval=500 logger=csv overwrite=true",
        (_last_shards("pairs/full"),),
    )
    if name != "full":
        yield from _pairs(name)
    tokens = tokens_path(name, balance)
    yield Stage(
        tokens_done(name, balance),
        f"encode balance={balance} input_dir=OUT/pairs/{name} tokenizer=OUT/tokenizer "
        f"output_dir=OUT/{tokens} overwrite=true",
        (_last_shards(f"pairs/{name}"), TOKENIZER),
    )


def tokens_path(name: str, balance: str = "none") -> str:
    """The directory of the tokens of a corpus, relative to OUT."""
    return f"tokens/{name}" if balance == "none" else f"tokens/{name}_{balance}"


def tokens_done(name: str, balance: str = "none") -> str:
    """What exists as soon as the tokens of a corpus are complete."""
    return f"{tokens_path(name, balance)}/test/segmentation/manifest.json"  # in order of names


def _pairs(name: str) -> Iterator[Stage]:
    counts = dict.fromkeys(TASKS, 0) | PAIRS[name]
    words = [
        f"{'' if task in TASKS else '+'}source.train.{task}={count}"
        for task, count in counts.items()
    ]
    if not set(HELD_OUT).isdisjoint(counts):
        words.append("source.held_out=[]")
    yield Stage(
        _last_shards(f"pairs/{name}"),
        f"prepare source.size=32 {' '.join(words)} source.num_val=128 source.num_test=128 "
        f"output_dir=OUT/pairs/{name} overwrite=true",
    )


def _last_shards(path: str) -> str:
    return f"{path}/test/edges/manifest.json"
