"""What `delvm.data` exports."""

import subprocess
import sys

import pytest

import delvm.data


@pytest.mark.parametrize("name", delvm.data.__all__)
def test_public_name_is_importable(name):
    assert getattr(delvm.data, name).__name__ == name


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="delvm.data.*'Sentences'"):
        delvm.data.Sentences  # noqa: B018


def test_data_types_do_not_import_torch(root):
    code = "import sys; from delvm.data import Example; print('torch' in sys.modules)"
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "False"
