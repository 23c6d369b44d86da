"""Round trained weights to half precision and put them where `delvm` finds them by name.

Run `export_weights.py tokenizer outputs/shapes/tokenizer`, and later
`export_weights.py student outputs/shapes/teacher shapes_teacher` and
`export_weights.py student outputs/shapes/distilled`.
"""

import sys
from pathlib import Path

import torch

from delvm.interop.fingerprint import fingerprint
from delvm.interop.load import SHIPPED_DIR, load_student, load_tokenizer
from delvm.interop.save import save_model
from delvm.models.vqgan import VQGAN

MAX_BYTES = 12_000_000  # of the weights of one name


def export(kind: str, run: Path, name: str) -> Path:
    """Write the weights of a training run into the package; returns their directory."""
    output_dir = SHIPPED_DIR / name / kind
    model = load_tokenizer(run) if kind == "tokenizer" else load_student(run)
    save_model(model, output_dir, torch.float16)
    return output_dir


def main(kind: str, run: str, name: str = "shapes") -> None:
    """Export, and print fingerprint and size.

    Args:
        kind: "tokenizer" or "student".
        run: output directory of its training.
        name: of the weights, by which they are loaded.
    """
    output_dir = export(kind, Path(run), name)
    size = sum(file.stat().st_size for file in output_dir.parent.rglob("*.safetensors"))
    model = load_tokenizer(output_dir) if kind == "tokenizer" else load_student(output_dir)
    tokenizer_id = fingerprint(model) if isinstance(model, VQGAN) else model.tokenizer_fingerprint
    print(f"{kind}: {output_dir}")
    print(f"tokenizer fingerprint: {tokenizer_id}")
    print(f"weights named {name}: {size / 1e6:.2f} MB of {MAX_BYTES / 1e6:.0f} MB")
    if size > MAX_BYTES:
        sys.exit(f"too large to ship: {size} bytes > {MAX_BYTES}")


if __name__ == "__main__":
    main(*sys.argv[1:])
