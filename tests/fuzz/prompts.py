"""Prompts and records of answers: small valid samples, and who reads them."""

import json
from pathlib import Path

from PIL import Image

from delvm.inference.decoding import GREEDY
from delvm.inference.files.answer_files import Question
from delvm.inference.files.answer_record import RECORD, AnswerRecord, settings_of
from delvm.inference.files.prompt_files import (
    check_line_images,
    open_pairs,
    read_lines,
    read_prompt,
)

SETTINGS = settings_of({"tokenizer": "0123", "student": "4567", "prompt": None}, GREEDY)


def _images(folder: Path) -> None:
    for number, name in enumerate(("a", "b", "c")):
        Image.new("RGB", (8, 8), (number, 100, 0)).save(folder / f"{name}.png")


def pair_list(folder: Path) -> None:
    _images(folder)
    pairs = [["a.png", "b.png"], {"input": "b.png", "target": "c.png"}]
    (folder / "pairs.json").write_text(json.dumps(pairs))


def read_pair_list(folder: Path) -> None:
    read_prompt(folder / "pairs.json")


def lvm_lines(folder: Path) -> None:
    _images(folder)
    lines = [
        {"input": ["a.png", "b.png", "c.png"], "target": ["b.png"]},
        {"input": ["c.png", "b.png", "a.png"], "output": "answer.png"},
    ]
    (folder / "lines.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def read_lvm_lines(folder: Path) -> None:
    lines = read_lines(folder / "lines.jsonl")
    check_line_images(lines)
    for line in lines:
        open_pairs(line.pairs)


def _record(folder: Path) -> AnswerRecord:
    return AnswerRecord(folder, SETTINGS, codebook_size=32, tokens_per_image=4)


def _questions(folder: Path) -> list[Question]:
    return [Question(folder / "a.png", folder / f"{number}.png") for number in range(2)]


def answers(folder: Path) -> None:
    _images(folder)
    record = _record(folder)
    record.start()
    for row, question in enumerate(_questions(folder)):
        Image.new("RGB", (8, 8)).save(question.answer)
        record.add(row, question, [1, 2, 3, row])
    assert (folder / RECORD).stat().st_size


def continue_answers(folder: Path) -> None:
    record, questions = _record(folder), _questions(folder)
    kept = record.kept(questions)
    record.start()
    for row in {0, 1} - kept:
        record.add(row, questions[row], [1, 2, 3, row])
    record.write_ids(questions)
    assert _record(folder).kept(questions) == {0, 1}
