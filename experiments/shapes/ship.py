"""Round trained weights to half precision and put them where `delvm` finds them by name.

Called as `ship.py tokenizer outputs/shapes/tokenizer`, then as
`ship.py student outputs/shapes/student`.
"""

import sys
from pathlib import Path

import torch

from delvm.interop.fingerprint import fingerprint
from delvm.interop.load import SHIPPED_DIR, load_student, load_tokenizer
from delvm.interop.save import save_model
from delvm.models.vqgan import VQGAN

LIMIT = 12_000_000  # bytes, tokenizer and student together


def ship(kind: str, run: Path, name: str = "shapes") -> Path:
    """Write the weights of a training run as the shipped ones; returns their folder."""
    folder = SHIPPED_DIR / name / kind
    model = load_tokenizer(run) if kind == "tokenizer" else load_student(run)
    save_model(model, folder, torch.float16)
    return folder


def main(kind: str, run: str) -> None:
    """Ship, and say what was shipped and how large it is."""
    folder = ship(kind, Path(run))
    size = sum(file.stat().st_size for file in folder.parent.rglob("*.safetensors"))
    print(f"{kind}: {folder}")
    shipped = load_tokenizer(folder) if kind == "tokenizer" else load_student(folder)
    whose = fingerprint(shipped) if isinstance(shipped, VQGAN) else shipped.tokenizer_fingerprint
    print(f"tokenizer fingerprint: {whose}")
    print(f"all shipped weights: {size / 1e6:.2f} MB of {LIMIT / 1e6:.0f} MB")
    if size > LIMIT:
        sys.exit(f"too large to ship: {size} bytes > {LIMIT}")


if __name__ == "__main__":
    main(*sys.argv[1:])
