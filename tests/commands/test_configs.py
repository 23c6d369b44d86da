"""Every file in conf/ composes, and means what it says."""

import re
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from delvm.commands import VERBS
from delvm.commands.app import compose
from delvm.commands.build import build
from delvm.commands.help import groups, options, page
from delvm.configs import config_dir, config_root
from delvm.configs.validate import config_errors
from delvm.configs.verbs import ROOTS
from delvm.data.augment import BalanceConfig, BalanceMode
from delvm.data.sources.shapes.source import TRAIN_COUNTS, Shapes
from delvm.models.discriminator import DiscriminatorNorm
from delvm.models.transformer import Init, TransformerConfig
from delvm.training.losses import KLDirection
from delvm.training.tokenizer import BetaOn, PerceptualLoss

CONF = config_dir()
GIVEN = {
    "generate": ["prompt=a", "query=b"],
    "convert": ["input=a", "output_dir=b"],
    "runs": ["input_dir=a", "output=b"],
    "export": ["checkpoint=a", "format=llama", "output_dir=b"],
}  # values that have no default
OPTIONS = [
    (verb, group, option)
    for verb in VERBS
    for group in groups(verb)
    for option in options(verb, group)
]


def test_every_file_is_reached():
    reached = {config_root(verb) / f"{verb}.yaml" for verb in VERBS}
    reached |= {config_root(verb) / group / f"{option}.yaml" for verb, group, option in OPTIONS}
    assert set(CONF.rglob("*.yaml")) == reached
    assert {path.suffix for path in CONF.rglob("*") if path.is_file()} == {".yaml"}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.slow
def test_defaults_compose(verb):
    schema = DictConfig if verb == "train" else ROOTS[verb]
    assert isinstance(compose(verb, GIVEN.get(verb, [])), schema)


@pytest.mark.slow
@pytest.mark.parametrize("verb, group, option", OPTIONS)
def test_every_option_composes(verb, group, option):
    extra = ["teacher.checkpoint=x"] if option == "checkpoint" else []
    if group.startswith(("module/loss/", "module/on_policy")):
        extra = ["module=distillation"]
    if group == "module/on_policy/selection":
        extra += ["module/on_policy=default"]
    if group == "source" and not option.startswith(("shapes", "stereo", "reasoning")):
        extra = ["source.path=x", *(["source.task=x"] if option == "paired" else [])]
    cfg = compose(verb, [f"{group}={option}", *extra, *GIVEN.get(verb, [])])
    # What is given here may be refused, but the checks themselves must not fail.
    config_errors(verb, cfg if verb == "train" else OmegaConf.structured(cfg))


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_file_says_what_it_is(path: Path):
    lines = path.read_text("utf-8").splitlines()
    comments = [line for line in lines if line.startswith("#") and "@package" not in line]
    assert comments, f"{path} starts with no comment: help pages show it"
    bare = path.stem == "none" or path == CONF / "trainer/gpu.yaml"  # which is cpu and more
    bare |= "  - distillation" in lines  # which names it
    if path.parent.name not in ("experiment", "sweep", "debug", "preset", "suite") and not bare:
        assert any(line.startswith("  - /schema/") for line in lines), f"{path} names no schema"


@pytest.mark.slow
@pytest.mark.parametrize("name", options("train", "experiment"))
def test_experiments_fit_together(name):
    found = config_errors("train", compose("train", [f"experiment={name}"]))
    # Whether data and weights exist is not for the config to say, nor whether there is a GPU.
    ignored = ("data.path=", "checkpoint not", "student not found", "trainer.accelerator=gpu")
    ignored += ("module.perceptual_loss=lpips needs vgg_weights",)  # a file of the user's
    assert [each for each in found if not each.startswith(ignored)] == []


@pytest.mark.slow
def test_values_have_the_types_of_the_schemas():
    cfg = compose("train", ["module=distillation", "module.loss.direction=inverse", "data=images"])
    assert cfg.module._target_ == "delvm.training.distillation.DistillationModule"
    assert cfg.module.loss.direction is KLDirection.reverse
    assert cfg.data._target_ == "delvm.training.data.datamodules.ImageDataModule"
    cfg = compose("train", ["module=tokenizer", "module.codebook_ema_decay=null"])
    assert cfg.module.codebook_ema_decay is None
    cfg = compose("encode", ["balance=augment", "balance.examples_per_task=7"])
    assert cfg.balance == BalanceConfig(BalanceMode.augment, 7)


