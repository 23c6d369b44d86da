"""Mutants of every kind of file are accepted or refused in one line; `make fuzz` reads more."""

import numpy as np
import pytest

from delvm.errors import UserError
from tests.fuzz.formats import FORMATS
from tests.fuzz.run import Format, fuzz, mutant

MUTANTS = 12  # of each format


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_mutants_are_accepted_or_refused(name):
    failures, counts = fuzz(FORMATS[name], range(MUTANTS))
    assert failures == [] and sum(counts.values()) == MUTANTS


def test_mutants_are_made_again_from_their_number(tmp_path):
    each = FORMATS["rejects"]
    each.make(tmp_path)
    data = (tmp_path / each.file).read_bytes()
    made = [mutant(each, data, number) for number in (1, 2, 1)]
    assert made[0] == made[2] != made[1]


def read_badly(folder):
    """Fail in each way, by the first byte of the file."""
    first = (folder / "file").read_bytes()[0]
    if first == 1:
        raise KeyError("x")
    if first == 2:
        np.ones(2**29)
    if first == 3:
        import os

        os.abort()
    if first == 4:
        raise UserError("something is wrong")
    if first == 5:
        raise UserError(f"{folder}/file is damaged")


def test_each_kind_of_failure_is_found():
    each = Format(
        "bad",
        lambda folder: (folder / "file").write_bytes(b"\0"),
        "file",
        lambda data, rng: bytes([rng.bit_generator.seed_seq.entropy[1]]),
        read_badly,
    )
    failures, counts = fuzz(each, range(6))
    found = {failure.number: failure.kind for failure in failures}
    assert found == {1: "exception", 2: "memory", 3: "crash", 4: "message"}
    assert counts["accepted"] == counts["refused"] == 1
