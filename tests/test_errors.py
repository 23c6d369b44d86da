"""Texts of errors."""

import pytest
from torch.utils.data import DataLoader, Dataset

from delvm.errors import UserError

TEXT = "shard 5 cannot be read:\n  - set data.retries=5\n  - or wait"


class Failing(Dataset):
    """A data set whose items cannot be read, after an error of another kind."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        try:
            raise OSError("connection refused")
        except OSError:
            raise UserError(
                "shard 5 cannot be read:\n  - set data.retries=5\n  - or wait"
            ) from None


def test_error_of_a_data_worker_is_its_own_text():
    with pytest.raises(UserError) as caught:
        next(iter(DataLoader(Failing(), num_workers=1)))
    assert str(caught.value) == TEXT
