"""Baselines on cases made by hand."""

import torch
from torch import Tensor

from delvm.evaluation import baselines


def plain(*levels: float) -> Tensor:
    """Pictures (n, 3, 2, 2), each of one grey level."""
    return torch.tensor(levels)[:, None, None, None].expand(-1, 3, 2, 2).clone()


def test_nearest_target_goes_by_the_input() -> None:
    queries = plain(0.1, 0.8)
    inputs = torch.stack((plain(0.0, 0.5, 1.0), plain(0.9, 0.3, 0.0)))
    targets = torch.stack((plain(0.11, 0.12, 0.13), plain(0.21, 0.22, 0.23)))
    found = baselines.nearest_target(queries, inputs, targets)
    torch.testing.assert_close(found, plain(0.11, 0.21))


def test_nearest_is_by_squared_pixels() -> None:
    # many small errors (12 x 0.3^2 = 1.08) are nearer than one large error in six values (1.5)
    query = plain(0.0)
    spread, lump = plain(0.3), plain(0.0)
    lump[0, :, 0, :] = 0.5
    found = baselines.nearest_target(query, torch.stack((lump, spread), 1), plain(1.0, 0.0)[None])
    torch.testing.assert_close(found, plain(0.0))


def test_of_equally_near_the_first() -> None:
    inputs, targets = plain(0.4, 0.6)[None], plain(0.0, 1.0)[None]
    torch.testing.assert_close(
        baselines.nearest_target(plain(0.5), inputs.double(), targets), plain(0.0)
    )


def test_all_by_name() -> None:
    queries = plain(0.1, 0.8)
    examples = plain(0.0, 1.0).expand(2, -1, -1, -1, -1)
    found = baselines.answers(queries, examples, examples, plain(0.25)[0])
    assert tuple(found) == baselines.NAMES
    torch.testing.assert_close(found["copy_query"], queries)
    torch.testing.assert_close(found["nearest_target"], plain(0.0, 1.0))
    torch.testing.assert_close(found["mean_target"], plain(0.25, 0.25))
