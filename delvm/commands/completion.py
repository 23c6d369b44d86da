"""Tab completion: the scripts that shells read, and the words they ask for."""

import glob
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_type_hints

from delvm.commands import VERBS
from delvm.errors import UserError, did_you_mean

_BASH = """_delvm() {
    local line="${COMP_LINE:0:COMP_POINT}" word lead="" answer
    word="${line##* }"
    # bash takes '=' for a break between words: offer only what follows the last one
    if [[ "$COMP_WORDBREAKS" == *=* && "$word" == *=* ]]; then lead="${word%=*}="; fi
    COMPREPLY=()
    while IFS= read -r answer; do
        if [[ -n "$answer" ]]; then COMPREPLY+=("${answer#"$lead"}"); fi
    done < <("$1" --complete "$line" 2>/dev/null)
}
complete -o nospace -F _delvm delvm
"""

_ZSH = """_delvm() {
    local -a words_found
    words_found=(${(f)"$(delvm --complete "$LBUFFER" 2>/dev/null)"})
    compadd -Q -U -S '' -- $words_found
}
compdef _delvm delvm
"""

_FISH = """complete -c delvm -f -a '(delvm --complete (commandline -cp) 2>/dev/null)'
"""

SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
FLAGS = ["--help", "--multirun", "--cfg", "--resolve", "--package", "--config-dir", "--info"]


def script(shell: str) -> str:
    """The script to eval in a shell.

    Raises:
        UserError: there is none for it.
    """
    if shell not in SCRIPTS:
        raise UserError(f"no completion for shell '{shell}': {did_you_mean(shell, SCRIPTS)}")
    return SCRIPTS[shell]


def complete(line: str) -> list[str]:
    """Words that may stand where the line ends.

    Args:
        line: the command line up to the cursor, "delvm" included.

    Returns:
        whole words (``student=tiny``, not ``tiny``), each ready to follow the last blank.
    """
    *before, word = line.split(" ")
    given = [each for each in before[1:] if each]
    if not given:
        return _starting([*VERBS, "--help", "--version", "--completion"], word)
    verb, *overrides = given
    if verb not in VERBS or word.startswith("-"):
        return _starting(FLAGS, word) if verb in VERBS else []
    from delvm.commands.help import config_dir, groups, options, top_level

    conf = config_dir()
    key, equals, value = word.partition("=")
    if equals and key in groups(conf, verb):
        return [f"{key}={option}" for option in _starting(list(options(conf, key)), value)]
    if not equals and "." not in word:
        return _starting(top_level(conf, verb), word)
    from delvm.commands import app

    try:
        cfg = app.compose_partly(verb, [each for each in overrides if not each.startswith("-")])
    except UserError:
        cfg = app.compose_partly(verb, [])
    if equals:
        return [f"{key}={each}" for each in _values(cfg, key, value)]
    return _keys(cfg, key)


def _starting(words: list[str], start: str) -> list[str]:
    return [word for word in words if word.startswith(start)]


def _parent(cfg: Any, key: str) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.select(cfg, key.rpartition(".")[0], throw_on_missing=False)


def _keys(cfg: Any, start: str) -> list[str]:
    """Keys on the level that is being typed: ``key=`` for a value, ``key.`` for a level below."""
    from omegaconf import DictConfig

    node, lead = _parent(cfg, start), start[: start.rfind(".") + 1]
    if not isinstance(node, DictConfig):
        return []
    ends = {str(key): "." if isinstance(node._get_node(key), DictConfig) else "=" for key in node}
    return [f"{lead}{name}{end}" for name, end in ends.items() if f"{lead}{name}".startswith(start)]


def _values(cfg: Any, key: str, start: str) -> list[str]:
    """Values for a key: the names of its choices, else files."""
    from omegaconf import DictConfig, OmegaConf

    node = _parent(cfg, key) if "." in key else cfg
    schema = OmegaConf.get_type(node) if isinstance(node, DictConfig) else None
    kind = get_type_hints(schema).get(key.rpartition(".")[2]) if isinstance(schema, type) else None
    for each in get_args(kind) or (kind,):
        if each is bool:
            return _starting(["true", "false"], start)
        if isinstance(each, type) and issubclass(each, Enum):
            return _starting(list(each.__members__), start)
    found = sorted(glob.glob(glob.escape(start) + "*"))
    return [f"{path}/" if Path(path).is_dir() else path for path in found]
