"""`delvm convert`: every direction, through the command."""

import base64
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from delvm.data.shards.reader import read_tokens
from delvm.interop import convert as conversion
from delvm.interop.save import save_model
from delvm.models.token_space import TokenSpace
from delvm.models.vqgan import VQGAN, VQGANConfig
from tests.data.corpus_makers import contents

GOLDEN = Path(__file__).parents[1] / "data/golden/token_files"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """As many codes and tokens a picture as the reference's, and next to no layers."""
    config = VQGANConfig(
        resolution=32,
        hidden_channels=32,
        channel_mult=[1],
        num_res_blocks=1,
        attn_resolutions=[],
        no_attn_mid_block=True,
        z_channels=4,
        quantized_embed_dim=2,
        patch_size=2,
    )
    folder = tmp_path_factory.mktemp("tokenizer")
    save_model(VQGAN(config), folder / "t")
    return f"tokenizer={folder / 't'}"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_internlm_to_shards_and_back(delvm, tokenizer):
    path = GOLDEN / "derain/train.bin"
    code, out, err = delvm("convert", f"input={path}", "output_dir=tokens", tokenizer)
    assert (code, err.count("\n")) == (0, 1) and "24 samples to tokens/train/derain" in out
    ids = np.concatenate(list(read_tokens(Path("tokens"), "train", "derain")))
    assert ids.shape == (24, 2, 256)
    assert delvm("convert", "input=tokens", "output_dir=back", "output_format=internlm_bin")[0] == 0
    assert Path("back/derain/train.bin").read_bytes() == path.read_bytes()
    for name in ("train.bin", "train.bin.meta"):
        assert Path("back/derain", name).read_bytes() == (GOLDEN / "derain" / name).read_bytes()


@pytest.mark.slow
def test_lvm_to_shards_and_round_all_formats(delvm, tokenizer):
    path = GOLDEN / "dataset.jsonl"
    code, _, err = delvm("convert", f"input={path}", "output_dir=tokens", tokenizer)
    assert code == 2 and "does not name its split: set split=NAME" in err
    given = ("task=mixed", "split=train", tokenizer)
    assert delvm("convert", f"input={path}", "output_dir=tokens", *given)[0] == 0
    ids = np.concatenate(list(read_tokens(Path("tokens"), "train", "mixed")))
    assert ids.shape[1:] == (16, 256)
    assert delvm("convert", "input=tokens", "output_dir=a", "output_format=lvm_jsonl")[0] == 0
    assert Path("a/mixed/train.jsonl").read_bytes() == path.read_bytes()
    ends = ("bos=8192", "eos=8193")
    assert (
        delvm("convert", "input=tokens", "output_dir=b", "output_format=internlm_bin", *ends)[0]
        == 0
    )
    assert delvm("convert", "input=b", "output_dir=c", tokenizer, *ends)[0] == 0
    again = np.concatenate(list(read_tokens(Path("c"), "train", "mixed")))
    assert np.array_equal(again, ids)
    code, _, err = delvm("convert", "input=b", "output_dir=d", tokenizer)
    assert code == 2 and "train.bin line 1: id 8193 is outside [0, 8192)" in err
    assert not list(Path("d").rglob("manifest.json"))


def test_from_one_project_to_the_other(delvm):
    shutil.copytree(GOLDEN / "derain", "derain")
    assert delvm("convert", "input=derain", "output_dir=out", "output_format=lvm_jsonl")[0] == 0
    assert delvm("convert", "input=out", "output_dir=back", "output_format=internlm_bin")[0] == 0
    wanted = Path("derain/train.bin").read_bytes()
    assert Path("back/derain/train.bin").read_bytes() == wanted
    code, _, err = delvm("convert", "input=derain", "output_dir=out", "output_format=lvm_jsonl")
    assert code == 2 and "exists: set overwrite=true" in err


@pytest.mark.slow
def test_what_does_not_fit_is_told(delvm, tokenizer):
    path = GOLDEN / "derain/train.bin"
    for words, message in (
        (
            (f"input={path}", "output_dir=t"),
            "codebook_size=8192 != num_embeddings 1024 (tokenizer=shapes)",
        ),
        (("input=nowhere", "output_dir=t"), "input=nowhere not found"),
        (("input=.", "output_dir=t"), "holds no token files"),
        (("input=.", "output_dir=."), "input and output_dir are both"),
        ((f"input={path}", "output_dir=t", "split=tset", tokenizer), "unknown split 'tset'"),
        ((f"input={path}", "output_dir=t", "output_format=bin"), "output_format=bin"),
    ):
        code, _, err = delvm("convert", *words)
        assert code == 2 and message in err, err
    Path("odd/train").mkdir(parents=True)
    Path("odd/train/train.bin").write_text('{"tokens": [1, 2, 3]}\n')
    code, _, err = delvm("convert", "input=odd", "output_dir=t", tokenizer)
    assert code == 2 and "sample 1 has 3 tokens, which are not a multiple of the 256" in err
    lines = path.read_text().splitlines()[:2]
    Path("odd/train/train.bin").write_text("\n".join([lines[0], '{"tokens": [1]}', ""]))
    code, _, err = delvm("convert", "input=odd", "output_dir=t", tokenizer)
    assert code == 2 and "sample 2 has 1 tokens, which are not a multiple of the 256" in err
    assert not list(Path("t").rglob("manifest.json"))


