"""Baselines on small cases with known answers."""

import torch
from torch import Tensor

from delvm.evaluation.scores import baselines


def gray_images(*levels: float) -> Tensor:
    """Images (n, 3, 2, 2), each of one gray level."""
    return torch.tensor(levels)[:, None, None, None].expand(-1, 3, 2, 2).clone()


def test_nearest_target_compares_inputs() -> None:
    queries = gray_images(0.1, 0.8)
    inputs = torch.stack((gray_images(0.0, 0.5, 1.0), gray_images(0.9, 0.3, 0.0)))
    targets = torch.stack((gray_images(0.11, 0.12, 0.13), gray_images(0.21, 0.22, 0.23)))
    found = baselines.nearest_target(queries, inputs, targets)
    torch.testing.assert_close(found, gray_images(0.11, 0.21))


def test_nearest_target_uses_squared_error() -> None:
    # many small errors (12 x 0.3^2 = 1.08) are nearer than one large error in six values (1.5)
    query = gray_images(0.0)
    spread, lump = gray_images(0.3), gray_images(0.0)
    lump[0, :, 0, :] = 0.5
    found = baselines.nearest_target(
        query, torch.stack((lump, spread), 1), gray_images(1.0, 0.0)[None]
    )
    torch.testing.assert_close(found, gray_images(0.0))


def test_nearest_target_takes_the_first_of_equals() -> None:
    inputs, targets = gray_images(0.4, 0.6)[None], gray_images(0.0, 1.0)[None]
    torch.testing.assert_close(
        baselines.nearest_target(gray_images(0.5), inputs.double(), targets), gray_images(0.0)
    )


def test_answers_by_name() -> None:
    queries = gray_images(0.1, 0.8)
    examples = gray_images(0.0, 1.0).expand(2, -1, -1, -1, -1)
    found = baselines.answers(queries, examples, examples, gray_images(0.25)[0])
    assert tuple(found) == baselines.NAMES
    torch.testing.assert_close(found["copy_query"], queries)
    torch.testing.assert_close(found["nearest_target"], gray_images(0.0, 1.0))
    torch.testing.assert_close(found["mean_target"], gray_images(0.25, 0.25))
