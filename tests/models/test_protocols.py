"""Foreign networks that satisfy the protocols, and what is reported where one does not."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from delvm.errors import UserError
from delvm.models.protocols import StudentNet, TokenizerNet, check_protocol
from delvm.models.teacher_forcing import next_token_nll
from delvm.models.transformer import Transformer, TransformerConfig
from delvm.models.vqgan import VQGAN, VQGANConfig


class GRUStudent(nn.Module):
    """A student of another architecture."""

    def __init__(self, vocab_size: int = 11, dim: int = 8) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size, dim)
        self.rnn = nn.GRU(dim, dim, batch_first=True)
        self.head = nn.Linear(dim, vocab_size, bias=False)
        self.vocab_size, self.max_seq_len, self.tokenizer_fingerprint = vocab_size, 64, ""

    def forward_hidden(
        self, input_ids: Tensor, cache: Any = None, document_ids: Tensor | None = None
    ) -> Tensor:
        hidden: Tensor = self.rnn(self.embed(input_ids))[0]
        return hidden

    def load_codebook(self, codebook: Tensor, fingerprint: str) -> None:
        self.tokenizer_fingerprint = fingerprint

    def parameter_groups(self, weight_decay: float) -> Iterator[dict[str, Any]]:
        yield {"params": list(self.parameters()), "weight_decay": weight_decay}

    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.parameters())


class FSQTokenizer(nn.Module):
    """A tokenizer with an implicit codebook (Mentzer et al. 2023): 3 levels in each dimension."""

    codebook: Tensor
    codebook_parameter = None
    commitment_cost = 0.0
    resolution, tokens_per_image, codebook_size = 8, 4, 9

    def __init__(self) -> None:
        super().__init__()
        self.bf16 = False
        self.down = nn.Conv2d(3, 2, 4, stride=4)
        self.up = nn.ConvTranspose2d(2, 3, 4, stride=4)
        levels = torch.linspace(-1, 1, 3)
        self.register_buffer("codebook", torch.cartesian_prod(levels, levels))

    @property
    def last_layer(self) -> Tensor:
        return self.up.weight

    def encode_features(self, pixels: Tensor) -> Tensor:
        return self.down(pixels).tanh().flatten(2).transpose(1, 2)

    def nearest_code_indices(self, z: Tensor) -> Tensor:
        return ((z + 1).round().long() * torch.tensor([3, 1])).sum(-1)

    def decode_embeddings(self, embeddings: Tensor) -> Tensor:
        return self.up(embeddings.transpose(1, 2).unflatten(2, (2, 2)))

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        z = self.encode_features(pixels)
        return self.nearest_code_indices(z.flatten(0, 1)).view(z.shape[:2])

    @torch.no_grad()
    def decode(self, ids: Tensor, clamp: bool = True) -> Tensor:
        pixels = self.decode_embeddings(self.codebook[ids])
        return pixels.clamp(0, 1) if clamp else pixels


def student() -> Transformer:
    return Transformer(TransformerConfig(11, 8, 1, 2, max_seq_len=8, codebook_dim=4))


def tokenizer() -> VQGAN:
    return VQGAN(VQGANConfig(16, 3, 32, [1, 1], 1, [], True, 32, num_embeddings=20))


@pytest.mark.parametrize("make", [student, GRUStudent])
def test_student_net(make):
    net: StudentNet = make()
    check_protocol(net, StudentNet, "student")
    net.load_codebook(torch.zeros(11, 4), "0123456789abcdef")
    assert net.tokenizer_fingerprint == "0123456789abcdef"
    nll, correct = next_token_nll(net, torch.zeros(2, 5, dtype=torch.int64))
    assert nll.shape == correct.shape == (2, 4)
    assert net.vocab_size == net.head.out_features == 11


@pytest.mark.parametrize("make", [tokenizer, FSQTokenizer])
def test_tokenizer_net(make):
    net: TokenizerNet = make()
    check_protocol(net, TokenizerNet, "tokenizer")
    pixels = torch.rand(2, 3, net.resolution, net.resolution)
    ids = net.encode(pixels)
    assert ids.shape == (2, net.tokens_per_image)
    assert len(net.codebook) == net.codebook_size > ids.max()
    z = net.encode_features(pixels).flatten(0, 1)
    distances = torch.cdist(z, net.codebook)
    assert torch.equal(net.nearest_code_indices(z), distances.argmin(1))
    rebuilt = net.decode_embeddings(net.codebook[ids])
    assert torch.allclose(net.decode(ids, clamp=False), rebuilt, atol=1e-5)
    (grad,) = torch.autograd.grad(rebuilt.sum(), net.last_layer)
    assert grad.shape == net.last_layer.shape


def test_our_networks_satisfy_protocols_statically():
    nets: tuple[StudentNet, TokenizerNet] = (student(), tokenizer())
    foreign: tuple[StudentNet, TokenizerNet] = (GRUStudent(), FSQTokenizer())
    assert nets and foreign  # the assertion is mypy's


def test_missing_members_are_named():
    net = GRUStudent()
    del net.head, net.vocab_size
    with pytest.raises(UserError) as error:
        check_protocol(net, StudentNet, "student")
    message = str(error.value)
    assert message.startswith("student tests.models.test_protocols.GRUStudent has no head, vocab_")
    assert message.endswith("or set student._target_") and "\n" not in message


def test_other_objects_are_refused():
    with pytest.raises(UserError, match=r"tokenizer builtins\.dict is not a torch\.nn\.Module"):
        check_protocol({}, TokenizerNet, "tokenizer")
