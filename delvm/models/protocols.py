"""What a network must be able to do to be trained and used as a student or a tokenizer.

`Transformer` and `VQGAN` satisfy these protocols. A class of your own needs no base class of ours:
it must be a `torch.nn.Module` with these members, checked once by `check_protocol`.

Notation:
    B batch    T tokens    C model width         V codes in the codebook
    N tokens per image     H image side in px    d dimension of a code
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from delvm.errors import UserError, missing_members


@runtime_checkable
class StudentNet(Protocol):
    """An autoregressive model over token ids.

    Two more methods are used where they exist: ``flops_per_token(seq_len) -> int`` for the FLOP/s
    in the log, and ``make_kv_cache(batch_size, max_seq_len)`` with ``token_space`` to prompt it.
    ``module/token_order=random`` gives ``forward_hidden`` the arguments ``positions`` and
    ``target_embed`` of `Transformer.forward_hidden`.
    """

    head: nn.Linear  # without bias; loss and sampling compute logits = head(hidden) in chunks
    tokenizer_fingerprint: str  # set by load_codebook

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        ...

    @property
    def max_seq_len(self) -> int:
        """Context length in tokens."""
        ...

    def forward_hidden(
        self, input_ids: Tensor, cache: Any = None, document_ids: Tensor | None = None
    ) -> Tensor:
        """Ids (B, T) int64 -> hidden states (B, T, C) before the head.

        ``document_ids`` (B, T), where given, separates documents that are packed in a row.
        """
        ...

    def load_codebook(self, codebook: Tensor, fingerprint: str) -> None:
        """Take over a tokenizer's codebook (V, d), if it is used, and its fingerprint."""
        ...

    def parameter_groups(self, weight_decay: float) -> Iterable[dict[str, Any]]:
        """Parameter groups of the optimizer, each with ``params`` and ``weight_decay``."""
        ...

    def parameter_count(self) -> int:
        """Number of trained parameters."""
        ...

    # Of nn.Module:
    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]: ...
    def state_dict(self) -> dict[str, Any]: ...


Students = Mapping[str, StudentNet]  # by their names in a report


@runtime_checkable
class TokenizerNet(Protocol):
    """A discrete autoencoder of images whose codes are vectors of a codebook.

    A tokenizer with an implicit codebook (FSQ, LFQ) lists its code vectors in ``codebook``, has
    ``codebook_parameter = None`` and ``commitment_cost = 0``.
    """

    bf16: bool  # whether encode and decode run in bfloat16

    @property
    def resolution(self) -> int:
        """Image side H in pixels."""
        ...

    @property
    def tokens_per_image(self) -> int:
        """Tokens per image, N."""
        ...

    @property
    def codebook_size(self) -> int:
        """Codes in the codebook, V."""
        ...

    @property
    def codebook(self) -> Tensor:
        """The codes (V, d) that features are compared with."""
        ...

    @property
    def codebook_parameter(self) -> Tensor | None:
        """The trained parameter (V, d) behind the codebook; None where codes are fixed."""
        ...

    @property
    def commitment_cost(self) -> float:
        """Weight of the squared distance of features to their codes in the codebook loss."""
        ...

    @property
    def last_layer(self) -> Tensor:
        """Weight of the decoder's last layer, where the adversarial loss is balanced."""
        ...

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, H) in [0, 1] -> token ids (B, N) int64, without gradient."""
        ...

    def decode(self, ids: Tensor, clamp: bool = True) -> Tensor:
        """Token ids (B, N) -> pixels (B, 3, H, H) float32, without gradient."""
        ...

    def encode_features(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, H) in [0, 1] -> features (B, N, d) before quantization."""
        ...

    def nearest_code_indices(self, z: Tensor) -> Tensor:
        """Feature vectors (M, d) -> indices (M,) int64 of their codes."""
        ...

    def decode_embeddings(self, embeddings: Tensor) -> Tensor:
        """Code vectors (B, N, d) -> pixels (B, 3, H, H), not clamped."""
        ...

    # Of nn.Module:
    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]: ...
    def state_dict(self) -> dict[str, Any]: ...


def check_protocol(obj: object, protocol: type, role: str) -> None:
    """Refuse an object that is not a network with all members of a protocol.

    Args:
        obj: what the config built.
        protocol: `StudentNet` or `TokenizerNet`.
        role: its group in the config, for the message ("student").

    Raises:
        UserError: it is not a `torch.nn.Module`, or members are missing; all are named.
    """
    kind = f"{type(obj).__module__}.{type(obj).__qualname__}"
    if not isinstance(obj, torch.nn.Module):
        raise UserError(f"{role} {kind} is not a torch.nn.Module: set {role}._target_")
    if missing := missing_members(obj, protocol):
        raise UserError(
            f"{role} {kind} has no {', '.join(missing)}, which {protocol.__name__} "
            f"(delvm.models.protocols) requires: add them, or set {role}._target_"
        )
