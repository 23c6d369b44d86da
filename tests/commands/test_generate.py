"""`delvm generate` on real files: what it writes, and every kind of bad input."""

import json
import shutil

import pytest
from PIL import Image

from delvm.data.image_io import open_image
from delvm.inference.files.answer_files import plan_outputs
from delvm.inference.files.prompt_files import read_prompt
from delvm.inference.prompter import Prompter
from delvm.interop.load import load_student, load_tokenizer
from delvm.interop.save import save_model
from delvm.models.vqgan import VQGAN
from delvm.viz.image_grid import BACKGROUND


@pytest.fixture
def generate(delvm, weights, prompt):
    def run(*words):
        models = (f"tokenizer={weights}", f"student={weights}", "device=cpu")
        given = [word.split("=")[0] for word in words]
        rest = [word for word in models if word.split("=")[0] not in given]
        start = [] if "prompt" in given else [f"prompt={prompt}"]
        return delvm("generate", *start, *rest, *words)

    return run


def query(folder, name="query.png", size=(50, 31)):
    folder.mkdir(parents=True, exist_ok=True)
    Image.effect_noise(size, 80).convert("RGB").save(folder / name)
    return folder / name


def test_one_query_one_file(generate, weights, prompt, tmp_path):
    path, output = query(tmp_path), tmp_path / "new" / "answer.png"
    code, out, err = generate(f"query={path}", f"output={output}")
    assert (code, err) == (0, "")
    assert out == f"answer: {output}\nimage grid: {tmp_path}/new/answer_grid.png\n"
    assert sorted(each.name for each in output.parent.iterdir()) == [
        "answer.png",
        "answer_grid.png",
    ]
    prompter = Prompter(load_tokenizer(weights), load_student(weights))
    names = [f"{i:06d}" for i in range(2)]
    pairs = [
        tuple(open_image(next(prompt.glob(f"{name}_{side}.*"))) for side in ("img", "label"))
        for name in names
    ]
    [expected] = prompter.complete(pairs, [open_image(path)])
    assert Image.open(output).tobytes() == expected.tobytes()
    grid = Image.open(output.with_name("answer_grid.png"))
    assert grid.width > 6 * 128 > grid.height  # two pairs, the query and the answer in a row


def test_several_prompts_vote_with_guidance(generate, prompt, tmp_path, monkeypatch):
    other, path = tmp_path / "2024_01_05", query(tmp_path)
    for side in ("img", "label"):
        query(other, f"1_{side}.png")
    seen = []
    stream = Prompter.stream

    def record(prompter, *given, **options):
        seen.append((given, options))
        return stream(prompter, *given, **options)

    monkeypatch.setattr(Prompter, "stream", record)
    options = (f"query={path}", f"output={tmp_path}/out", "guidance=3", "seed=4")
    assert generate(f"prompt=[{prompt},2024_01_05]", *options)[0] == 0
    [((prompts, _), sampling)] = seen
    expected = [read_prompt(prompt), read_prompt(other)]  # of different lengths
    assert [[each[0].tobytes() for each in pairs] for pairs in prompts] == [
        [each[0].tobytes() for each in pairs] for pairs in expected
    ]
    assert (sampling["guidance"], sampling["seed"], sampling["decoding"]) == (
        3,
        4,
        "mean_embedding",
    )


def test_image_grid_shows_all_prompts(generate, prompt, tmp_path):
    path = query(tmp_path)
    words = (f"query={path}", f"output={tmp_path}/answer.png")
    assert generate(f"prompt=[{prompt},{prompt}]", *words)[0] == 0
    assert Image.open(tmp_path / "answer_grid.png").width > 10 * 128  # four pairs in a row


def test_a_folder_of_queries(generate, tmp_path):
    for name in ("b.png", "a.jpg", "b.webp"):
        query(tmp_path / "queries", name)
    (tmp_path / "queries" / "notes.txt").touch()
    code, out, err = generate(f"query={tmp_path}/queries", f"output={tmp_path}/answers")
    assert code == 0
    assert err == "generate: not images, left out: notes.txt\n"
    assert out.startswith(f"answers: 3 in {tmp_path}/answers\n")
    assert sorted(path.name for path in (tmp_path / "answers").iterdir()) == [
        "a_answer.png",
        "answers.jsonl",
        "b.png_answer.png",
        "b.webp_answer.png",
        "grid.png",
        "ids.npz",
    ]


