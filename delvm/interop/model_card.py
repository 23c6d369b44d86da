"""The README.md of exported weights: a model card as the Hugging Face Hub reads it."""

from delvm.interop.fingerprint import fingerprint
from delvm.models.transformer import Transformer
from delvm.models.vqgan import VQGAN

_TAGS = ("delvm", "visual-sentences", "in-context-learning")
_TRANSFORMERS = {  # layout -> how transformers loads it
    "llama": 'transformers.AutoModelForCausalLM.from_pretrained("USER/NAME")',
    "internlm_hf": 'transformers.AutoModel.from_pretrained("USER/NAME", trust_remote_code=True)',
}


def model_card(
    student: Transformer | None, tokenizer: VQGAN | None, layout: str, library: str
) -> str:
    """The card of a student, a tokenizer, or both.

    Args:
        student, tokenizer: what was exported; at least one.
        layout: of the export, as of `delvm export format=`.
        library: that loads it: delvm or transformers.

    Returns:
        Markdown with a header in YAML. What nobody but the owner knows is marked to be filled in.
    """
    tags = "\n".join(f"  - {tag}" for tag in _TAGS)
    header = f"---\nlibrary_name: {library}\npipeline_tag: image-to-image\ntags:\n{tags}\n---\n"
    rows = [("layout", layout)]
    if student is not None:
        rows += student_rows(student)
    if tokenizer is not None:
        rows += tokenizer_rows(tokenizer)
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    kinds = [name for name, each in (("student", student), ("tokenizer", tokenizer)) if each]
    return (
        f"{header}\n# DeLVM {' and '.join(kinds)}\n\n"
        "Continues *visual sentences*: images as discrete tokens. A task is given by example pairs "
        "of images and a query; there is no text in it.\n\n"
        f"| | |\n|---|---|\n{table}\n\n## Use\n\n{_use(student, tokenizer, layout)}\n\n"
        "## To be filled in\n\nTraining data, evaluation, intended use, license.\n"
    )


def student_rows(student: Transformer) -> list[tuple[str, str]]:
    """Name and value of what a student is."""
    cfg = student.config
    return [
        ("student", f"{student.parameter_count() / 1e6:,.1f}M parameters"),
        ("layers, width, heads", f"{cfg.n_layers}, {cfg.dim}, {cfg.n_heads}"),
        ("context", f"{cfg.max_seq_len:,} tokens"),
        ("codes", f"{student.token_space.codebook_size:,}"),
        ("trained on tokens of the tokenizer", student.tokenizer_fingerprint or "not recorded"),
    ]


def tokenizer_rows(tokenizer: VQGAN) -> list[tuple[str, str]]:
    """Name and value of what a tokenizer is."""
    return [
        ("tokenizer", fingerprint(tokenizer)),
        ("images", f"{tokenizer.resolution} x {tokenizer.resolution} pixels"),
        ("tokens per image", f"{tokenizer.tokens_per_image}"),
        ("codebook", f"{tokenizer.codebook_size:,}"),
    ]


def _use(student: Transformer | None, tokenizer: VQGAN | None, layout: str) -> str:
    lines = ["import delvm", ""]
    if student is not None and tokenizer is not None:
        lines += [
            'tokenizer = delvm.load_tokenizer("hf://USER/NAME")',
            'student = delvm.load_student("hf://USER/NAME")',
            "prompter = delvm.Prompter(tokenizer, student)",
            "(answer,) = prompter.complete([(input_image, target_image)], [query_image])",
        ]
    elif student is not None:
        lines += ['student = delvm.load_student("hf://USER/NAME")  # ids in, logits out']
    else:
        lines += ['tokenizer = delvm.load_tokenizer("hf://USER/NAME")  # pixels to ids and back']
    if layout in _TRANSFORMERS:
        lines += ["", "import transformers", "", f"student = {_TRANSFORMERS[layout]}"]
    return "```python\n{}\n```".format("\n".join(lines))
