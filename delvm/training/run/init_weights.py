"""Begin a run with pretrained weights: ``init_from``."""

from pathlib import Path
from typing import Any

from delvm.errors import UserError
from delvm.interop.load import load_student, load_tokenizer, resolve
from delvm.interop.save import config_dict
from delvm.models.transformer import Transformer
from delvm.models.vqgan import VQGAN
from delvm.training.distillation import check_ids
from delvm.training.run.resume import config_mismatches, format_override


def init_errors(resume: str | None, init_from: str | None, kind: str) -> list[str]:
    """Errors of where the weights of a run come from, one line each.

    Args:
        resume: None, ``auto`` or a checkpoint of the run.
        init_from: None or pretrained weights.
        kind: tokenizer or student.
    """
    if resume not in (None, "auto") and not Path(resume).exists():
        return [f"checkpoint not found: {resume} (set resume=PATH, auto or null)"]
    if resume not in (None, "auto") and (Path(resume) / "checkpoints").is_dir():
        return [
            f"resume={resume} is the directory of a run: set "
            f"resume={resume}/checkpoints/last.ckpt, or output_dir={resume} resume=auto"
        ]
    try:
        if init_from is not None:
            resolve(init_from, kind)
    except UserError as error:
        return [str(error).replace(f"set {kind}=PATH", "set init_from=PATH or null")]
    return []


def load_init_weights(module: Any, init_from: str, data: Any) -> None:
    """Load pretrained weights into a module's network, which must be the same function of them.

    Args:
        module: its ``model`` is a `VQGAN` or a `Transformer`.
        init_from: whatever `load_tokenizer` or `load_student` reads.
        data: the data module, whose ids must be of the tokenizer that a student was trained with.

    Raises:
        UserError: there are none, or of another architecture or tokenizer.
    """
    model: Any = getattr(module, "model", None)
    if type(model) not in (VQGAN, Transformer):
        raise UserError(
            f"init_from={init_from} is for networks of DeLVM, and module.model is "
            f"{type(model).__name__}: set init_from=null and load its weights in its constructor"
        )
    kind = "tokenizer" if isinstance(model, VQGAN) else "student"
    load = load_tokenizer if kind == "tokenizer" else load_student
    trained = load(init_from, key="init_from")
    if kind == "student":
        check_ids(trained, f"init_from={init_from}", data)
    ours, theirs = (config_dict(each)["config"] for each in (model, trained))
    if mismatched := config_mismatches(theirs, ours):
        raise UserError(
            "; ".join(
                f"{key} {format_override(theirs[key])} (init_from={init_from}) != "
                f"{format_override(ours.get(key))} ({kind}): "
                f"set {kind}.net.{key}={format_override(theirs[key])}"
                for key in mismatched
            )
        )
    model.load_state_dict(trained.state_dict())
    if kind == "tokenizer" and getattr(module, "codebook", None) is not None:
        module.codebook.init_from_codebook()
