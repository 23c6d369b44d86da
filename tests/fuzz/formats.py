"""Every kind of file that DeLVM reads: a small valid sample, how to mutate it, and who reads it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from delvm.data.datasets.images import ImageDataset, ImagesConfig, validation_images
from delvm.data.datasets.sentences import SentenceDataset, SentencesConfig, validation_sentences
from delvm.data.datasets.streaming_images import StreamingImages, StreamingImagesConfig
from delvm.data.datasets.streaming_sentences import StreamingSentences, StreamingSentencesConfig
from delvm.data.image_io import open_image
from delvm.data.prepare.chunks import read_rejects
from delvm.data.prepare.prepare import prepare
from delvm.data.shards.codebook import read_codebook
from delvm.data.shards.reader import read_examples, read_tokens
from delvm.data.shards.replacement import INCOMPLETE
from delvm.data.shards.token_files import list_files
from delvm.data.sources import SOURCES
from delvm.evaluation.results.metrics import read_metrics
from delvm.evaluation.run_table import collect_runs, format_table
from delvm.evaluation.training_curves import read_history
from delvm.interop import token_files
from delvm.interop.formats import llama
from delvm.interop.load import load_student, load_tokenizer, read_metadata
from delvm.interop.save import save_model
from delvm.models.token_space import TokenSpace
from delvm.models.transformer import Transformer, TransformerConfig
from delvm.models.vqgan import VQGAN, VQGANConfig
from delvm.storage import write_json
from experiments.sources import raw
from tests.data.corpus_makers import FakeSource
from tests.fuzz import mutate
from tests.fuzz.mutate import Mutation
from tests.fuzz.prompts import (
    RECORD,
    answers,
    continue_answers,
    lvm_lines,
    pair_list,
    read_lvm_lines,
    read_pair_list,
)
from tests.fuzz.raw_data import (
    small_annotated,
    small_co3d,
    small_coco,
    small_laion,
    small_lmdb,
    small_sa1b,
    small_video,
)

DATA = Path(__file__).parents[1] / "data"
VQ = VQGANConfig(16, 3, 32, [1, 1], 1, [], True, 8, 32, 4, patch_size=4)
NET = TransformerConfig(32, dim=16, n_layers=1, n_heads=2, max_seq_len=24, codebook_dim=4)


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        name: of the kind.
        make: writes a valid sample, and all that is needed to read it, into an empty directory.
        file: the file in that directory that is mutated.
        mutate: makes a mutant of its bytes.
        read: reads everything in the directory as DeLVM does.
    """

    name: str
    make: Callable[[Path], object]
    file: str
    mutate: Mutation
    read: Callable[[Path], object]


def photo(side: int = 24) -> Image.Image:
    return Image.fromarray(raw.scene("coffee", side))


def image(suffix: str, **options: Any) -> Format:
    file = f"image.{suffix}"

    def make(folder: Path) -> None:
        photo().save(folder / file, **options)

    name = f"image_{suffix}"
    return Format(name, make, file, mutate.mutate_bytes, lambda folder: open_image(folder / file))


# ---------------------------------------------------------------- shards


def image_shards(folder: Path) -> None:
    prepare(FakeSource(), folder, ["train", "val"], shard_size=3)


def read_images(folder: Path) -> None:
    next(iter(StreamingImages(StreamingImagesConfig(str(folder), batch_size=4, retries=0), 0)))
    list(read_examples(folder, "train", "derain"))
    config = ImagesConfig(str(folder), batch_size=4)
    validation_images(config)
    ImageDataset(config, 0)[np.arange(4)]


def token_shards(folder: Path) -> None:
    shutil.copytree(DATA / "legacy" / "tokens", folder, dirs_exist_ok=True)


def read_ids(folder: Path) -> None:
    stream = StreamingSentencesConfig(str(folder), pairs_per_sentence=2, batch_size=4, retries=0)
    next(iter(StreamingSentences(stream, 0)))
    list(read_tokens(folder, "train", "derain"))
    config = SentencesConfig(str(folder), pairs_per_sentence=2, batch_size=4)
    validation_sentences(config)
    SentenceDataset(config, 0)[np.arange(4)]
    read_codebook(folder)


