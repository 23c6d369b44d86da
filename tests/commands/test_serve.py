"""`delvm serve`: mistakes are found before a student is loaded."""

import importlib.util
import socket

import pytest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("port=70000",), "port=70000 is not in 0..65535: set port=7860, or 0 for any"),
        (("max_queue=0",), "max_queue=0 is below 1: set max_queue=1 or more"),
        (("max_body_seconds=0",), "max_body_seconds=0 is below 1: set max_body_seconds=1 or more"),
        (("prompts=none",), "prompts=none is not a directory: set prompts=DIR"),
        (("host=192.0.2.1",), "host=192.0.2.1 port=7860 cannot be used"),
        (("student=shapes",), "did you mean 'students'"),
        (("port=0", "students.mine=nothing"), "set students.mine=PATH"),
    ],
)
def test_mistakes_in_the_settings(delvm, words, message):
    code, _, err = delvm("serve", *words)
    assert code == 2 and message in err and err.count("\n") == 1, err


def test_a_port_that_is_taken(delvm):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err = delvm("serve", f"port={port}")
    assert code == 2 and f"port={port} cannot be used: Address already in use: set port=0" in err


def test_without_gradio_it_names_what_to_install(delvm, monkeypatch):
    monkeypatch.setattr("delvm.commands.serve.find_spec", lambda name: None)
    code, _, err = delvm("serve")
    assert code == 2 and "pip install 'delvm[serve]'" in err
    assert importlib.util.find_spec("gradio")
