"""`delvm generate` again into the same directory: what is kept, and what is made again."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from delvm.data.image_io import to_pil
from delvm.interop.fingerprint import fingerprint
from delvm.interop.load import load_tokenizer

SAMPLED = ("decoding=sample", "temperature=1")
COUNT = 20  # two image grids, of 16 and of 4 rows


def query(folder, number, size=(20, 16)):
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / f"{number:03d}.png")


@pytest.fixture
def run(delvm, weights, prompt, tmp_path):
    for number in range(COUNT):
        query(tmp_path / "q", number)

    def run(*words, output=tmp_path / "out", expect=0):
        code, out, err = delvm(
            "generate", f"prompt={prompt}", f"query={tmp_path}/q", f"output={output}",
            f"tokenizer={weights}", f"student={weights}", "device=cpu", *words,
        )  # fmt: skip
        assert code == expect, err
        return out, err

    return run


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".jsonl"}


def written(folder, before):
    """The names of the files that were written since; their times have not changed otherwise."""
    return sorted(
        path.name
        for path in folder.glob("*.png")
        if path.stat().st_mtime_ns != before.get(path.name)
    )


def times(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.png")}


def test_ids_decode_to_the_answers(run, weights, tmp_path):
    out, _ = run(*SAMPLED, f"batch_size={COUNT}")
    assert out.endswith(f"ids: {tmp_path}/out/ids.npz\n")
    tokenizer = load_tokenizer(weights)
    with np.load(tmp_path / "out" / "ids.npz") as file:
        names, ids = file["names"], file["ids"]
        assert str(file["tokenizer"]) == fingerprint(tokenizer)
    assert ids.dtype == np.uint16 and ids.shape == (COUNT, tokenizer.tokens_per_image)
    decoded = to_pil(tokenizer.decode(torch.from_numpy(ids.astype(np.int64))))
    assert names.tolist() == [f"{number:03d}_answer.png" for number in range(COUNT)]
    for name, image in zip(names, decoded, strict=True):
        assert Image.open(tmp_path / "out" / name).tobytes() == image.tobytes()


@pytest.mark.parametrize("options", [(), SAMPLED])
@pytest.mark.slow
def test_answers_that_exist_are_not_made_again(run, tmp_path, options):
    folder = tmp_path / "out"
    _, err = run(*options)
    assert "exist" not in err
    before, made = contents(folder), times(folder)
    out, err = run(*options, "batch_size=7")
    assert err == "generate: 20 of 20 answers exist, 0 to make\n"
    assert out.startswith(f"answers: 20 in {folder}\n")
    assert contents(folder) == before and not written(folder, made)
    (folder / "003_answer.png").unlink()
    (folder / "grid_2.png").unlink()
    (folder / "ids.npz").unlink()
    _, err = run(*options)
    assert err == (
        "generate: 19 of 20 answers exist, 1 to make, 1 of them again, since their files or "
        "queries have changed\n"
    )
    assert contents(folder) == before
    assert written(folder, made) == ["003_answer.png", "grid_1.png", "grid_2.png"]


class Killed(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


@pytest.mark.slow
@pytest.mark.parametrize("answers", [0, 1, 5, 16, 19])
def test_a_killed_run_is_continued_to_the_same_files(run, tmp_path, monkeypatch, answers):
    """Rows keep the numbers that they sample with."""
    from delvm.inference.files import answer_writer

    folder, once = tmp_path / "out", tmp_path / "once"
    run(*SAMPLED, "batch_size=3", output=once)
    write, count = answer_writer.AnswerWriter.write, 0

    def write_some(self, answer):
        nonlocal count
        if count == answers:
            raise Killed
        count += 1
        write(self, answer)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(answer_writer.AnswerWriter, "write", write_some)
        run(*SAMPLED, "batch_size=3")
    assert not (folder / "ids.npz").exists()
    with (folder / "answers.jsonl").open("a") as file:
        file.write('{"answer": "019_answer.png", "row"')  # a line that was not completed
    (folder / "019_answer.png").write_bytes((once / "000_answer.png").read_bytes())  # no record
    made = times(folder)
    _, err = run(*SAMPLED, "batch_size=3")
    if answers:
        assert err.startswith(f"generate: {answers} of 20 answers exist, {20 - answers} to make\n")
    assert contents(folder) == contents(once)
    assert len([name for name in written(folder, made) if "answer" in name]) == 20 - answers
    assert run(*SAMPLED)[1] == "generate: 20 of 20 answers exist, 0 to make\n"


@pytest.mark.slow
def test_changed_and_new_queries_are_answered_and_shown(run, tmp_path):
    folder, once = tmp_path / "out", tmp_path / "once"
    run()
    made = times(folder)
    (tmp_path / "q" / "004.png").unlink()
    query(tmp_path / "q", 4, (24, 16))
    query(tmp_path / "q", 90)
    _, err = run()
    assert err.startswith("generate: 19 of 21 answers exist, 2 to make, 1 of them again, since th")
    run(output=once)
    assert contents(folder) == contents(once)
    new = ["004_answer.png", "090_answer.png", "grid_1.png", "grid_2.png"]
    assert written(folder, made) == new


@pytest.mark.slow
def test_a_row_that_moves_is_sampled_again_but_greedy_answers_are_kept(run, tmp_path):
    run("decoding=greedy", "seed=3")
    run(*SAMPLED, output=tmp_path / "sampled")
    (tmp_path / "q" / "017.png").unlink()
    assert "19 of 19 answers exist" in run("decoding=greedy", "seed=4")[1]
    _, err = run(*SAMPLED, output=tmp_path / "sampled")
    assert err.startswith("generate: 17 of 19 answers exist, 2 to make, 2 of them again")
    run(*SAMPLED, output=tmp_path / "once")
    (tmp_path / "sampled" / "017_answer.png").unlink()  # of a query that is gone
    assert contents(tmp_path / "sampled") == contents(tmp_path / "once")


@pytest.mark.slow
def test_answers_of_other_settings_are_kept_until_asked(run, tmp_path, prompt, weights):
    folder = tmp_path / "out"
    run(*SAMPLED)
    before = contents(folder)
    for words, change in (
        (("decoding=sample", "temperature=0.5"), "temperature 1.0 is now 0.5"),
        ((*SAMPLED, "seed=1"), "seed 0 is now 1"),
        ((*SAMPLED, "resize=squash"), "(resize short_side is now squash"),
        ((*SAMPLED, "precision=bf16"), "(precision fp32 is now bf16, student "),
        ((*SAMPLED, f"draft={weights}"), "(draft None is now "),
        (("decoding=greedy",), "decoding sample is now greedy, seed 0 is now None, temperature 1"),
    ):
        out, err = run(*words, expect=2)
        assert err.startswith(f"delvm: the answers in {folder} were made with other settings (")
        assert err.endswith("): set overwrite=true, or output to another directory\n")
        assert change in err and err.count("\n") == 1 and not out
        assert contents(folder) == before
    run("decoding=greedy", "overwrite=true")
    # Greedy answers are the same with a draft; nothing is drafted, so there is nothing to report.
    out, err = run("decoding=greedy", f"draft={weights}")
    assert "20 of 20 answers exist" in err and "draft" not in out
    run("decoding=greedy", output=tmp_path / "once")
    assert contents(folder) == contents(tmp_path / "once")
    assert "20 of 20 answers exist" in run("decoding=greedy")[1]
    Image.new("RGB", (16, 16)).save(next(prompt.glob("000000_img.*")))
    Image.new("RGB", (16, 16)).save(next(prompt.glob("000000_label.*")))
    assert "settings (prompt " in run("decoding=greedy", expect=2)[1]


@pytest.mark.slow
def test_a_replaced_answer_is_made_again(run, tmp_path):
    folder = tmp_path / "out"
    run()
    before = contents(folder)
    Image.new("RGB", (16, 16)).save(folder / "002_answer.png")
    assert run()[1].startswith("generate: 19 of 20 answers exist, 1 to make, 1 of them again")
    assert contents(folder) == before


@pytest.mark.slow
def test_grids_of_a_list_that_has_grown_replace_the_former_one(run, tmp_path):
    for number in range(10, COUNT):
        (tmp_path / "q" / f"{number:03d}.png").unlink()
    run()
    assert (tmp_path / "out" / "grid.png").exists()
    for number in range(10, COUNT):
        query(tmp_path / "q", number)
    _, err = run()
    assert err.startswith("generate: 10 of 20 answers exist, 10 to make\n")
    assert err.endswith("removed grid.png, the image grid of an earlier list of queries\n")
    run(output=tmp_path / "once")
    assert contents(tmp_path / "out") == contents(tmp_path / "once")


@pytest.mark.slow
def test_a_damaged_record_is_one_line_or_counted(run, tmp_path):
    record = tmp_path / "out" / "answers.jsonl"
    run()
    lines = record.read_bytes().splitlines(keepends=True)
    values = json.loads(lines[2])
    damaged = [
        b"[" * 100_000 + b"\n",
        b"\xff\n",
        json.dumps({**values, "ids": [1, 2, 3, 32]}).encode() + b"\n",
        json.dumps({**values, "ids": [1, 2]}).encode() + b"\n",
        json.dumps({**values, "ids": [10**30] * 4}).encode() + b"\n",
        json.dumps({**values, "ids": [[1], 2, 3, 4]}).encode() + b"\n",
        json.dumps({**values, "ids": ["1", "2", "3", "4"]}).encode() + b"\n",
        json.dumps({**values, "row": "0"}).encode() + b"\n",
        b'{"answer": 3}\n',
        b'{"grid": 3}\n',
    ]
    record.write_bytes(b"".join([*lines[:2], *lines[3:], *damaged]))
    _, err = run()
    assert err == (
        f"generate: 19 of 20 answers exist, 1 to make (10 lines of {record} are damaged)\n"
    )
    for first in (b"", b"{}\n", b"x\n", b"\xff\n", b'{"version": 1, "settings": {}'):
        record.write_bytes(first)
        _, err = run(expect=2)
        assert err.startswith(f"delvm: record {record}") and err.count("\n") == 1
        assert err.endswith(": set overwrite=true, or output to another directory\n")
    run("overwrite=true")
    assert run()[1].startswith("generate: 20 of 20 answers exist")


@pytest.mark.slow
def test_lines_of_jsonl_resume(delvm, weights, prompt, tmp_path):
    query(prompt, 0)
    inputs = [path.name for path in sorted(prompt.glob("000001_*"))]
    line = {"input": [*inputs, "000.png"], "target": ["000.png"]}
    (prompt / "a.jsonl").write_text(f"{json.dumps(line)}\n" * 3)

    def run(output):
        words = (f"tokenizer={weights}", f"student={weights}", "device=cpu", f"output={output}")
        code, _, err = delvm("generate", f"prompt={prompt}/a.jsonl", *words, *SAMPLED)
        assert code == 0, err
        return err

    folder = tmp_path / "out"
    run(folder)
    before = contents(folder)
    assert run(folder) == "generate: 3 of 3 answers exist, 0 to make\n"
    (folder / "000002_answer.png").unlink()
    assert run(folder).startswith("generate: 2 of 3 answers exist, 1 to make")
    assert contents(folder) == before
    query(prompt, 0, (18, 16))  # the query of all lines
    assert run(folder).startswith("generate: 0 of 3 answers exist, 3 to make, 3 of them again")
    run(tmp_path / "once")
    assert contents(folder) == contents(tmp_path / "once")


@pytest.mark.slow
def test_of_many_image_grids_the_first_and_the_last_are_printed(run, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    assert f"image grid: {folder}/grid_1.png, {folder}/grid_2.png\n" in run()[0]
    monkeypatch.setattr("delvm.commands.generate.MAX_LISTED", 1)
    assert f"image grid: {folder}/grid_1.png, ..., {folder}/grid_2.png\n" in run()[0]
