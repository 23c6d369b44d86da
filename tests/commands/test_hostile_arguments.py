"""Words on the command line that are hard to parse end in one line of bounded length and code 2."""

import pytest

from delvm.errors import MAX_LINE

WORDS = {
    "brackets": ("train", "data.path=" + "[" * 5_000),
    "braces": ("train", "data.task_weights=" + "{a:" * 3_000),
    "parentheses": ("train", "data.path=" + "(" * 3_000),
    "interpolations": ("train", "data.path=" + "${a" * 3_000),
    "digits": ("train", "data.batch_size=" + "9" * 5_000),
    "plus signs": ("train", "+" * 5_000),
    "surrogate": ("train", "data.path=\udcff\udcfe"),
    "surrogate verb": ("\udcff",),
    "surrogate flag": ("train", "--\udcff"),
    "many choices": ("train", "seed=choice(" + "1," * 20_000 + "1)", "-m"),
    "infinite steps": ("train", "trainer.max_steps=1e400"),
    "unknown resolver": ("train", "output_dir=${nope:1}"),
}


@pytest.mark.slow
@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
def test_hostile_words_are_one_line(delvm, words):
    code, _, err = delvm(*words)
    assert code == 2
    assert len(err.splitlines()) == 1 and len(err) < MAX_LINE + 100 and err.startswith("delvm: ")
