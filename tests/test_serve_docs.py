"""The first example of docs/serve.md runs, with transformers instead of vLLM."""

import re
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from transformers import LlamaForCausalLM

import delvm
from delvm import cli
from delvm.data.image_io import open_image
from delvm.inference import read_prompt


class LLM:
    """Takes the arguments of vLLM's class that the example gives, and generates greedily."""

    def __init__(self, *, model, skip_tokenizer_init, dtype, max_model_len, enable_prefix_caching):
        assert skip_tokenizer_init and dtype == "bfloat16" and enable_prefix_caching
        self.model = LlamaForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        assert self.model.config.max_position_embeddings == max_model_len

    def generate(self, prompts, sampling):
        assert (sampling.temperature, sampling.ignore_eos, sampling.detokenize) == (0, True, False)
        assert sampling.min_tokens == sampling.max_tokens
        assert sampling.allowed_token_ids == list(range(self.model.config.vocab_size))
        for prompt in prompts:
            ids = torch.tensor([prompt["prompt_token_ids"]])
            with torch.inference_mode():
                new = self.model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=sampling.max_tokens,
                    do_sample=False,
                    pad_token_id=0,
                )[0, ids.shape[1] :]
            yield SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(new.tolist()))])


@pytest.mark.slow
def test_the_example_of_the_docs_answers_as_a_prompter_does(root, tmp_path, monkeypatch):
    text = (root / "docs" / "serve.md").read_text("utf-8")
    command = re.search(r"^    delvm (export .*)$", text, re.M)[1].replace("bfloat16", "float32")
    _, code, server = re.findall(r"```python\n(.*?)```", text, re.S)
    compile(server, "serve.md", "exec")
    fake = ModuleType("vllm")
    fake.LLM, fake.SamplingParams = LLM, SimpleNamespace
    monkeypatch.setitem(sys.modules, "vllm", fake)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(root / "examples")
    assert cli.main(command.split()) == 0
    found: dict = {}
    exec(compile(code, "serve.md", "exec"), found)
    prompter = delvm.Prompter(delvm.load_tokenizer("shapes"), delvm.load_student("shapes"))
    query = open_image("examples/derain_query.png")
    pairs = read_prompt("examples/derain")
    [expected] = prompter.stream(pairs, [query], decoding="greedy")
    assert torch.equal(found["ids"][0], expected.ids)
    assert found["images"][0].tobytes() == expected.image.tobytes()
