"""Decoding methods against the temperature."""

import pytest

from delvm.errors import UserError
from delvm.inference import Decoding, Prompter
from delvm.inference.decoding import resolve_decoding


@pytest.mark.parametrize(
    ("decoding", "temperature", "method"),
    [
        (None, 0.0, "mean_embedding"),
        (None, 0.1, "sample"),
        ("greedy", 0.0, "greedy"),
        ("mean_embedding", 0, "mean_embedding"),
        (Decoding.sample, 1.0, "sample"),
    ],
)
def test_decoding_agrees_with_temperature(decoding, temperature, method):
    assert resolve_decoding(decoding, temperature) is Decoding(method)


@pytest.mark.parametrize(
    ("decoding", "temperature", "words"),
    [
        ("sample", 0.0, ["decoding=sample", "temperature=0", "set temperature=1.0"]),
        ("greedy", 0.7, ["decoding=greedy", "temperature=0.7", "set decoding=sample"]),
        ("mean_embedding", 1, ["decoding=mean_embedding", "temperature=1", "temperature=0"]),
        ("greddy", 0.0, ["decoding=greddy", "did you mean 'greedy'"]),
    ],
)
def test_contradiction_names_decoding_and_temperature(decoding, temperature, words):
    with pytest.raises(UserError) as caught:
        resolve_decoding(decoding, temperature)
    assert all(word in str(caught.value) for word in words)


def test_public_names_are_imported_on_demand():
    import delvm
    from delvm import inference

    assert delvm.Prompter is Prompter is inference.Prompter
    with pytest.raises(AttributeError, match="nothing"):
        _ = inference.nothing
