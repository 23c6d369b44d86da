"""Errors in the settings of the verbs, each alone and several at once."""

import pytest
from hydra import compose, initialize_config_dir

from delvm.configs import config_root
from delvm.configs.register import register
from delvm.configs.validate import check
from delvm.errors import UserError


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
    "evaluate input_dir=. tasks=[poze]": "unknown task 'poze': did you mean 'pose'?",
    "evaluate input_dir=. mode=tokenizer students.a=x": "students={a} are not evaluated by "
    "mode=tokenizer: set mode=students",
    "evaluate input_dir=. mode=tokenizer decoding=greedy": "decoding=greedy is for the answers of "
    "students, not for mode=tokenizer: set decoding=mean_embedding or mode=students",
    "evaluate input_dir=. num_prompts=0": "num_prompts=0 is below 1: set num_prompts=1 or more",
    "evaluate input_dir=. guidance=-1": "guidance=-1.0 is below 0: set it to 1 (off) or more",
    "generate prompt=a query=b guidance=nan": "guidance=nan is not finite: set it to 1 (off) or "
    "more",
    "evaluate input_dir=. mode=tokenizer shared_prompt=true": "shared_prompt=True is for the "
    "answers of students, not for mode=tokenizer: set shared_prompt=false or mode=students",
    "evaluate input_dir=. mode=tokenizer guidance=2": "guidance=2.0 is for the answers of "
    "students, not for mode=tokenizer: set guidance=1.0 or mode=students",
    "evaluate input_dir=. fid_features=x": "fid_features=x is for the rFID of mode=tokenizer: "
    "set mode=tokenizer or fid_features=null",
    "evaluate input_dir=. executor=ray executor.workers=-1": "executor.workers=-1 is below 0: set "
    "it to 0 or more",
    "evaluate input_dir=. mode=tokenizer executor=ray": "executor=ray is for mode=students and "
    "mode=video: set executor=local",
    "evaluate input_dir=. num_frames=2": "num_frames=2 is for mode=video: set mode=video or "
    "num_frames=null",
    "evaluate input_dir=. mode=tokenizer vgg_weights=x": "vgg_weights=x is for mode=video: set "
    "mode=video or vgg_weights=null",
    "evaluate input_dir=. mode=video num_shots=2": "num_shots=2 is for answers to prompts, and "
    "mode=video has none: set num_shots=3 or mode=students",
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
