"""Mistakes in overrides and config files: one line, the nearest valid name, exit code 2."""

from pathlib import Path

import pytest

LINES = {
    # unknown keys, at their own level
    "train studnet=tiny": "unknown key 'studnet': did you mean 'student'?",
    "train student.net.n_layesr=4": "unknown key 'student.net.n_layesr': did you mean "
    "'student.net.n_layers'?",
    "train student.nte.dim=4": "unknown key 'student.nte': did you mean 'student.net'?",
    "train student.n_layers=4": "unknown key 'student.n_layers': did you mean "
    "'student.net.n_layers'?",
    "train data.batchsize=4": "unknown key 'data.batchsize': did you mean 'data.batch_size'?",
    "train module.loss.label_smothing=0": "unknown key 'module.loss.label_smothing': did you "
    "mean 'module.loss.label_smoothing'?",
    "train trainer.limit_val_batch=2": "unknown key 'trainer.limit_val_batch': did you mean "
    "'trainer.limit_val_batches'?",
    "train data=images data.pairs_per_sentence=2": "unknown key 'data.pairs_per_sentence': it "
    "is a key of data=sentences",
    "train data.foo=2": "unknown key 'data.foo': choose from: batch_size, images_per_sentence, "
    "num_val_examples, num_workers, packing, pairs_per_sentence, path, seed, "
    "shuffle_annotations, shuffle_window_shards, task_weights",
    "train module.kd_weight=2": "unknown key 'module.kd_weight': it is now called "
    "module=distillation module.loss.kd_weight",
    "train module.loss.kd_weight=2": "unknown key 'module.loss.kd_weight': it is a key of "
    "module=distillation",
    "prepare source.sise=32": "unknown key 'source.sise': did you mean 'source.size'?",
    "encode balance.mod=augment": "unknown key 'balance.mod': did you mean 'balance.mode'?",
    "generate promt=x": "unknown key 'promt': did you mean 'prompt'?",
    "train hydra.runn.dir=x": "unknown key 'hydra.runn': did you mean 'hydra.run'?",
    # a plus does not smuggle them in
    "train +student.net.n_layesr=4": "unknown key 'student.net.n_layesr': did you mean "
    "'student.net.n_layers'?",
    "train +data.foo=4": "unknown key 'data.foo': choose from: batch_size, images_per_sentence, "
    "num_val_examples, num_workers, packing, pairs_per_sentence, path, seed, "
    "shuffle_annotations, shuffle_window_shards, task_weights",
    "generate ++sed=4": "unknown key 'sed': did you mean 'seed'?",
    # group options
    "train student=tny": "unknown option student=tny: did you mean 'tiny'?",
    "train experiment=studnt_shapes_64": "unknown option experiment=studnt_shapes_64: did you "
    "mean 'student_shapes_64'?",
    "train callbacks=[default,alram]": "unknown option callbacks=alram: did you mean 'alarm'?",
    "train logger=[csv,wnadb]": "unknown option logger=wnadb: did you mean 'wandb'?",
    "encode balance=agument": "unknown option balance=agument: did you mean 'augment'?",
    "train student=null": "Config group override must be a string or a list. Got NoneType: "
    "write GROUP=OPTION, see delvm train --help",
    # values of the wrong type
    "train data.batch_size=abc": "data.batch_size=abc: Value 'abc' of type 'str' could not be "
    "converted to Integer",
    "train data.batch_size=1.5": "data.batch_size=1.5: Value '1.5' of type 'float' could not be "
    "converted to Integer",
    "train optimizer.lr=fast": "optimizer.lr=fast: Value 'fast' of type 'str' could not be "
    "converted to Float",
    "train trainer.gradient_clip_val=x": "trainer.gradient_clip_val=x: Value 'x' of type 'str' "
    "is incompatible with type hint 'Optional[Union[int, float]]'",
    "train optimizer.betas=3": "optimizer.betas=3: a list is needed: set optimizer.betas=[3]",
    "prepare splits=test": "splits=test: a list is needed: set splits=[test]",
    "train module.compile=7.5": "module.compile=7.5: Value '7.5' is not a valid bool (type float)",
    "train student.net=5": "student.net=5: Invalid type assigned: int is not a subclass of "
    "student_student_net. value: 5",
    "train module=distillation module.loss.direction=forwrad": "module.loss.direction=forwrad: "
    "Invalid value 'forwrad', expected one of [forward, reverse, inverse]: did you mean "
    "'forward'?",
    "train module/loss/classes=top_k": "module/loss/classes is a group of module=distillation: "
    "set module=distillation",
    "generate device=gpu": "device=gpu: Invalid value 'gpu', expected one of [auto, cpu, cuda]: "
    "did you mean 'cuda'?",
    "prepare source.size=null": "source.size=null: field 'source.size' is not Optional",
    "evaluate input_dir=. executor=processes": "executor=processes is not for delvm evaluate: set "
    "executor=local or ray",
    "evaluate students=shapes": "students=shapes: names with a value each are needed: set "
    "students.NAME=shapes",
    "evaluate students=[shapes]": "students=[shapes]: names with a value each are needed: set "
    "students.NAME=shapes",
    "prepare source.train.pose=x": "source.train.pose=x: Value 'x' of type 'str' could not be "
    "converted to Integer",
    # missing values
    "generate": "missing values for prompt, query: set prompt=DIR query=IMAGE, or video=PATH",
    "generate prompt=x": "missing value for query: set query=IMAGE",
    "train teacher=checkpoint": "missing value for teacher.checkpoint: set teacher.checkpoint=PATH",
    # not overrides at all
    "train foo": "'foo' is not KEY=VALUE (without spaces): see delvm train --help for the keys",
    "train data.path = foo": "'data.path' is not KEY=VALUE (without spaces): see delvm train "
    "--help for the keys",
    "generate query=a(1).png": "cannot read the override query=a(1).png (mismatched input '.' "
    "expecting <EOF>): quote what has special characters, twice: \"query='a(1).png'\"",
    "generate query={id}_img.png": "cannot read the override query={id}_img.png (no viable "
    "alternative at input '{id}'): quote what has special characters, twice: "
    "\"query='{id}_img.png'\"",
    "generate prompt=[a(1).png,b]": "cannot read the override prompt=[a(1).png,b] (no viable "
    "alternative at input '[a(1).'): quote what has special characters",
    "train seed=1,2": "seed=1,2 is several values: add -m to sweep, or write seed=[1,2]",
    "train seed=range(3)": "Sweep parameters 'seed=range(3)' requires --multirun",
    "train init_from=${nope}": "init_from: Interpolation key 'nope' not found",
    "prepare balance=none": "delvm prepare has no group 'balance': choose from: source",
    # a path where the name of an option is expected
    "train data=outputs/tokens": "data=outputs/tokens is not one of images, sentences, streaming, "
    "streaming_images: for a directory set data.path=outputs/tokens",
    "train student=shapes": "student=shapes is not one of 1b, 300m, 7b, 80m, small, tiny: for "
    "weights to start from set init_from=shapes",
    "train teacher=outputs/teacher": "teacher=outputs/teacher is not one of checkpoint, none, "
    "offline: for weights set teacher.checkpoint=outputs/teacher",
    "train tokenizer=shapes": "tokenizer=shapes is not one of f16_8192, shapes_f16_64, "
    "shapes_f8_32, shapes_f8_64: its weights are those that made the tokens in data.path",
    # names that other projects have
    "train model=tiny": "unknown key 'model': did you mean 'student'?",
    "train learning_rate=1": "unknown key 'learning_rate': did you mean 'optimizer.lr'?",
    "generate model=shapes": "unknown key 'model': did you mean 'student'?",
    # flags
    "generate --prompt examples/derain": "unknown flag '--prompt': keys are set without dashes, "
    "as prompt=VALUE",
    "train --learning-rate=1": "unknown flag '--learning-rate': keys are set without dashes, as "
    "learning_rate=VALUE",
    "train --multrun": "unknown flag '--multrun': did you mean '--multirun'?",
    "train -m --cfg job": "Only one of --run, --multirun, --cfg, --info and --shell_completion "
    "can be specified",
    "train --resolve": "The --resolve flag can only be used in conjunction with --cfg or --help",
}


