"""The codebook that the ids of token shards refer to: ROOT/codebook.safetensors."""

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from delvm.data.shards.replacement import CODEBOOK, NEW_CODEBOOK, finish_replacing
from delvm.errors import UserError
from delvm.storage import RemotePath, StoragePath, as_path, atomic_path, local_copy


def write_codebook(
    root: StoragePath,
    codebook: Tensor,
    fingerprint: str,
    overwrite: bool = False,
    in_place: bool = True,
) -> None:
    """Store the codebook (V, d) that ids refer to, so that a student can be trained on ids alone.

    Args:
        root: Root of the token shards.
        codebook, fingerprint: Of the tokenizer.
        overwrite: Replace another tokenizer's codebook.
        in_place: Whether at once; else `put_in_place` does, with the tokens that refer to it.

    Raises:
        UserError: The root holds another tokenizer's codebook.
    """
    finish_replacing(root)
    path, new = as_path(root) / CODEBOOK, as_path(root) / NEW_CODEBOOK
    if not isinstance(new, RemotePath):
        new.unlink(missing_ok=True)  # left by a killed job
    if path.exists():
        found = read_codebook(root)[1]
        if found == fingerprint:
            return
        if not overwrite:
            raise UserError(
                f"{root} holds tokens of tokenizer {found}, this one is {fingerprint}: "
                "set overwrite=true to replace them, or another output"
            )
        if not in_place and not isinstance(new, RemotePath):
            path = new
    codebook = codebook.detach().float().cpu().contiguous()
    with atomic_path(path) as tmp:
        # Not save_file, which would make a file that other users cannot read.
        tmp.write_bytes(save({"codebook": codebook}, metadata={"fingerprint": fingerprint}))


def read_codebook(root: StoragePath) -> tuple[Tensor, str]:
    """The codebook (V, d) float32 of a token root, and the fingerprint of its tokenizer.

    Raises:
        UserError: The file is missing, or not a codebook.
    """
    path = as_path(root) / CODEBOOK
    if not path.exists():
        raise UserError(f"codebook not found: {path}: run `delvm encode output_dir={root}`")
    try:
        with safe_open(local_copy(path), framework="pt") as file:
            codebook, metadata = file.get_tensor("codebook"), file.metadata() or {}
            return codebook, metadata["fingerprint"]
    except (SafetensorError, KeyError, OSError) as error:
        raise UserError(f"codebook {path} cannot be read: {error}") from None
