"""The console script ``delvm VERB [overrides]``.

Nothing heavy is imported before a verb is known, so that ``delvm --help`` answers at once.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import delvm
from delvm.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Verb:
    """One verb: ``delvm.commands.NAME`` holds its ``run(cfg)``, ``conf/NAME.yaml`` its config."""

    help: str
    examples: tuple[str, ...]


VERBS = {
    "prepare": Verb(
        "write a source's pairs as image shards",
        (
            "delvm prepare",
            "delvm prepare source.size=32 output=outputs/shapes32/pairs",
            "delvm prepare splits=[test] overwrite=true",
        ),
    ),
    "encode": Verb(
        "turn image shards into token shards",
        (
            "delvm encode balance=augment",
            "delvm encode tokenizer=outputs/shapes/tokenizer/last.ckpt",
            "delvm encode engine=process engine.workers=4 input=s3://bucket/pairs",
        ),
    ),
    "train": Verb(
        "train a tokenizer or a student, or distil a teacher into a student",
        (
            "delvm train experiment=student_shapes_64",
            "delvm train experiment=student_shapes_64 student=tiny optim.lr=3e-4",
            "delvm train module=distillation teacher.checkpoint=outputs/teacher/last.ckpt",
            "delvm train -m experiment=student_shapes_64 student=tiny,small",
            "delvm train experiment=student_shapes_64 sweep=optuna output=outputs/search",
        ),
    ),
    "gather": Verb(
        "put the runs below a folder into one table: what differs, and how they did",
        (
            "delvm gather input=outputs/student output=outputs/student.csv",
            "delvm gather input=outputs/search output=search.csv",
        ),
    ),
    "generate": Verb(
        "prompt a student with pairs and draw the answers to queries",
        (
            "delvm generate prompt=FOLDER query=picture.png output=answer.png",
            "delvm generate prompt=FOLDER query=FOLDER temperature=0.1 top_p=0.75",
        ),
    ),
    "evaluate": Verb(
        "score students, or a tokenizer, on held-out pairs and write a report",
        (
            "delvm evaluate",
            "delvm evaluate students.mine=outputs/student/last.ckpt queries=200",
            "delvm evaluate subject=tokenizer tokenizer=outputs/shapes/tokenizer",
        ),
    ),
    "inspect": Verb(
        "look at shards as pictures and numbers, and find what is silently wrong",
        (
            "delvm inspect input=outputs/shapes/tokens",
            "delvm inspect input=outputs/shapes/pairs",
        ),
    ),
    "convert": Verb(
        "turn other projects' token files into token shards, back, or into each other",
        (
            "delvm convert input=derain/train.bin output=tokens to=shards tokenizer=PATH",
            "delvm convert input=outputs/shapes/tokens output=files to=lvm_jsonl codes=1024",
        ),
    ),
    "export": Verb(
        "write a checkpoint as other programs read it",
        (
            "delvm export checkpoint=outputs/shapes/student format=llama output=llama",
            "delvm export checkpoint=outputs/tokenizer/last.ckpt format=open_muse output=muse",
        ),
    ),
}

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
            from delvm.allocator import keep_freed
            from delvm.commands import app

            keep_freed()
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
        from delvm.training.strategies import leave

        leave(code)
    return code