@pytest.mark.slow
@pytest.mark.parametrize("words", LINES)
def test_one_line(delvm, words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert delvm(*words.split()) == (2, "", f"delvm: {LINES[words]}\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_sweep_is_checked_before_its_first_job(delvm, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, out, err = delvm("train", "-m", "student=tiny,smal")
    assert (code, out) == (2, "")
    assert err == "delvm: unknown option student=smal: did you mean 'small'?\n"


FILES = {
    "student: {net: {n_layesr: 3}}": "experiment/mine.yaml: unknown key 'student.net.n_layesr': "
    "did you mean 'student.net.n_layers'?",
    "studnet: {net: {dim: 3}}": "experiment/mine.yaml: unknown key 'studnet': did you mean "
    "'student'?",
    "trainer: {max_steps: many}": "experiment/mine.yaml: trainer.max_steps: Value 'many' of type "
    "'str' could not be converted to Integer",
    "defaults: [override /studnet: tiny]": "experiment/mine.yaml: delvm train has no group "
    "'studnet': did you mean 'student'?",
    "defaults: [override /student: tny]": "unknown option student=tny: did you mean 'tiny'?",
    "trainer: {max_steps: [": "a config file is not valid YAML: ",
}


@pytest.mark.slow
@pytest.mark.parametrize("text", FILES)
def test_mistakes_in_a_users_own_file(delvm, text, monkeypatch, tmp_path):
    own = tmp_path / "it's mine" / "experiment"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text(f"# @package _global_\n{text}\n")
    code, out, err = delvm("train", "--config-dir", str(own.parent), "experiment=mine")
    assert (code, out) == (2, "")
    assert err.startswith(f"delvm: {FILES[text]}") and err.count("\n") == 1


def test_a_users_own_option_composes(delvm, tmp_path):
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "mine.yaml").write_text(
        "defaults: [/schema/student/student@_here_, _self_]\nnet: {dim: 48, n_heads: 3}\n"
    )
    words = ("train", "-cd", str(tmp_path), "student=mine", "--cfg", "job", "-p", "student.net")
    code, out, err = delvm(*words)
    assert (code, err) == (0, "")
    assert "dim: 48" in out and "n_layers: 22" in out
    code, _, err = delvm("train", "-cd", str(tmp_path / "none"))
    assert code == 2 and err.startswith("delvm: Additional config directory ")


@pytest.mark.slow
def test_full_errors_on_request(delvm, monkeypatch):
    from delvm.errors import UserError

    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(UserError, match="did you mean 'student'"):
        delvm("train", "studnet=tiny")


@pytest.mark.slow
def test_cfg_prints_and_does_nothing_else(delvm, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert "kd_weight" not in delvm("train", "--cfg", "job")[1]
    assert "kd_weight: 1.0" in delvm("train", "module=distillation", "--cfg", "job")[1]
    code, out, _ = delvm("train", "--cfg", "job", "--resolve", "-p", "output_dir")
    assert (code, out) == (0, "outputs/student\n")
    assert "hydra:" in delvm("train", "--cfg", "hydra")[1]
    assert list(Path().iterdir()) == []


def test_hydras_parser_refuses_values_of_flags(delvm):
    code, out, err = delvm("train", "--cfg", "jb")
    assert (code, out) == (2, "") and "invalid choice: 'jb'" in err.splitlines()[-1]
