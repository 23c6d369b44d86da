"""The data module of streamed images: what a checkpoint of it continues."""

from collections import Counter

import pytest

import delvm
from delvm.errors import UserError
from delvm.interop.load import load_tokenizer
from delvm.training.data.datamodules import ImageData, check_data
from delvm.training.data.streaming import StreamingImageDataModule
from tests.data.datasets.streams import IMAGE_COUNTS, IMAGE_KINDS, write_images
from tests.training.runs import tokenizer_config, train
from tests.training.stream_ranks import Ranks

TOTAL = sum(IMAGE_COUNTS[task] * IMAGE_KINDS[task] for task in IMAGE_COUNTS)


@pytest.fixture
def root(tmp_path):
    return write_images(tmp_path / "images")


@pytest.fixture(autouse=True)
def end_loaders():
    yield
    Ranks.end_all()


def open_ranks(root, ranks=1, state=None, **changes):
    return Ranks(StreamingImageDataModule, root, ranks, state, **changes)


def pixels(batches):
    return [image.numpy().tobytes() for batch in batches for image in batch["pixels"]]


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (1, 2), (2, 2)])
@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.slow
def test_resume_continues_with_the_next_batch(root, ranks, workers, steps):
    """To the pixel, with as many ranks and workers, also beyond the first epoch."""
    unbroken = pixels(open_ranks(root, ranks, num_workers=workers).pull(20))
    first = open_ranks(root, ranks, num_workers=workers)
    seen = pixels(first.pull(steps))
    again = open_ranks(root, ranks, first.state_dict(), num_workers=workers)
    assert seen + pixels(again.pull(20 - steps)) == unbroken


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1), (2, 3)])
def test_resume_with_another_number_of_ranks(root, before, after, capsys):
    """At the end of the epoch each image was read once."""
    first = open_ranks(root, before, batch_size=1)
    seen = Counter(pixels(first.pull(6 // before)))
    then = open_ranks(root, after, first.state_dict(), batch_size=1)
    assert f"{before} ranks x 1 workers had read it, now {after} x 1 do" in capsys.readouterr().err
    for module in then.modules:
        data = module.train
        for task, shuffle in enumerate(data.layout.shuffles):
            stream = data.open_stream(task, data.rank)
            sequence = data.state.sequences[task]
            while sequence[stream.position.element].window < shuffle.num_windows:
                seen[data._next_image(task, stream).transpose(2, 0, 1).tobytes()] += 1
    assert len(seen) == TOTAL and set(seen.values()) == {1}


def test_tokenizer_can_train_on_it(root):
    module = StreamingImageDataModule(str(root))
    check_data(module, ImageData, "module=tokenizer")
    assert module.image_size == 8 and module.preview_images(3).shape == (3, 3, 8, 8)
    assert len(module.train_dataloader())


@pytest.mark.parametrize("experiment", ["tokenizer_f16_8192_ema", "tokenizer_shapes_64"])
def test_documented_command_composes(experiment):
    words = [f"experiment={experiment}", "data=streaming_images", "data.path=s3://BUCKET/images"]
    data = delvm.compose("train", words).data
    assert data._target_ == "delvm.training.data.streaming.StreamingImageDataModule"
    assert (data.path, data.timeout_s) == ("s3://BUCKET/images", 300)


def test_overfit_batches_is_refused(root):
    module = StreamingImageDataModule(str(root))
    module.overfit_batches = 1
    with pytest.raises(UserError, match="set data=images"):
        module.train_dataloader()


@pytest.mark.slow
def test_resumed_run_continues_its_data(images, tmp_path):
    """Six steps in one job and in two: bit-identical weights."""
    stream = ("data=streaming_images", "data.num_workers=2")
    train(tokenizer_config(images, 6, *stream), tmp_path / "one")
    two = tokenizer_config(images, 6, *stream, "trainer.val_check_interval=3")
    two.callbacks.stop_at_step.step = 3
    train(two, tmp_path / "two")
    two.callbacks.stop_at_step.step, two.resume = None, "auto"
    train(two, tmp_path / "two")
    one, resumed = (load_tokenizer(tmp_path / name).state_dict() for name in ("one", "two"))
    assert all(one[key].equal(resumed[key]) for key in one)


@pytest.mark.slow
def test_checkpoint_of_the_other_reader_is_refused(images, tmp_path):
    train(tokenizer_config(images, 2), tmp_path)
    with pytest.raises(UserError, match="was trained on data=images.*: set data=images"):
        train(tokenizer_config(images, 4, "data=streaming_images", "resume=auto"), tmp_path)