def interrupted(folder: Path) -> None:
    """Shards of images of a job that was stopped in its second chunk."""
    try:
        prepare(FakeSource(fail_at=5), folder, ["train"], shard_size=3)
    except KeyboardInterrupt:
        return
    raise AssertionError("it was not stopped")


def continue_job(folder: Path) -> None:
    prepare(FakeSource(), folder, ["train"], shard_size=3)


def rejects(folder: Path) -> None:
    lines = [{"key": f"a{number}", "reason": "damaged"} for number in range(3)]
    (folder / "rejects.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))


# ---------------------------------------------------------------- weights


def tokenizer(folder: Path) -> None:
    torch.manual_seed(0)
    save_model(VQGAN(VQ), folder / "model")


def student(folder: Path) -> None:
    torch.manual_seed(0)
    save_model(Transformer(NET, torch.randn(32, 4)), folder / "model")


def llama_student(folder: Path) -> None:
    torch.manual_seed(0)
    llama.write(Transformer(NET, torch.randn(32, 4)), folder / "model", torch.float32)


def golden(name: str) -> Callable[[Path], object]:
    return lambda folder: shutil.copytree(DATA / name, folder / "model")


def checkpoint(folder: Path) -> None:
    shutil.copy(DATA / "legacy/student/checkpoints/step=000004.ckpt", folder / "model")


def read_checkpoint(folder: Path) -> None:
    read_metadata(folder / "model")
    load_student(folder / "model")


def read_student(folder: Path) -> object:
    return load_student(folder / "model")


def read_tokenizer(folder: Path) -> object:
    return load_tokenizer(folder / "model")


def sharded(folder: Path) -> None:
    shutil.copytree(DATA / "legacy/sharded/checkpoints/step=000004.ckpt", folder / "model")


# ---------------------------------------------------------------- files of other projects


def jsonl(folder: Path) -> None:
    shutil.copy(DATA / "golden/token_files/dataset.jsonl", folder)


def binary(folder: Path) -> None:
    shutil.copytree(DATA / "golden/token_files/derain", folder, dirs_exist_ok=True)


def read_lines(suffix: str, read: Callable[[Path, TokenSpace], Any]) -> Callable[[Path], object]:
    space = TokenSpace(8192)

    def run(folder: Path) -> None:
        for file in list_files(folder, suffix, lambda path: read(path, space)):
            list(file.read())

    return run


def source(name: str, make: Callable[[Path], object], **settings: Any) -> tuple[Any, Any]:
    """How to make a source's raw data, and to prepare it."""

    def read(folder: Path) -> None:
        fractions = {"val_fraction": 0.0, "test_fraction": 0.0}
        kind: Any = SOURCES[name]
        built = kind(path=str(folder / "raw"), size=16, **fractions, **settings)
        prepare(built, folder / "out", ["train"], max_reject_fraction=1.0, overwrite=True)

    return lambda folder: make(folder / "raw"), read


# ---------------------------------------------------------------- runs


def run_folder(folder: Path) -> None:
    shutil.copytree(DATA / "legacy" / "student", folder / "run")
    shutil.rmtree(folder / "run" / "checkpoints")


def read_runs(folder: Path) -> None:
    format_table(collect_runs(folder))
    read_history(folder / "run" / "metrics.csv")


def metrics(folder: Path) -> None:
    scores = {"derain": {"psnr": [1.0, 0.5, 2.0]}}
    write_json(folder / "metrics.json", {"tasks": scores, "students": {"a": scores}})


def read_scores(folder: Path) -> None:
    read_metrics(folder / "metrics.json")


def _raw_formats() -> list[Format]:
    """Files of raw data sets."""
    by_bytes, json_, tar = mutate.mutate_bytes, mutate.mutate_json, mutate.mutate_tar
    sa1b, laion = source("sa1b", small_sa1b, num_crops=0), source("laion", small_laion)
    coco = source("coco_pose", small_coco, min_keypoints=1, min_side=0)
    video = source("video", small_video, clip_length=2, stride=1, scene_cut_threshold=0.0)
    annotated = source("annotated", small_annotated)
    co3d = source("co3d", small_co3d, num_views=2, set_lists=True)
    set_list = "raw/apple/set_lists/set_lists_fewview_dev.json"
    rain, people = source("rain13k", small_lmdb), "raw/annotations/person_keypoints_train2017.json"
    return [
        Format("sa1b_tar", sa1b[0], "raw/sa_000000.tar", tar, sa1b[1]),
        Format("laion_tar", laion[0], "raw/00000.tar", tar, laion[1]),
        Format("coco_json", coco[0], people, json_, coco[1]),
        Format("video", video[0], "raw/a.mp4", by_bytes, video[1]),
        Format("depth", annotated[0], "raw/depth/a.png", by_bytes, annotated[1]),
        Format("labels", annotated[0], "raw/segmentation/a.png", by_bytes, annotated[1]),
        Format("set_list", co3d[0], set_list, json_, co3d[1]),
        Format("lmdb", rain[0], "raw/train/Rain13K/input.lmdb/data.mdb", by_bytes, rain[1]),
    ]


def _formats() -> list[Format]:
    by_bytes, json_, tar = mutate.mutate_bytes, mutate.mutate_json, mutate.mutate_tar
    lines, tensors, pickled = (
        mutate.mutate_lines,
        mutate.mutate_safetensors,
        mutate.mutate_checkpoint,
    )
    text = mutate.mutate_text
    shard, manifest = "train/derain/000000.tar", "train/derain/manifest.json"
    hf, muse = golden("golden/internlm_hf"), golden("golden/muse_vqgan")
    lvm = read_lines(".jsonl", token_files.read_lvm)
    internlm = read_lines(".bin", token_files.read_internlm)
    config, weights, pickle = (
        "model/config.json",
        "model/model.safetensors",
        "model/pytorch_model.bin",
    )
    suffixes = ("png", "jpg", "gif", "bmp", "webp", "tif", "ppm", "ico", "tga")
    return [
        *map(image, suffixes),
        Format("image_shard", image_shards, shard, tar, read_images),
        Format("image_manifest", image_shards, manifest, json_, read_images),
        Format("token_shard", token_shards, shard, tar, read_ids),
        Format("token_manifest", token_shards, manifest, json_, read_ids),
        Format("codebook", token_shards, "codebook.safetensors", tensors, read_ids),
        Format("incomplete", interrupted, f"train/derain/{INCOMPLETE}", json_, continue_job),
        Format("chunk", interrupted, "train/derain/chunks/000000.json", json_, continue_job),
        Format("rejects", rejects, "rejects.jsonl", lines, read_rejects),
        Format("tokenizer_config", tokenizer, config, json_, read_tokenizer),
        Format("tokenizer_weights", tokenizer, weights, tensors, read_tokenizer),
        Format("student_config", student, config, json_, read_student),
        Format("student_weights", student, weights, tensors, read_student),
        Format("llama_config", llama_student, config, json_, read_student),
        Format("llama_weights", llama_student, weights, tensors, read_student),
        Format("internlm_config", hf, config, json_, read_student),
        Format("internlm_pickle", hf, pickle, pickled, read_student),
        Format("muse_config", muse, config, json_, read_tokenizer),
        Format("muse_pickle", muse, pickle, pickled, read_tokenizer),
        Format("checkpoint", checkpoint, "model", pickled, read_checkpoint),
        Format("sharded_index", sharded, "model/.metadata", by_bytes, read_checkpoint),
        Format("sharded_metadata", sharded, "model/meta.pt", pickled, read_checkpoint),
        Format("sharded_data", sharded, "model/__0_0.distcp", by_bytes, read_checkpoint),
        Format("lvm_jsonl", jsonl, "dataset.jsonl", lines, lvm),
        Format("internlm_bin", binary, "train.bin", lines, internlm),
        Format("internlm_meta", binary, "train.bin.meta", by_bytes, internlm),
        *_raw_formats(),
        Format("prompt_json", pair_list, "pairs.json", json_, read_pair_list),
        Format("prompt_jsonl", lvm_lines, "lines.jsonl", lines, read_lvm_lines),
        Format("answers", answers, RECORD, lines, continue_answers),
        Format("run_config", run_folder, "run/.hydra/config.yaml", text, read_runs),
        Format("run_choices", run_folder, "run/.hydra/hydra.yaml", text, read_runs),
        Format("history", run_folder, "run/metrics.csv", text, read_runs),
        Format("metrics", metrics, "metrics.json", json_, read_scores),
    ]


FORMATS = {each.name: each for each in _formats()}
