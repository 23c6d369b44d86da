"""Model formats of other projects: one module each, listed in `FORMATS`.

To add one, write a module with the functions of `Format` (and `write` if it can be exported to),
and add its name here.
"""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

if TYPE_CHECKING:
    import torch

    from delvm.interop.model_source import ModelData, ModelSource
    from delvm.models.transformer import Transformer
    from delvm.models.vqgan import VQGAN


class Format(Protocol):
    """What every module of this folder has that is listed in `FORMATS`."""

    def matches(self, source: "ModelSource") -> bool:
        """Whether a folder or file has this format."""

    def read(self, source: "ModelSource", kind: str) -> "ModelData":
        """The metadata ("kind" and the fields of its config) and weights of a model.

        Args:
            source: has this format.
            kind: what is asked for, "tokenizer" or "student", where one source holds both.

        Raises:
            UserError: the model is damaged, or its architecture is not supported.
        """


class WritableFormat(Format, Protocol):
    """A format that models can be exported to."""

    def write(
        self,
        model: "VQGAN | Transformer",
        output_dir: str | Path,
        dtype: "torch.dtype",
        files: Mapping[str, str],
    ) -> None:
        """Write a model as a folder, which appears complete or not at all.

        Args:
            model: what is written.
            output_dir: the folder, replaced if it exists.
            dtype: of the weights.
            files: further text files by name, as a model card.

        Raises:
            UserError: the format cannot express the model's architecture.
        """


class Entry(NamedTuple):
    """One line of the table.

    Attributes:
        summary: what it is, for messages.
        exports: the kind of model that `delvm export format=NAME` writes; None = read only.
    """

    summary: str
    exports: str | None


# Module name -> what it is; the first that matches reads. This table is available without torch.
FORMATS: dict[str, Entry] = {
    "internlm_checkpoint": Entry("a training checkpoint of InternLM (DeLVM)", None),
    "open_muse": Entry("a VQGAN of open-muse (LVM, DeLVM)", "tokenizer"),
    "internlm_hf": Entry("InternLMForCausalLM (DeLVM)", "student"),
    "llama": Entry("LlamaForCausalLM (LVM)", "student"),
    "taming": Entry("a VQGAN checkpoint of taming-transformers", None),
}


OWN_FORMAT = "delvm"  # of `delvm export`: DeLVM's own, see `delvm.interop.load`


def import_format(name: str) -> Format:
    """The module of a format."""
    return cast(Format, import_module(f"{__name__}.{name}"))


def import_writable_format(name: str) -> WritableFormat:
    """The module of a format that models can be exported to."""
    return cast(WritableFormat, import_module(f"{__name__}.{name}"))


def find_format(source: "ModelSource") -> Format | None:
    """The first format that a folder or file matches."""
    return next((f for f in map(import_format, FORMATS) if f.matches(source)), None)


def output_errors(output_dir: Path, overwrite: bool) -> list[str]:
    """Errors of a directory that a model is to be exported to, which only another export may be."""
    if output_dir.is_file():
        return [f"output_dir={output_dir} is a file: set output_dir to a directory"]
    if not output_dir.exists() or not any(output_dir.iterdir()):
        return []
    if not overwrite:
        return [f"output_dir={output_dir} exists: set overwrite=true to replace it"]
    exported = ("config.json", "student/config.json")
    if not any((output_dir / each).is_file() for each in exported):
        return [
            f"output_dir={output_dir} holds no config.json, so it is not an export: "
            "set output_dir to another directory"
        ]
    return []