def write_lines(path, lengths, ends=()):
    """A .jsonl file with lines of so many images; the code of each image is its number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    number = 0
    with path.open("w") as file:
        for documents in lengths:
            ids = []
            for images in documents:
                each = np.repeat(np.arange(number, number + images), 256)
                ids += [*ends[:1], *each, *ends[1:]]
                number += images
            tokens = base64.b64encode(np.array(ids, "<i4").tobytes()).decode()
            file.write(json.dumps({"tokens": tokens}) + "\n")


def stored_images(task, split="train"):
    """The code of each image in the examples of a task."""
    return np.concatenate(list(read_tokens(Path("tokens"), split, task)))[:, :, 0].tolist()


@pytest.mark.slow
def test_lines_of_different_lengths_are_tasks_by_length(delvm, tokenizer):
    write_lines(Path("in/mixed/train.jsonl"), [(3,), (3,), (2,), (3,), (1,)])
    write_lines(Path("in/mixed/val.jsonl"), [(2,)])
    code, out, err = delvm("convert", "input=in", "output_dir=tokens", tokenizer)
    assert code == 0, err
    assert "samples of [1, 2, 3] images: 1 in mixed_1, 1 in mixed_2, 3 in mixed" in err
    assert stored_images("mixed") == [[0, 1, 2], [3, 4, 5], [8, 9, 10]]
    assert (stored_images("mixed_2"), stored_images("mixed_1")) == ([[6, 7]], [[11]])
    assert stored_images("mixed_2", "val") == [[0, 1]]  # the same name in every split
    assert "1 samples to tokens/train/mixed_1" in out
    assert delvm("convert", "input=in", "output_dir=tokens", tokenizer)[0] == 0  # kept
    write_lines(Path("in/mixed/train.jsonl"), [(3,), (3,), (2,), (1,), (3,)])
    code, _, err = delvm("convert", "input=in", "output_dir=tokens", tokenizer)
    assert code == 2 and "was made from other images" in err
    declared = "tasks={clips:3,pose:2}"
    assert delvm("convert", "input=in", "output_dir=b", tokenizer, declared)[0] == 0
    names = {path.parent.name for path in Path("b").rglob("manifest.json")}
    assert names == {"clips", "pose", "mixed_1"}


def test_documents_in_a_line_are_examples_of_their_own(delvm, tokenizer):
    write_lines(Path("in/mixed/train.jsonl"), [(2, 2), (1, 2, 2)], ends=(8192, 8193))
    ends = ("bos=8192", "eos=8193")
    code, _, err = delvm("convert", "input=in", "output_dir=tokens", tokenizer, *ends)
    assert code == 0, err
    assert stored_images("mixed") == [[0, 1], [2, 3], [5, 6], [7, 8]]
    assert stored_images("mixed_1") == [[4]]


@pytest.mark.slow
def test_ids_of_int64_are_refused(delvm, tokenizer):
    text = base64.b64encode(np.arange(1, 513).astype("<i8").tobytes()).decode()
    Path("train.jsonl").write_text(json.dumps({"tokens": text}) + "\n")
    code, _, err = delvm("convert", "input=train.jsonl", "output_dir=tokens", tokenizer, "task=t")
    assert code == 2 and "line 1: every second of 1024 int32 is 0, so the ids are int64" in err
    assert not Path("tokens").exists()


def test_file_of_empty_lines_is_refused(delvm, tokenizer):
    path = Path("in/train.jsonl")
    path.parent.mkdir()
    path.write_text("\n\n")
    for target in ("shards", "internlm_bin"):
        words = (f"input={path}", "output_dir=t", f"output_format={target}", tokenizer)
        code, _, err = delvm("convert", *words)
        assert code == 2 and "in/train.jsonl holds no lines: set input" in err


def test_two_conversions_to_one_directory_at_once(tmp_path, monkeypatch):
    for split in ("train", "val"):
        (tmp_path / split / "derain").mkdir(parents=True)
        shutil.copy(GOLDEN / "derain/train.bin", tmp_path / split / "derain" / f"{split}.bin")
    lines, write = [], conversion.WRITE["lvm_jsonl"]

    def to_jsonl(split):
        folder = tmp_path / split
        lines.extend(conversion.convert(folder, tmp_path / "out", "lvm_jsonl", TokenSpace()))

    def write_slowly(path, samples, space):
        def slow():
            yield next(rest)
            if path.stem == "train":
                to_jsonl("val")  # begins and ends while the other is being written
            yield from rest

        rest = iter(samples)
        return write(path, slow(), space)

    monkeypatch.setitem(conversion.WRITE, "lvm_jsonl", write_slowly)
    to_jsonl("train")
    assert len(lines) == 2
    assert sorted(contents(tmp_path / "out")) == ["derain/train.jsonl", "derain/val.jsonl"]