@pytest.mark.slow
@pytest.mark.parametrize("name", options("train", "student"))
def test_help_names_the_parameters_of_every_student(name):
    comment = options("train", "student")[name]
    assert comment in page("train")
    stated = re.search(r"about ([\d.,]+)M parameters", comment)
    assert stated, f"conf/student/{name}.yaml does not name its parameters: {comment}"
    with torch.device("meta"):
        count = build(
            compose("train", [f"student={name}"]).student.net, "student"
        ).parameter_count()
    last_digit = 10.0 ** -len(stated[1].partition(".")[2])
    assert float(stated[1].replace(",", "")) == pytest.approx(count / 1e6, abs=last_digit / 2)


@pytest.mark.parametrize(("name", "dim", "heads"), [("300m", 1024, 8), ("1b", 2048, 16)])
def test_largest_students_are_those_of_the_paper(name, dim, heads):
    with torch.device("meta"):
        net = build(compose("train", [f"student={name}"]).student.net, "student").config
    assert net == TransformerConfig(dim=dim, n_layers=22, n_heads=heads)
    assert net.init is Init.reference and net.max_seq_len == 2048


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, side, tokens, codes",
    [("f16_8192", 256, 256, 8192), ("shapes_f8_64", 64, 64, 1024), ("shapes_f8_32", 32, 16, 512)],
)
def test_tokenizer_sizes_are_as_named(name, side, tokens, codes):
    with torch.device("meta"):
        net = build(compose("train", [f"tokenizer={name}"]).tokenizer.net, "tokenizer")
    assert (net.resolution, net.tokens_per_image, net.codebook_size) == (side, tokens, codes)


def test_the_source_config_is_the_sources_default():
    source = compose("prepare").source
    assert source._target_ == "delvm.data.sources.shapes.source.Shapes"
    plain = Shapes()
    assert (source.size, source.seed, source.train) == (plain.size, plain.seed, TRAIN_COUNTS)
    assert source.held_out == plain.held_out
    for split in ("val", "test"):
        assert plain.counts(split) == dict.fromkeys(
            [*source.train, *source.held_out], getattr(source, f"num_{split}")
        )


@pytest.mark.slow
def test_dictionaries_take_new_keys():
    cfg = compose("train", ["data.task_weights.derain=2", "data.task_weights.pose=0.5"])
    assert cfg.data.task_weights == {"derain": 2.0, "pose": 0.5}
    assert compose("train", ["data.task_weights={derain: 2}"]).data.task_weights == {"derain": 2.0}
    cfg = compose("evaluate", ["students.a=x/last.ckpt", "students.b=y"])
    assert cfg.students == {"a": "x/last.ckpt", "b": "y"}
    assert compose("prepare", ["~source.train.pose"]).source.train.keys() == {
        "segmentation",
        "derain",
        "deblur",
    }


@pytest.mark.slow
def test_a_key_may_have_the_name_of_another_verbs_group():
    cfg = compose("generate", ["tokenizer=a/b.ckpt", "student=small", *GIVEN["generate"]])
    assert (cfg.tokenizer, cfg.student) == ("a/b.ckpt", "small")
    assert compose("encode", ["tokenizer=x"]).tokenizer == "x"
    # and that of its own stays a group
    assert compose("train", ["student=tiny"]).student.net.n_layers == 4


@pytest.mark.slow
def test_the_taming_experiment_has_the_numbers_of_its_config():
    """configs/imagenet_vqgan.yaml, and the defaults of VQLPIPSWithDiscriminator and VQModel."""
    cfg = compose("train", ["experiment=tokenizer_f16_8192_taming"])
    module, optimizer = cfg.module, cfg.optimizer
    assert (module.l1_weight, module.l2_weight, module.perceptual_weight) == (2, 0, 1)
    assert module.perceptual_loss is PerceptualLoss.lpips and module.codebook_weight == 1
    assert (module.disc_start, module.disc_weight) == (250001, 0.8)
    assert (module.disc_dim, module.disc_num_layers) == (64, 3)
    assert module.disc_norm is DiscriminatorNorm.batch and module.beta_on is BetaOn.codes
    assert module.codebook_ema_decay is None and module.dead_code_after is None
    assert cfg.tokenizer.net.commitment_cost == 0.25
    assert optimizer.lr == pytest.approx(4.5e-6 * cfg.data.batch_size)
    assert list(optimizer.betas) == [0.5, 0.9] and optimizer.weight_decay == 0
    assert not cfg.scheduler and cfg.trainer.gradient_clip_val is None
    assert "weight_ema" not in cfg.callbacks
