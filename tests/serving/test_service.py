"""Answers of the service equal those of a prompter, for one client and for many at once."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from PIL import ExifTags, Image

from delvm.errors import UserError
from delvm.inference.files.prompt_files import read_prompt
from delvm.inference.partial_answers import stream_rows
from delvm.serving.limits import Limits
from delvm.serving.service import Question, Service
from tests.serving.conftest import make_prompter, noise, png

PAIRS = tuple((png(noise(2 * i)), png(noise(2 * i + 1))) for i in range(2))
IMAGES = [(noise(2 * i), noise(2 * i + 1)) for i in range(2)]
SAMPLED = {"decoding": "sample", "temperature": 1.0, "seed": 3}


@pytest.mark.parametrize("sampling", [{}, {"decoding": "greedy", "guidance": 2.0}, SAMPLED])
@pytest.mark.parametrize("name", ["first", "second"])
def test_the_last_step_is_the_answer(service, name, sampling):
    steps = [*service.stream(Question(name, PAIRS, png(noise(9)), sampling, rows=True))]
    [expected] = service.prompters[name].complete(IMAGES, [noise(9)], **sampling)
    assert [len(each.ids) for each in steps] == [2, 4] and steps[-1].total == 4
    assert steps[-1].image.tobytes() == expected.tobytes()
    assert 0 < steps[0].seconds < steps[1].seconds and steps[0].psnr > 0
    [alone] = [s for s in service.stream(Question(name, PAIRS, png(noise(9)), sampling)) if s.image]
    assert alone.image.tobytes() == expected.tobytes()


def test_clients_at_once_get_what_they_would_get_alone(service):
    def ids(seed):
        question = Question("first", PAIRS, png(noise(seed)), SAMPLED)
        return [*service.stream(question)][-1].ids

    alone = [ids(seed) for seed in range(12)]
    with ThreadPoolExecutor(12) as clients:
        assert [*clients.map(ids, range(12))] == alone


def test_a_few_answers_are_begun_at_a_time(service, monkeypatch):
    """Each holds its keys and values until it is complete."""
    alive, most = 0, 0

    def counted(*args, **kwargs):
        nonlocal alive, most
        alive += 1
        most = max(most, alive)
        try:
            yield from stream_rows(*args, **kwargs)
        finally:
            alive -= 1

    async def at_once(count):
        async def last(seed):
            question = Question("first", PAIRS, png(noise(seed)))
            return [step async for step in service.astream(question)][-1]

        return await asyncio.gather(*map(last, range(count)))

    monkeypatch.setattr("delvm.serving.service.stream_rows", counted)
    with ThreadPoolExecutor(6) as clients:
        question = Question("first", PAIRS, png(noise(9)))
        threads = [clients.submit(lambda: [*service.stream(question)][-1]) for _ in range(6)]
        steps = asyncio.run(at_once(6)) + [each.result() for each in threads]
    assert all(each.is_complete for each in steps) and alive == 0
    assert most == service.limits.max_answers == 2


def test_whoever_stops_waiting_takes_no_slot(service):
    question = Question("first", PAIRS, png(noise(9)))
    held = [service.stream(question) for _ in range(service.limits.max_answers)]
    for each in held:
        next(each)

    async def impatient():
        with suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                async for _ in service.astream(question):
                    raise AssertionError("there was no slot")

    for _ in range(3):
        asyncio.run(impatient())
    for each in held:
        each.close()
    assert [*service.stream(question)][-1].is_complete


def test_an_abandoned_answer_holds_nobody_up(service):
    abandoned = service.stream(Question("first", PAIRS, png(noise(9))))
    next(abandoned)
    assert [*service.stream(Question("first", PAIRS, png(noise(9))))][-1].is_complete
    abandoned.close()


@pytest.mark.parametrize(
    ("question", "words"),
    [
        (Question("fisrt", PAIRS, b""), "unknown student 'fisrt': did you mean 'first'"),
        (Question("first", (), b""), "no pairs given: show the task by one pair or more"),
        (Question("first", PAIRS * 3, b""), "use at most 4 pairs"),
        (Question("first", PAIRS, b"GIF89a"), "the query cannot be read as an image"),
        (Question("first", ((PAIRS[0][0], b"x"),), b""), "the target of pair 1 cannot be read"),
        (
            Question("first", ((PAIRS[0][0], png(noise(1, (20, 30)))),), b""),
            "the input of pair 1 has 20 x 16 pixels and the target of pair 1 20 x 30: crop them",
        ),
        (
            Question("first", PAIRS, png(noise(9)), {"decoding": "greedy", "temperature": 1.0}),
            "decoding=greedy is deterministic",
        ),
    ],
)
def test_mistakes_are_reported_in_words(service, question, words):
    with pytest.raises(UserError, match=words):
        next(service.stream(question))


def test_pairs_are_turned_as_from_files(service, tmp_path):
    """One image has lost EXIF's tag that both need, so neither is turned."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    noise(0).save(tmp_path / "1_img.png", exif=exif)
    noise(1).save(tmp_path / "1_label.png")
    pair = tuple((tmp_path / f"1_{role}.png").read_bytes() for role in ("img", "label"))
    for seed in range(12):
        sampling = SAMPLED | {"seed": seed}
        *_, step = service.stream(Question("first", (pair,), png(noise(9)), sampling))
        prompt = read_prompt(tmp_path)
        [expected] = service.prompters["first"].stream(prompt, [noise(9)], **sampling)
        assert step.ids == expected.ids.tolist()


@pytest.mark.parametrize(
    ("question", "words"),
    [
        (Question("fisrt", PAIRS, b""), "unknown student"),
        (Question("first", PAIRS * 3, b""), "use at most 4 pairs"),
        (Question("first", PAIRS, b"", {"temperature": 1.0, "top_p": 2.0}), "top_p=2.0 is not in"),
    ],
)
def test_wrong_settings_are_reported_without_waiting(service, question, words):
    held = [service.stream(Question("first", PAIRS, png(noise(9)))) for _ in range(2)]
    for each in held:
        next(each)

    async def ask():
        async with asyncio.timeout(5):
            await anext(service.astream(question))

    with pytest.raises(UserError, match=words):
        asyncio.run(ask())
    for each in held:
        each.close()


def test_a_student_whose_context_holds_no_pair_is_named():
    prompter = make_prompter(1)
    prompter.student.config.max_seq_len = 8
    service = Service({"short": prompter}, Limits())
    with pytest.raises(UserError, match="student 'short': 1 pairs, a query and its answer are 16"):
        service.warm_up()
    service.close()


def test_warm_up_answers_for_every_student(service):
    service.warm_up()
