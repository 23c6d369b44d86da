"""`delvm train` is composed of objects: Lightning's names, callbacks, loggers, optimizers."""

import logging
import re
from pathlib import Path

import lightning as L
import pytest
import torch

from delvm.commands.instantiate import build_run
from delvm.errors import UserError
from delvm.training import DistillationModule, StudentModule, TokenizerModule
from delvm.training.callbacks import AtomicCheckpoint, ThroughputMonitor
from tests.training.runs import curve, student_config, tokenizer_config, train, write_ids

pytestmark = pytest.mark.filterwarnings("ignore:.*fast_dev_run")


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tokens")
    write_ids(root)
    return root


@pytest.fixture
def args(tokens: Path) -> list[str]:
    """Overrides of a short run for the command line."""
    return [
        "tokenizer=shapes_f8_32", "tokenizer.net.resolution=8", "tokenizer.net.channel_mult=[1]",
        "tokenizer.net.num_embeddings=16", "tokenizer.net.quantized_embed_dim=8", "student=tiny",
        "student.net.n_layers=1", "student.net.dim=32", "student.net.n_heads=2",
        f"data.path={tokens}", "data.pairs_per_sentence=2", "trainer.max_steps=2",
        "trainer.precision=32-true", "output_dir=run",
    ]  # fmt: skip


@pytest.mark.slow
def test_trainer_takes_lightnings_arguments(delvm, args, tmp_path):
    code, out, err = delvm(
        "train", *args, "trainer.limit_val_batches=2", "trainer.fast_dev_run=true"
    )
    assert code == 0, err
    assert not (tmp_path / "run").exists()  # a dry run writes nothing
    more = ("trainer.accumulate_grad_batches=4", "trainer.profiler=simple")
    code, out, err = delvm("train", *args, *more, "trainer.detect_anomaly=true")
    assert code == 0, err
    assert (tmp_path / "run" / "student" / "config.json").is_file()


def test_mistyped_trainer_argument_names_the_nearest(delvm, args):
    code, out, err = delvm("train", *args, "trainer.limit_val_batch=2")
    assert code == 2 and err.count("\n") == 1
    assert "did you mean 'trainer.limit_val_batches'?" in err


@pytest.mark.slow
@pytest.mark.parametrize("debug", ["fast", "overfit", "profile"])
def test_debug_options_run(delvm, args, debug, caplog):
    # Lightning's handler holds the stderr of its import, so its messages are taken from the logger.
    monitored = logging.getLogger("lightning.pytorch")
    monitored.addHandler(caplog.handler)
    without_steps = [each for each in args if not each.startswith("output_dir")]
    code, out, err = delvm("train", *without_steps, f"debug={debug}")
    monitored.removeHandler(caplog.handler)
    assert code == 0, err
    assert ("run_training_batch" in caplog.text) == (debug == "profile")  # Lightning's report


@pytest.mark.slow
def test_debug_overfit_gets_near_zero(delvm, args, tmp_path):
    words = [each for each in args if not each.startswith(("output_dir", "trainer.max_steps"))]
    code, out, err = delvm("train", *words, "debug=overfit", "data.batch_size=2")
    assert code == 0, err
    *_, last = re.findall(r"loss (\d+\.\d+)", err)
    assert float(last) < 0.3, err


@pytest.mark.slow
def test_a_foreign_callback_is_added_and_ours_are_removed(tokens, tmp_path):
    early = (
        "+callbacks.early={_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: val/loss}"
    )
    cfg = student_config(tokens, 2, early, "~callbacks.throughput", f"output_dir={tmp_path}")
    trainer = build_run(cfg).trainer
    kinds = {type(each) for each in trainer.callbacks}
    assert L.pytorch.callbacks.EarlyStopping in kinds and ThroughputMonitor not in kinds
    assert isinstance(trainer.checkpoint_callback, AtomicCheckpoint)


@pytest.mark.slow
def test_callbacks_none_trains_without_checkpoints(tokens, tmp_path):
    train(student_config(tokens, 2, "callbacks=none"), tmp_path)
    assert not (tmp_path / "checkpoints").exists()
    assert len(curve(tmp_path, "train/loss")) == 2


def test_several_loggers_at_once(tokens, tmp_path):
    cfg = student_config(tokens, 2, "logger=[csv,tensorboard,wandb]", f"output_dir={tmp_path}")
    names = [type(each).__name__ for each in build_run(cfg).trainer.loggers]
    assert names == ["CSVLogger", "TensorBoardLogger", "WandbLogger"]


def test_a_logger_by_target_alone(tokens, tmp_path):
    logger = "+logger.mine={_target_: lightning.pytorch.loggers.CSVLogger, save_dir: mine}"
    train(student_config(tokens, 2, logger), tmp_path)
    assert list(Path("mine").rglob("metrics.csv"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "kind"),
    [("adamw", "AdamW"), ("adafactor", "Adafactor"), ("schedulefree", "AdamWScheduleFree")],
)
def test_optimizers(tokens, tmp_path, option, kind):
    cfg = student_config(
        tokens, 4, f"optimizer={option}", "scheduler=none", f"output_dir={tmp_path}"
    )
    run = build_run(cfg)
    run.fit()
    assert type(run.trainer.optimizers[0]).__name__ == kind
    assert len(curve(tmp_path, "train/loss")) == 4


def test_any_optimizer_by_its_path(tokens, tmp_path):
    cfg = student_config(tokens, 2, f"output_dir={tmp_path}")
    cfg.optimizer = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1}
    run = build_run(cfg)
    run.fit()
    assert type(run.trainer.optimizers[0]) is torch.optim.SGD


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["warmup_cosine", "cosine", "none"])
def test_schedulers(tokens, tmp_path, scheduler):
    train(student_config(tokens, 4, f"scheduler={scheduler}"), tmp_path)
    rates = curve(tmp_path, "train/lr/pg1") if scheduler != "none" else []
    assert len(set(rates)) == {"warmup_cosine": 3, "cosine": 4, "none": 0}[scheduler]


@pytest.mark.slow
def test_each_module_option_builds_its_class(tokens, images, tmp_path):
    teacher = train(student_config(tokens, 1), tmp_path / "teacher")
    output = f"output_dir={tmp_path / 'run'}"
    for cfg, kind in (
        (student_config(tokens, 1, output), StudentModule),
        (
            student_config(
                tokens, 1, output, "module=distillation", f"teacher.checkpoint={teacher}"
            ),
            DistillationModule,
        ),
        (tokenizer_config(images, 1, output), TokenizerModule),
    ):
        assert type(build_run(cfg).module) is kind


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Image shards of flat colors."""
    from tests.training.conftest import write_flat_images

    root = tmp_path_factory.mktemp("images")
    write_flat_images(root)
    return root


@pytest.mark.slow
def test_a_module_that_nothing_can_build_is_an_error(tokens, tmp_path):
    cfg = student_config(tokens, 1, f"output_dir={tmp_path}")
    cfg.module = {"_target_": "nowhere.Module"}
    with pytest.raises(UserError, match="nowhere"):
        build_run(cfg)


def test_a_subclass_of_our_module_is_what_is_trained(tokens, tmp_path):
    """A class from outside is trained as itself, never as something else."""
    cfg = student_config(tokens, 1, f"output_dir={tmp_path}")
    cfg.module._target_ = f"{__name__}.Doubled"
    run = build_run(cfg)
    assert type(run.module) is Doubled
    run.fit()
    assert run.module.calls == 1


class Doubled(StudentModule):
    """Trains on twice the loss, and counts its steps."""

    calls = 0

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        self.calls += 1
        return 2 * super().training_step(batch, batch_idx)
