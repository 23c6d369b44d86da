"""The JSON endpoint, version 1: POST /v1/answer and GET /v1/students, see docs/serve.md."""

import asyncio
import base64
import binascii
from collections.abc import Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import APIRouter, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from delvm.errors import UserError
from delvm.inference.decoding import Decoding
from delvm.serving.limits import png_bytes
from delvm.serving.service import Question, Service, Step

T = TypeVar("T")
PREFIX = "/v1"
_IMAGE = "a file in PNG, JPEG, WebP, GIF or BMP, in base64"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Pair(_Strict):
    """An example of the task."""

    input: str = Field(description=_IMAGE)
    target: str = Field(description=_IMAGE)


class Sampling(_Strict):
    """How the tokens of the answer are chosen, as in `delvm generate`."""

    decoding: Decoding = Decoding.mean_embedding
    temperature: float = Field(default=0.0, description="above 0 with decoding=sample only")
    top_k: int | None = None
    top_p: float | None = None
    guidance: float = Field(default=1.0, description="1 is off")
    seed: int = Field(default=0, ge=0, lt=2**63)


class AnswerRequest(_Strict):
    """Pairs that show a task, and a query."""

    pairs: list[Pair] = Field(min_length=1, max_length=64)
    query: str = Field(description=_IMAGE)
    student: str | None = Field(
        default=None, description="a name of GET /v1/students; the first if null"
    )
    sampling: Sampling = Sampling()


class AnswerResponse(BaseModel):
    """The answer, and the query through the tokenizer and back."""

    student: str
    answer: str = Field(description="PNG in base64")
    ids: list[int] = Field(description="the tokens of the answer, in raster order")
    round_trip: str = Field(description="PNG in base64: the query, encoded and decoded")
    round_trip_psnr: float | None = Field(description="in dB; null if it is lossless")
    seconds: float = Field(description="computed, without waiting in the queue")


class Student(BaseModel):
    """A student that can be asked."""

    name: str
    parameters: int
    resolution: int = Field(description="side of the square that images are resized to, in pixels")
    tokens_per_image: int
    max_pairs: int


class LimitsResponse(BaseModel):
    """What is accepted."""

    max_upload_mb: int = Field(description="of the body of a request, in MiB")
    max_pixels: int = Field(description="of one image")
    max_queue: int = Field(description="requests that wait; one more is answered with 503")


class StudentsResponse(BaseModel):
    """All students, and what is accepted."""

    students: list[Student]
    limits: LimitsResponse


class ErrorResponse(BaseModel):
    """What is wrong with a request, in words."""

    detail: str


_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorResponse, "description": "An image or a setting cannot be used."},
    408: {"model": ErrorResponse, "description": "The request did not arrive in time."},
    413: {"model": ErrorResponse, "description": "The request is too large."},
    422: {"model": ErrorResponse, "description": "The request has another form."},
    500: {"model": ErrorResponse, "description": "The server failed; its log has the reason."},
    503: {"model": ErrorResponse, "description": "The queue is full: try again later."},
}


def add_endpoint(app: FastAPI, service: Service) -> None:
    """Add the routes of version 1, and errors in words."""
    router = APIRouter(prefix=PREFIX)

    @router.get("/students", summary="The students that can be asked")
    def students() -> StudentsResponse:
        listed = [_describe(service, name) for name in service.prompters]
        limits = {key: getattr(service.limits, key) for key in LimitsResponse.model_fields}
        return StudentsResponse(students=listed, limits=LimitsResponse(**limits))

    @router.post("/answer", summary="Answer a query as the pairs show", responses=_ERRORS)
    async def answer(body: AnswerRequest, request: Request) -> AnswerResponse:
        question = _question(body, next(iter(service.prompters)))
        step = await _unless_left(request, _last_step(service, question))
        assert step.image is not None
        return AnswerResponse(
            student=question.student,
            answer=_to_base64(png_bytes(step.image)),
            ids=step.ids,
            round_trip=_to_base64(png_bytes(step.round_trip)),
            round_trip_psnr=step.psnr if step.psnr < float("inf") else None,
            seconds=step.seconds,
        )

    @app.exception_handler(UserError)
    def user_error(_: Request, error: UserError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 400)

    @app.exception_handler(RequestValidationError)
    def form_error(_: Request, error: RequestValidationError) -> JSONResponse:
        # Not as FastAPI does, which sends back what it was sent.
        lines = [f"{_path(each['loc'])}: {each['msg']}" for each in error.errors()]
        return JSONResponse({"detail": "; ".join(lines[:10])}, 422)

    @app.exception_handler(Exception)
    def own_error(_: Request, __: Exception) -> JSONResponse:
        # Starlette raises it again after this answer, so that the log has it.
        return JSONResponse({"detail": "the server failed: its log has the reason"}, 500)

    app.include_router(router)


async def _last_step(service: Service, question: Question) -> Step:
    async with aclosing(service.astream(question)) as steps:
        async for step in steps:
            if step.is_complete:
                return step
    raise AssertionError("an answer without a last step")


async def _unless_left(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of work that is canceled as soon as the client leaves."""

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = asyncio.ensure_future(work), asyncio.ensure_future(left())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise HTTPException(499, "the client has left")
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _path(location: tuple[int | str, ...]) -> str:
    return ".".join(map(str, location[1:])) or "body"


def _describe(service: Service, name: str) -> Student:
    prompter = service.prompter(name)
    return Student(
        name=name,
        parameters=sum(each.numel() for each in prompter.student.state_dict().values()),
        resolution=prompter.tokenizer.resolution,
        tokens_per_image=prompter.tokenizer.tokens_per_image,
        max_pairs=prompter.max_pairs,
    )


def _question(body: AnswerRequest, default_student: str) -> Question:
    pairs = [
        (
            _from_base64(pair.input, f"the input of pair {number}"),
            _from_base64(pair.target, f"the target of pair {number}"),
        )
        for number, pair in enumerate(body.pairs, 1)
    ]
    sampling: Any = body.sampling.model_dump()
    query = _from_base64(body.query, "the query")
    return Question(body.student or default_student, tuple(pairs), query, sampling)


def _from_base64(text: str, name: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise UserError(f"{name} is not base64: send the bytes of a file in base64") from None


def _to_base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