@pytest.mark.slow
def test_the_suffix_decides_the_format(generate, tmp_path):
    path = query(tmp_path)
    assert generate(f"query={path}", f"output={tmp_path}/a.jpg")[0] == 0
    assert Image.open(tmp_path / "a.jpg").format == "JPEG"
    assert Image.open(tmp_path / "a_grid.png").format == "PNG"


def test_many_queries_fill_several_grids(tmp_path):
    for number in range(17):
        query(tmp_path / "q", f"{number}.png", (4, 4))
    assert [
        path.name for path in plan_outputs(str(tmp_path / "q"), str(tmp_path / "out")).grids
    ] == [
        "grid_1.png",
        "grid_2.png",
    ]


@pytest.mark.parametrize("decoding", ["mean_embedding", "greedy"])
@pytest.mark.slow
def test_a_draft_gives_the_same_answers_and_one_line(generate, weights, tmp_path, decoding):
    for name in ("a.png", "b.png"):
        query(tmp_path / "q", name)
    words = f"query={tmp_path}/q", f"decoding={decoding}"
    assert generate(*words, f"output={tmp_path}/alone")[0] == 0
    code, out, err = generate(
        *words, f"output={tmp_path}/both", f"draft={weights}", "draft_tokens=2"
    )
    assert (code, err) == (0, "")
    assert out.splitlines()[-1].startswith("draft: ") and "tokens per call" in out
    for name in ("a_answer.png", "b_answer.png"):
        assert (tmp_path / "both" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


def write_lines(path, *lines):
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


@pytest.mark.slow
def test_each_line_of_jsonl_is_a_prompt_and_a_query(generate, prompt, weights, tmp_path):
    names = [f"{path.name}" for i in range(2) for path in sorted(prompt.glob(f"00000{i}_*"))]
    query(prompt, "q.png")
    lines = [
        {"input": [*names, "q.png"], "target": ["q.png", "q.png"]},
        {"input": [*names[2:], "q.png"], "output": "below/b.webp"},
    ]
    file = write_lines(prompt / "eval.jsonl", *lines)
    code, out, err = generate(f"prompt={file}", f"output={tmp_path}/out")
    assert code == 0 and out == (
        f"answers: 2 in {tmp_path}/out\nimage grid: {tmp_path}/out/grid.png\n"
        f"ids: {tmp_path}/out/ids.npz\n"
    )
    assert err.startswith("generate: 1 of 2 lines have several targets: the first is the true answ")
    assert sorted(
        str(path.relative_to(tmp_path / "out")) for path in tmp_path.glob("out/**/*.*")
    ) == [
        "000001_answer.png",
        "answers.jsonl",
        "below/b.webp",
        "grid.png",
        "ids.npz",
    ]
    prompter = Prompter(load_tokenizer(weights), load_student(weights))
    pairs = read_prompt(prompt)
    [first] = prompter.complete(pairs, [open_image(prompt / "q.png")])
    assert Image.open(tmp_path / "out/000001_answer.png").tobytes() == first.tobytes()
    moved = write_lines(tmp_path / "eval.jsonl", {**lines[1], "output": "b.png"})
    output = f"output={tmp_path}/moved"
    assert generate(f"prompt={moved}", f"prompt_dir={prompt}", output)[0] == 0
    [second] = prompter.complete(pairs[1:], [open_image(prompt / "q.png")])
    assert Image.open(tmp_path / "moved/b.png").tobytes() == second.tobytes()
    assert generate(f"prompt={moved}", f"prompt_dir={prompt}", f"output={tmp_path}/c.png")[0] == 0
    assert Image.open(tmp_path / "c.png").tobytes() == second.tobytes()


def test_the_grid_of_lines_has_empty_cells_and_true_answers(generate, prompt, tmp_path):
    inputs = [path.name for i in range(2) for path in sorted(prompt.glob(f"00000{i}_*"))]
    query(prompt, "q.png")
    file = write_lines(
        prompt / "eval.jsonl",
        {"input": [*inputs, "q.png"]},
        {"input": [*inputs[2:], "q.png"], "target": ["q.png"]},
    )
    assert generate(f"prompt={file}", f"output={tmp_path}/out")[0] == 0
    grid = Image.open(tmp_path / "out" / "grid.png")
    step, columns = 128 + 8, 7  # two pairs, query, answer, true answer
    assert grid.width == 8 + columns * step
    cells = [
        [grid.getpixel((8 + column * step + 64, grid.height - y)) for column in range(columns)]
        for y in (step + 72, 72)
    ]
    empty = [[cell == BACKGROUND for cell in row] for row in cells]
    assert empty[0] == [False] * 6 + [True]
    assert empty[1] == [False] * 2 + [True] * 2 + [False] * 3


def bad_lines(tmp_path, prompt):
    inputs = [path.name for path in sorted(prompt.glob("000000_*"))]
    good = {"input": [*inputs, inputs[0]]}
    cases = {
        "absolute": ([{**good, "output": "/a.png"}], "output '/a.png' is not the path of an ima"),
        "above": (
            [{**good, "output": "../a.png"}],
            "output '../a.png' is not the path of an image",
        ),
        "suffix": ([{**good, "output": "a.npz"}], "output 'a.npz' is not the path of an image"),
        "twice": ([{**good, "output": "a.png"}] * 2, "a.png is also that of prompt "),
        "grid": ([{**good, "output": "grid.png"}, good], "grid.png is also that of an image grid"),
        "an input": ([{**good, "output": inputs[0]}], "is also that of an input: write another"),
        "missing": ([{"input": [*inputs, "no.png"]}], "image not found: prompt "),
        "even": ([{"input": inputs}], "input has 2 images"),
        "long": (
            [{"input": inputs * 3 + inputs[:1]}],
            "line 1: 3 pairs, a query and its answer ar",
        ),
    }
    for name, (lines, line) in cases.items():
        file = write_lines(prompt / f"{name}.jsonl", *lines)
        output = prompt if name == "an input" else tmp_path / "out"
        yield name, ([f"prompt={file}", f"output={output}"], line)
    file = write_lines(prompt / "good.jsonl", good, good)
    one = [f"prompt={file}", f"output={tmp_path}/out.png"]
    yield "two lines", (one, "the prompt has 2 lines, output")
    yield "query", ([*one, "query=q.png"], "query=q.png is not for prompt=")
    yield "no query", ([f"prompt={prompt}", *one[1:]], "missing value for query: set query=IMAGE")


def bad_inputs(tmp_path, prompt, weights):
    path = query(tmp_path)
    empty, text = tmp_path / "empty", tmp_path / "text.png"
    empty.mkdir()
    text.write_text("not an image")
    unpaired = tmp_path / "unpaired"
    shutil.copytree(prompt, unpaired)
    next(unpaired.glob("000001_label.*")).unlink()
    long = tmp_path / "long"
    shutil.copytree(prompt, long)
    for side in ("img", "label"):
        query(long, f"000002_{side}.png")
    other = tmp_path / "other"
    save_model(VQGAN(load_tokenizer(weights).config), other)  # of the same shape, drawn anew
    student = load_student(weights)
    student.tokenizer_fingerprint = "another"
    save_model(student, tmp_path / "draft")
    q = f"query={path}"
    return {
        "missing prompt": ([q, f"prompt={tmp_path}/none"], "prompt not found: "),
        "draft of another tokenizer": (
            [q, f"draft={tmp_path}/draft"],
            "is not the one this draft was trained on (another): set draft=PATH",
        ),
        "missing draft": ([q, f"draft={tmp_path}/none"], "not found: "),
        "no draft tokens": ([q, f"draft={weights}", "draft_tokens=0"], "draft_tokens=0 is below 1"),
        "no draft": ([q, "draft_tokens=2"], "draft_tokens=2 is for a draft: set draft=PATH"),
        "missing query": ([f"query={tmp_path}/none.png"], "query not found: "),
        "missing tokenizer": ([q, f"tokenizer={tmp_path}/none"], "tokenizer not found: "),
        "missing student": ([q, f"student={tmp_path}/none"], "student not found: "),
        "a student as tokenizer": ([q, f"tokenizer={weights}/student"], " holds a student"),
        "not an image": ([f"query={text}"], "cannot be read as an image: not an image"),
        "not a checkpoint": ([q, f"student={text}"], "checkpoint "),
        "empty prompt": ([q, f"prompt={empty}"], " has no pairs"),
        "empty queries": ([f"query={empty}"], " has no images"),
        "unpaired": ([q, f"prompt={unpaired}"], "unpaired "),
        "another tokenizer": ([q, f"tokenizer={other}"], " is not the one this student was"),
        "too long": ([q, f"prompt={long}"], "3 pairs, a query and its answer are 32 tokens, and"),
        "unknown suffix": ([q, f"output={tmp_path}/a.xyz"], "unknown suffix '.xyz'"),
        "two for one": ([f"query={prompt}", f"output={tmp_path}/a.png"], "set output=DIR"),
        "onto the query": ([q, f"output={path}"], "output would replace the query"),
        "among queries": (
            [f"query={prompt}", f"output={prompt}"],
            "set output to another directory",
        ),
        "below a file": ([q, f"output={text}/below/a.png"], "Not a directory: "),
    }


@pytest.mark.slow
def test_bad_input_is_one_line_and_2_and_nothing_is_lost(generate, tmp_path, prompt, weights):
    check_bad(generate, tmp_path, bad_inputs(tmp_path, prompt, weights))


@pytest.mark.slow
def test_bad_lines_are_one_line_and_2_and_nothing_is_lost(generate, tmp_path, prompt):
    check_bad(generate, tmp_path, dict(bad_lines(tmp_path, prompt)))


def check_bad(generate, tmp_path, cases):
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for name, (words, line) in cases.items():
        output = (
            []
            if any(word.startswith("output=") for word in words)
            else [f"output={tmp_path}/out.png"]
        )
        code, out, err = generate(*words, *output)
        assert (code, out, err.count("\n")) == (2, "", 1), f"{name}: {err}"
        assert err.startswith("delvm: ") and line in err, f"{name}: {err}"
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == kept


def test_an_answer_is_kept_when_the_next_fails(generate, tmp_path):
    path, output = query(tmp_path), tmp_path / "answer.png"
    assert generate(f"query={path}", f"output={output}")[0] == 0
    before = output.read_bytes()
    path.write_bytes(b"damaged")
    assert generate(f"query={path}", f"output={output}")[0] == 2
    assert output.read_bytes() == before


@pytest.mark.slow
def test_answers_are_written_batch_by_batch_with_bounded_memory(
    generate, tmp_path, monkeypatch, prompt
):
    """Each batch is opened when its turn comes, and on disk before the next one is opened."""
    for number in range(9):
        query(tmp_path / "q", f"{number}.png", (16, 16))
    output, answered = tmp_path / "out", []

    def opening(path):
        answered.append(len([*output.glob("*_answer.png")]))
        return open_image(path)

    monkeypatch.setattr("delvm.commands.generate.open_image", opening)
    words = (f"query={tmp_path}/q", f"output={output}", "batch_size=3")
    code, out, err = generate(*words)
    assert code == 0 and out.startswith(f"answers: 9 in {output}\n")
    assert answered == [0] * 3 + [3] * 3 + [6] * 3
    assert "generate: 9/9 answers" in err and "answers/s" in err
    in_batches = {path.name: path.read_bytes() for path in output.glob("*_answer.png")}
    assert generate(f"query={tmp_path}/q", f"output={tmp_path}/once")[0] == 0
    at_once = {path.name: path.read_bytes() for path in (tmp_path / "once").glob("*_answer.png")}
    assert in_batches == at_once and len(at_once) == 9
    assert (output / "grid.png").read_bytes() == (tmp_path / "once" / "grid.png").read_bytes()


def test_a_query_that_is_not_an_image_is_named_before_any_answer(generate, tmp_path):
    for number in range(3):
        query(tmp_path / "q", f"{number}.png", (16, 16))
    (tmp_path / "q" / "9.png").write_text("not an image")
    code, _, err = generate(f"query={tmp_path}/q", f"output={tmp_path}/out", "batch_size=1")
    assert code == 2 and "9.png" in err and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_preset_delvm_is_greedy_and_lvm_samples():
    from delvm.commands.app import compose
    from delvm.inference.decoding import Decoding

    given = ["prompt=a", "query=b"]
    for verb, words in (("generate", given), ("evaluate", [])):
        assert compose(verb, words).decoding is Decoding.mean_embedding
        delvm = compose(verb, [*words, "preset=delvm"])
        assert (delvm.decoding, delvm.temperature, delvm.top_p) == (Decoding.greedy, 0, None)
        lvm = compose(verb, [*words, "preset=lvm"])
        assert (lvm.decoding, lvm.temperature, lvm.top_p) == (Decoding.sample, 1, 1)
        cooler = compose(verb, [*words, "preset=lvm", "temperature=0.5"])
        assert (cooler.temperature, cooler.top_k) == (0.5, None)
        assert not delvm.validate() or verb == "evaluate"


@pytest.mark.slow
def test_preset_delvm_decodes_as_greedy(generate, tmp_path):
    path = query(tmp_path)
    assert generate(f"query={path}", f"output={tmp_path}/a.png", "preset=delvm")[0] == 0
    assert generate(f"query={path}", f"output={tmp_path}/b.png", "decoding=greedy")[0] == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
