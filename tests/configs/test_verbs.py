"""Errors in the settings of the verbs, each alone and several at once."""

import inspect
from dataclasses import fields

import pytest
from hydra import compose, initialize_config_dir

from delvm.configs import config_root, evaluate
from delvm.configs.keys import SamplingKeys
from delvm.configs.register import register
from delvm.configs.validate import check
from delvm.errors import UserError
from delvm.evaluation.perplexity import evaluate_perplexity
from delvm.evaluation.reconstruction import evaluate_tokenizer
from delvm.evaluation.students import evaluate_students
from delvm.evaluation.video import evaluate_video


def checked(line: str) -> None:
    verb, *overrides = line.split()
    register(verb)
    with initialize_config_dir(str(config_root(verb)), version_base="1.3"):
        cfg = compose(verb, overrides)
    check(verb, cfg)


ERRORS = {
    "prepare splits=[trian]": "unknown split 'trian': did you mean 'train'?",
    "prepare splits=[]": "no splits given: set splits=[train,val,test]",
    "prepare shard_size=0": "shard_size=0 is below 1: set shard_size=1 or more",
    "encode input_dir=nowhere": "input_dir=nowhere not found: run `delvm prepare "
    "output_dir=nowhere`",
    "encode input_dir=. output_dir=.": "input_dir and output_dir are both .: set output_dir to "
    "another directory",
    "encode input_dir=. balance.examples_per_task=0": "balance.examples_per_task=0 is below 1: set "
    "it to 1 or more",
    "encode input_dir=. executor=processes executor.workers=-1": "executor.workers=-1 is below 0: "
    "set it to 0 or more",
    "generate prompt=a query=b temperature=-1": "temperature=-1.0 is below 0: set temperature=0 "
    "or more",
    "generate prompt=a query=b decoding=sample temperature=1 top_p=1.5": "top_p=1.5 is not in "
    "(0, 1]: set it to a probability, or to null",
    "generate prompt=a query=b decoding=sample": "decoding=sample needs a temperature above 0, not "
    "temperature=0: set temperature=1.0 or decoding=greedy",
    "generate prompt=a query=b temperature=0.5": "decoding=mean_embedding is deterministic, but "
    "temperature=0.5 samples: set decoding=sample or temperature=0",
    "generate prompt=a query=b top_k=5": "top_k=5 is for decoding=sample, not "
    "decoding=mean_embedding: set decoding=sample temperature=1.0, or top_k=null",
    "generate prompt=a query=b decoding=sample temperature=inf": "temperature=inf is not "
    "finite: set temperature=0 or more",
    "generate prompt= query=b": "missing value for prompt: set prompt=DIR",
    "generate prompt=a query=": "missing value for query: set query=IMAGE",
    "generate prompt=a query=s3://b/*.png": "query=s3://b/*.png is a URL, and delvm generate "
    "needs a local path: set query=PATH",
    "generate prompt=a.jsonl query=b": "query=b is not for prompt=a.jsonl, whose lines have "
    "queries of their own: set query=null",
    "generate prompt=. query=b prompt_dir=.": "prompt_dir=. is for the paths in a .json or .jsonl "
    "file, and prompt=. is a directory: set prompt_dir=null",
    "generate prompt=a.json query=b prompt_dir=none": "prompt_dir=none is not a directory: set "
    "it to one",
    "generate prompt={a:b} query=b": "prompt={'a': 'b'} is neither a path nor a list of paths: set "
    "prompt=DIR or 'prompt=[DIR1,DIR2]'",
    "generate prompt=[] query=b": "prompt=[] is neither a path nor a list of paths: set prompt=DIR "
    "or 'prompt=[DIR1,DIR2]'",
    "generate prompt=[a,null] query=b": "prompt=['a', None] is neither a path nor a list of paths: "
    "set prompt=DIR or 'prompt=[DIR1,DIR2]'",
    "generate prompt=[a,[b]] query=b": "prompt=['a', ['b']] is neither a path nor a list of paths: "
    "set prompt=DIR or 'prompt=[DIR1,DIR2]'",
    "generate prompt=[a,b.jsonl] query=b": "prompt=[a,b.jsonl] has a .jsonl file, whose lines have "
    "queries of their own: set prompt to that file alone, or leave it out",
    "generate video=a batch_size=4 overwrite=true": "video=a does not use batch_size=4 "
    "overwrite=true: set batch_size=32 overwrite=false, or video=null",
    "generate prompt=a query=b stride=2": "a prompt does not use stride=2: set stride=1, or "
    "video=PATH",
    "evaluate input_dir=. tasks=[poze]": "unknown task 'poze': did you mean 'pose'?",
    "evaluate input_dir=. mode=tokenizer students.a=x": "mode=tokenizer does not use "
    "students={a:x}: set students={}, or mode=students or mode=video or mode=perplexity",
    "evaluate input_dir=. mode=tokenizer decoding=greedy guidance=2": "mode=tokenizer does not use "
    "decoding=greedy guidance=2.0: set decoding=mean_embedding guidance=1.0, or mode=students",
    "evaluate input_dir=. mode=tokenizer shared_prompt=true": "mode=tokenizer does not use "
    "shared_prompt=true: set shared_prompt=false, or mode=students",
    "evaluate input_dir=. mode=video fid_features=x num_shots=2": "mode=video does not use "
    "fid_features=x num_shots=2: set fid_features=null num_shots=3",
    "evaluate input_dir=. num_prompts=0": "num_prompts=0 is below 1: set num_prompts=1 or more",
    "evaluate input_dir=. guidance=-1": "guidance=-1.0 is below 0: set it to 1 (off) or more",
    "generate prompt=a query=b guidance=nan": "guidance=nan is not finite: set it to 1 (off) or "
    "more",
    "evaluate input_dir=. fid_features=x": "mode=students does not use fid_features=x: set "
    "fid_features=null, or mode=tokenizer",
    "evaluate input_dir=. jsonl=x": "mode=students does not use jsonl=x: set jsonl=null, or "
    "mode=perplexity",
    "evaluate input_dir=. executor=ray executor.workers=-1": "executor.workers=-1 is below 0: set "
    "it to 0 or more",
    "evaluate input_dir=. mode=tokenizer executor=ray": "mode=tokenizer does not use "
    "executor=ray: set executor=local",
    "evaluate input_dir=. num_frames=2": "mode=students does not use num_frames=2: set "
    "num_frames=null, or mode=video",
    "evaluate input_dir=. mode=video vgg_weights=x": "vgg_weights=x not found: set "
    "vgg_weights=FILE to a VGG16 with torchvision's names, or vgg_weights=null to leave LPIPS out",
    "evaluate input_dir=. mode=video context_frames=0": "context_frames=0 is below 1: set "
    "context_frames=1 or more",
    "evaluate input_dir=. num_queries=0": "num_queries=0 is below 1: set num_queries=1 or more",
    "inspect input_dir=nowhere": "input_dir=nowhere not found: run `delvm encode "
    "output_dir=nowhere`",
    "inspect input_dir=. num_images=0": "num_images=0 is below 1: set num_images=1 or more",
    "convert input=a output_dir=b split=tset": "unknown split 'tset': did you mean 'test'?",
    "generate prompt=a query=b output=gs://b/answers": "output=gs://b/answers is a URL, and delvm "
    "generate needs a local path: set output=PATH",
    "export checkpoint=x format=llama output_dir=file:///x": "output_dir=file:///x is a URL, and "
    "delvm export needs a local path: set output_dir=PATH",
    "runs input_dir=none output=a.csv": "input_dir=none is not a directory: set it to one with "
    "runs",
}


