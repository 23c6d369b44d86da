"""The command line: one file per verb, each a Hydra app, and what they share."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """A verb: `delvm.commands.NAME` holds its ``main``; its config is NAME.yaml in conf/.

    Attributes:
        help: one line.
        examples: command lines for the help page.
    """

    help: str
    examples: tuple[str, ...]


VERBS = {
    "prepare": Command(
        "write the examples of a source as image shards",
        (
            "delvm prepare",
            "delvm prepare source.size=32 output_dir=outputs/shapes32/pairs",
            "delvm prepare source=gopro source.path=GOPRO_Large output_dir=outputs/gopro",
            "delvm prepare splits=[test] overwrite=true",
        ),
    ),
    "encode": Command(
        "turn image shards into token shards",
        (
            "delvm encode balance=augment",
            "delvm encode tokenizer=outputs/shapes/tokenizer/last.ckpt",
            "delvm encode executor=processes executor.workers=4 input_dir=s3://bucket/pairs",
        ),
    ),
    "train": Command(
        "train a tokenizer or a student, or distill a teacher into a student",
        (
            "delvm train experiment=student_shapes_64",
            "delvm train experiment=student_shapes_64 student=tiny optimizer.lr=3e-4",
            "delvm train module=distillation teacher.checkpoint=outputs/teacher/last.ckpt",
            "delvm train -m experiment=student_shapes_64 student=tiny,small",
            "delvm train experiment=student_shapes_64 sweep=optuna output_dir=outputs/search",
        ),
    ),
    "runs": Command(
        "collect runs in one table: how their configs differ, and their metrics",
        (
            "delvm runs input_dir=outputs/student output=outputs/student.csv",
            "delvm runs input_dir=outputs/search output=search.csv",
        ),
    ),
    "generate": Command(
        "prompt a student with example pairs and generate the answers to queries",
        (
            "delvm generate prompt=DIR query=image.png output=answer.png",
            "delvm generate prompt=DIR query=DIR decoding=sample temperature=0.1 top_p=0.75",
        ),
    ),
    "evaluate": Command(
        "score students, or a tokenizer, on held-out pairs and write a report",
        (
            "delvm evaluate",
            "delvm evaluate students.mine=outputs/student/last.ckpt num_queries=200",
            "delvm evaluate mode=tokenizer tokenizer=outputs/shapes/tokenizer",
        ),
    ),
    "inspect": Command(
        "show shards as images and statistics, and report what is wrong with them",
        (
            "delvm inspect input_dir=outputs/shapes/tokens",
            "delvm inspect input_dir=outputs/shapes/pairs",
        ),
    ),
    "convert": Command(
        "convert token files of other projects to token shards, back, or into each other",
        (
            "delvm convert input=derain/train.bin output_dir=tokens tokenizer=PATH",
            "delvm convert input=outputs/shapes/tokens output_dir=files output_format=lvm_jsonl",
        ),
    ),
    "export": Command(
        "write a checkpoint in the layout of another project",
        (
            "delvm export checkpoint=outputs/shapes/student format=llama output_dir=llama",
            "delvm export checkpoint=outputs/tokenizer/last.ckpt format=open_muse output_dir=muse",
        ),
    ),
}
