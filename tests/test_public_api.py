"""What `import delvm` offers, without importing anything heavy before it is used."""

import pytest

import delvm
from delvm import interop
from delvm.inference.prompter import Prompter
from delvm.interop.load import load_student, load_tokenizer
from delvm.interop.save import save_model


@pytest.mark.parametrize("name", delvm.__all__)
def test_public_names_exist(name):
    assert name in dir(delvm) and getattr(delvm, name) is not None


def test_public_names_are_those_of_their_modules():
    assert (delvm.load_student, delvm.load_tokenizer) == (load_student, load_tokenizer)
    assert delvm.Prompter is Prompter
    assert (interop.load_student, interop.load_tokenizer) == (load_student, load_tokenizer)
    assert interop.save_model is save_model


@pytest.mark.parametrize("module", [delvm, interop])
def test_unknown_name_is_an_attribute_error(module):
    with pytest.raises(AttributeError, match="has no attribute 'load_teacher'"):
        _ = module.load_teacher