@pytest.mark.slow
@pytest.mark.parametrize("line", ERRORS)
def test_each_error_alone(line):
    with pytest.raises(UserError) as caught:
        checked(line)
    assert str(caught.value) == ERRORS[line]


def test_several_errors_come_at_once():
    with pytest.raises(UserError) as caught:
        checked("prepare splits=[trian] shard_size=0")
    assert str(caught.value).splitlines() == [
        "2 errors in the config:",
        "  - unknown split 'trian': did you mean 'train'?",
        "  - shard_size=0 is below 1: set shard_size=1 or more",
    ]


def test_defaults_are_valid():
    checked("prepare")
    checked("convert input=a output_dir=b")


def test_a_comparison_uses_none_of_the_other_keys():
    with pytest.raises(UserError, match=r"compare does not use num_queries=9: set num_queries=100"):
        checked("evaluate compare=[a,b] num_queries=9")


def test_perplexity_is_measured_without_prompts(tmp_path):
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(UserError) as caught:
        checked(f"evaluate mode=perplexity jsonl={tmp_path}/a.jsonl num_shots=4 tasks=[pose]")
    assert str(caught.value) == (
        "mode=perplexity does not use tasks=[pose] num_shots=4: set tasks=[] num_shots=3, or "
        "mode=students"
    )


EVALUATIONS = {
    "mode=students": evaluate_students,
    "mode=video": evaluate_video,
    "mode=tokenizer": evaluate_tokenizer,
    "mode=perplexity": evaluate_perplexity,
}


@pytest.mark.parametrize("mode", EVALUATIONS)
def test_a_mode_uses_the_keys_that_its_function_takes(mode):
    """By name, so that no key is refused that would be used, or passed over in silence."""
    parameters = inspect.signature(EVALUATIONS[mode]).parameters
    taken = {key for key in evaluate.KEYS if key in parameters}
    if "sampling" in parameters:
        taken |= {each.name for each in fields(SamplingKeys)} - {"seed"}
        taken -= {"guidance"} if mode == "mode=video" else set()  # it is for prompts
    if "students" in parameters:
        taken |= {"precision"}
    assert evaluate.USED[mode] == taken
