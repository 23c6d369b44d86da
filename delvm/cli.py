"""The console script ``delvm VERB [overrides]``: verbs to Hydra apps, errors to one line.

Nothing heavy is imported before a verb is known, so that ``delvm --help`` answers at once.
"""

import io
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from pathlib import Path

import delvm
from delvm.commands import VERBS
from delvm.configs import config_root
from delvm.errors import UserError, did_you_mean

_HELP = """DeLVM: visual sentences. A student continues a prompt of example pairs.

usage: delvm VERB [key=value ...] [flags]

verbs:
{verbs}

flags:
  -h, --help          this page; after a verb, the verb's own
  --version           the version
  --completion SHELL  a script for tab completion: eval "$(delvm --completion bash)"

Each verb is a Hydra app: `delvm VERB --cfg job` prints its config, `-m` sweeps over values.
"""
SHELLS = ("bash", "zsh", "fish")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments after ``delvm``; None takes those of the process, as the console
            script does.

    Returns:
        The exit code: 0, 1 (a bug; its traceback is shown), 2 (a mistake that the user can fix;
        one line on stderr), 3 (done, and the result needs a look), 130 (Ctrl-C), or 128 + another
        signal.
    """
    _open_closed_streams()
    code = _run(list(sys.argv[1:] if argv is None else argv))
    if argv is None and "delvm.training.strategies" in sys.modules:
        from delvm.training.strategies import exit_process

        exit_process(code)
    return code


def _open_closed_streams() -> None:
    """Send to nowhere what a process started without stdout or stderr (``>&-``, a daemon) prints.

    Python has None for a closed stream, and the next file that is opened would get its number.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115


def _run(words: list[str]) -> int:
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors, and they are explained here
    argv = sys.argv
    try:
        _dispatch(words, [argv[0], *words], before)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("delvm: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (head, less) has gone; keep Python from flushing into it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except SystemExit as stop:  # Hydra's flags end so, and mistakes found by a job
        if not isinstance(stop.__cause__, UserError):
            return stop.code if isinstance(stop.code, int) else 1
        return _report(stop.__cause__, before)
    except Exception as error:
        return _report(error, before, *words[:1])
    finally:
        sys.argv = argv
        os.environ.pop("HYDRA_FULL_ERROR")
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before
    return 0


def _report(error: BaseException, full_error: str | None, verb: str = "") -> int:
    """Print what the user can fix in one line, and return its exit code; raise a bug."""
    if not isinstance(error, UserError) and verb in VERBS:
        from delvm.commands.explain import explained

        assert isinstance(error, Exception)
        raised, error = error, explained(error, verb)
        if isinstance(error, UserError):
            error.__cause__ = raised
    if full_error == "1" or not isinstance(error, UserError):
        raise error
    text = str(error).encode("utf-8", "backslashreplace").decode("utf-8")  # names may not be UTF-8
    print(f"delvm: {text}", file=sys.stderr)
    return error.exit_code


def _dispatch(words: list[str], argv: list[str], full_error: str | None) -> None:
    verb, rest = (words[0], words[1:]) if words else ("--help", [])
    if verb in ("-h", "--help"):
        print(help_page(), end="")
    elif verb == "--version":
        print(f"delvm {delvm.__version__}")
    elif verb == "--completion":
        _completion_script(rest[0] if rest else "")
    elif verb in ("-sc", "--shell-completion"):
        _complete(rest)
    elif verb.startswith("-"):
        flags = ["--help", "--version", "--completion"]
        raise UserError(f"unknown flag '{verb}': {did_you_mean(verb, flags)}")
    elif verb not in VERBS:
        from delvm.configs.renamed import VERBS as RENAMED_VERBS

        if verb in RENAMED_VERBS:
            raise UserError(f"unknown verb '{verb}': it is now called {RENAMED_VERBS[verb]}")
        raise UserError(f"unknown verb '{verb}': {did_you_mean(verb, VERBS)}")
    else:
        _run_verb(verb, rest, argv, full_error)


def _run_verb(verb: str, words: list[str], argv: list[str], full_error: str | None) -> None:
    from delvm.commands import app, arguments, help
    from delvm.configs.text import quote_text

    overrides, flags = arguments.split(words)
    if {"--help", "-h"} & set(flags):
        found = [i for i, flag in enumerate(flags[:-1]) if flag in ("--config-dir", "-cd")]
        print(help.page(verb, flags[found[0] + 1] if found else None), end="")
        return
    overrides = quote_text(verb, overrides)
    if not {"-c", "--cfg", "-i", "--info", "-sc", "--shell-completion"} & set(flags):
        overrides += arguments.name_by_what_varies(overrides)
    app.started_as = argv, full_error
    try:
        app.run_hydra(verb, [*overrides, *flags])
    finally:
        app.started_as = None


def _completion_script(shell: str) -> None:
    """Print the script that Hydra has for a shell; zsh and bash share one."""
    if shell not in SHELLS:
        raise UserError(f"no completion for shell '{shell}': {did_you_mean(shell, SHELLS)}")
    from delvm.commands.app import run_hydra

    if shell == "zsh":
        print("autoload -Uz bashcompinit && bashcompinit")
    run_hydra("runs", ["-sc", f"install={'bash' if shell == 'zsh' else shell}"])


def _complete(words: list[str]) -> None:
    """Answer Hydra's completion script: verbs and flags here, all else by the verb's Hydra app."""
    line = os.environ.get("COMP_LINE", "")
    line = line[: int(os.environ.get("COMP_POINT") or len(line))]
    program, *before, word = line.split(" ") if " " in line else (line, "")
    given = [each for each in before if each]
    if not given:
        print("\n".join(each for each in [*VERBS, "--help", "--version"] if each.startswith(word)))
    elif word.startswith("-"):
        from delvm.commands.arguments import VALUES

        print("\n".join(flag for flag in VALUES if flag.startswith(word) and flag[:2] == "--"))
    elif given[0] in VERBS:
        from delvm.commands.app import run_hydra
        from delvm.commands.help import groups

        # The options of a group are files: those of train need not wait for torch.
        is_option = "=" in word and word.partition("=")[0] in groups(given[0])
        os.environ["COMP_LINE"] = " ".join([program, *given[1:], word])
        answer = io.StringIO()
        # A line that cannot be composed yet has no completions.
        with suppress(Exception), redirect_stdout(answer):
            run_hydra(given[0], ["-sc", *words], schemas=not is_option)
        print("\n".join(each for each in answer.getvalue().split() if each[:6] != "schema"))


def help_page() -> str:
    """The page of ``delvm --help``: the first line of each verb's config says what it does."""
    files = {verb: config_root(verb) / f"{verb}.yaml" for verb in VERBS}
    about = {verb: file.read_text("utf-8").splitlines()[0] for verb, file in files.items()}
    return _HELP.format(
        verbs="\n".join(f"  {verb:<8}  {line.lstrip('# ')}" for verb, line in about.items())
    )
