"""Each shipped experiment trains as its config says, on data of the size that it asks for."""

from math import isfinite

import pytest
import torch

from delvm.commands.app import compose
from delvm.commands.build import build
from delvm.commands.help import options
from delvm.interop.fingerprint import fingerprint
from delvm.interop.save import save_model
from delvm.models.transformer import Transformer
from tests.training.runs import curve

SHAPES = (
    "source=shapes", "splits=[train,val]", "source.train.segmentation=8", "source.train.pose=8",
    "source.train.derain=8", "source.train.deblur=8", "source.num_val=4",
)  # fmt: skip
# Two steps on a CPU; the discriminator of a tokenizer takes part from the first.
SMALL = (
    "trainer.max_steps=2", "trainer.accelerator=cpu", "trainer.val_check_interval=2",
    "trainer.log_every_n_steps=1", "data.batch_size=1", "data.num_workers=0",
    "data.num_val_examples=1",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", options("train", "experiment"))
def test_experiment_trains_two_steps(name, delvm, tmp_path):
    cfg = compose("train", [f"experiment={name}"])
    of_tokenizer = cfg.module._target_.endswith("TokenizerModule")
    side = cfg.tokenizer.net.resolution
    assert delvm("prepare", *SHAPES, f"source.size={side}", "output_dir=pairs")[0] == 0
    words = [f"experiment={name}", *SMALL, "data.path=pairs", "output_dir=run"]
    if of_tokenizer:
        words += ["module.disc_start=0"] if cfg.module.disc_weight else []
    else:
        torch.manual_seed(0)
        tokenizer = build(cfg.tokenizer.net, "tokenizer")
        save_model(tokenizer, tmp_path / "tokenizer")
        encode = "tokenizer=tokenizer", "splits=[train,val]", "input_dir=pairs", "output_dir=tokens"
        assert delvm("encode", *encode)[0] == 0
        words += ["data.path=tokens"]
    if cfg.module._target_.endswith("DistillationModule"):
        config = compose("train", ["experiment=demo_teacher"]).student.net
        teacher = build(config, "student")
        teacher.load_codebook(tokenizer.codebook.detach(), fingerprint(tokenizer))
        assert isinstance(teacher, Transformer)
        save_model(teacher, tmp_path / "teacher")
        words += ["teacher.checkpoint=teacher"]
    code, out, err = delvm("train", *words)
    assert code == 0, err
    assert (tmp_path / "run/checkpoints/step=000002.ckpt").exists()
    (loss,) = curve(tmp_path / "run", "val/loss")
    assert isfinite(loss)
