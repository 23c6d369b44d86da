"""The codebook losses of a tokenizer's training."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from delvm.models.vqgan import VQGAN
from delvm.training.tokenizer import BetaOn, TokenizerModule
from tests.training.runs import TOKENIZER


@pytest.mark.parametrize("beta_on", list(BetaOn))
def test_beta_weighs_features_or_codes(beta_on):
    """``codes`` is `VectorQuantizer2` of taming-transformers with ``legacy=True``, its default."""
    torch.manual_seed(0)
    module = TokenizerModule(
        VQGAN(TOKENIZER),
        partial(torch.optim.Adam, lr=1e-4),
        perceptual_weight=0.0,
        codebook_ema_decay=None,
        dead_code_after=None,
        beta_on=beta_on,
    )
    assert not module.validate()
    z = torch.randn(2, 4, TOKENIZER.quantized_embed_dim, requires_grad=True)
    embeddings, indices, loss = module.quantize(z)
    loss.backward()
    codes, beta = module.model.codebook.detach(), 0.25
    nearest = codes[torch.cdist(z.flatten(0, 1), codes).argmin(1)].view_as(z)
    of_features, of_codes = (beta, 1.0) if beta_on is BetaOn.features else (1.0, beta)
    distance = F.mse_loss(z, nearest)
    torch.testing.assert_close(loss, (of_features + of_codes) * distance)
    torch.testing.assert_close(z.grad, of_features * 2 * (z - nearest).detach() / z.numel())


def test_beta_on_codes_needs_codes_that_are_trained():
    module = TokenizerModule(
        VQGAN(TOKENIZER),
        partial(torch.optim.Adam, lr=1e-4),
        perceptual_weight=0.0,
        beta_on=BetaOn.codes,
    )
    assert module.validate() == [
        "beta_on=codes is for codes that are trained by gradient: set codebook_ema_decay=null or "
        "beta_on=features"
    ]
