"""The console script ``delvm VERB [overrides]``.

Nothing heavy is imported before a verb is known, so that ``delvm --help`` answers at once.
"""

import os
import sys
from collections.abc import Sequence

import delvm
from delvm.commands import VERBS
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


def help_page() -> str:
    """The page of ``delvm --help``."""
    width = max(map(len, VERBS))
    return _HELP.format(
        verbs="\n".join(f"  {name:<{width}}  {verb.help}" for name, verb in VERBS.items())
    )


def _general(flag: str, rest: Sequence[str]) -> None:
    """Answer a flag that comes before any verb."""
    if flag in ("-h", "--help"):
        print(help_page(), end="")
    elif flag == "--version":
        print(f"delvm {delvm.__version__}")
    elif flag == "--completion":
        from delvm.commands.completion import script

        print(script(rest[0] if rest else ""), end="")
    elif flag == "--complete":  # asked by the completion scripts; the line so far follows
        from delvm.commands.completion import complete

        print("\n".join(complete(rest[0] if rest else "")))
    else:
        flags = ["--help", "--version", "--completion"]
        raise UserError(f"unknown flag '{flag}': {did_you_mean(flag, flags)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments after ``delvm``; None takes those of the process.

    Returns:
        The exit code: 0, 1 (a bug; its traceback is shown), 2 (a mistake the user can mend; one
        line on stderr), 3 (done, and what was found wants a look) or 130
        (Ctrl-C).
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if not words:
            print(help_page(), end="")
        elif words[0].startswith("-"):
            _general(words[0], words[1:])
        elif words[0] not in VERBS:
            raise UserError(f"unknown verb '{words[0]}': {did_you_mean(words[0], VERBS)}")
        elif "--help" in words or "-h" in words:
            from delvm.commands.help import config_dir, page

            print(page(config_dir(), words[0]), end="")
        else:
            from delvm.commands import app

            app.start(words[0], words[1:])
        sys.stdout.flush()
    except UserError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"delvm: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("delvm: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (head, less) has gone; keep Python from flushing into it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0


def entry() -> int:
    """`main` of a process of its own: the console script."""
    code = main()
    if "delvm.training.strategies" in sys.modules:
        from delvm.training.strategies import exit_process

        exit_process(code)
    return code
