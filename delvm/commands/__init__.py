"""The command line: one file a verb, each a Hydra app, and what they share."""

from dataclasses import dataclass


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
            "delvm encode executor=processes executor.workers=4 input=s3://bucket/pairs",
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
    "runs": Verb(
        "put the runs below a folder into one table: what differs, and how they did",
        (
            "delvm runs input=outputs/student output=outputs/student.csv",
            "delvm runs input=outputs/search output=search.csv",
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
