"""Prompt a student by example: pairs and queries as images in, answers as images out."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Unpack, cast

import torch
from PIL import Image
from torch import Tensor, nn

from delvm.data.image_io import StoredImage, aligned_pair, to_pil, to_stored, to_tensor, upload
from delvm.data.resizing import ResizeMode, parse_resize_mode, to_square
from delvm.errors import UserError, check_members
from delvm.inference.decoding import SamplingConfig, SamplingOptions
from delvm.inference.engine import DRAFT_TOKENS, Engine
from delvm.inference.video import continue_images, resolve_window
from delvm.interop.fingerprint import check_tokenizer_match
from delvm.models.protocols import StudentNet, TokenizerNet

Pairs = Sequence[tuple[Image.Image, Image.Image]]  # (input, target) examples of one prompt


class Answer(NamedTuple):
    """The answer to one query.

    Attributes:
        query: as the tokenizer sees it, see `Prompter.to_squares`. Of a video, the frame before.
        image: the answer, an RGB square of the tokenizer's resolution.
        ids: its tokens, (N,) int64 on the CPU.
        prompt: input and target of each pair of the query's own prompt, as the tokenizer sees them;
            empty where all queries share a prompt.
    """

    query: Image.Image
    image: Image.Image
    ids: Tensor
    prompt: Sequence[Image.Image] = ()


class Prompter:
    """A tokenizer and a student trained on its tokens, ready to be prompted.

    Attributes:
        resize: how images of other shapes are made square.
    """

    def __init__(
        self,
        tokenizer: TokenizerNet,
        student: StudentNet,
        *,
        resize: str | None = None,
        draft: StudentNet | None = None,
        draft_tokens: int = DRAFT_TOKENS,
        compile: bool = False,
    ) -> None:
        """Put both models in evaluation mode.

        Args:
            tokenizer: the one whose tokens the student was trained on.
            student: its weights stay on the device where they are.
            resize: how images of other shapes are made square, a `ResizeMode`. None: as those that
                the student was trained on, or short_side where it does not record that.
            draft: a smaller student of the same tokenizer that proposes tokens of answers, not of
                videos, so that they come faster, see `delvm.inference.speculative`.
            draft_tokens: how many it proposes at once.
            compile: whether to compile what computes the tokens of answers, see
                `delvm.inference.static_step`.

        Raises:
            UserError: student or draft were trained on another tokenizer's tokens, the draft does
                not fit the student, the mode is unknown, or one is a path or another model.
        """
        for role, net in (("tokenizer", tokenizer), ("student", student)):
            if isinstance(net, str | Path):
                raise UserError(f"{role} is a path: give delvm.load_{role}({str(net)!r})")
        check_members(tokenizer, TokenizerNet, "tokenizer")
        check_members(student, StudentNet, "student")
        check_tokenizer_match(tokenizer, student)
        if draft is not None:
            check_tokenizer_match(tokenizer, draft, "draft")
            set_eval_mode(draft)
        self.tokenizer, self.student = tokenizer, student
        self.engine = Engine(student, draft=draft, draft_tokens=draft_tokens, compile=compile)
        trained_on = str(getattr(student, "resize", ""))  # students of other packages have none
        self.resize = parse_resize_mode(resize or trained_on or ResizeMode.short_side)
        set_eval_mode(tokenizer, student)

    def complete(
        self,
        pairs: Pairs | Sequence[Pairs],
        queries: Sequence[Image.Image],
        *,
        batch_size: int = 32,
        **sampling: Unpack[SamplingOptions],
    ) -> list[Image.Image]:
        """Answer each query in the way that the pairs demonstrate.

        Args:
            pairs: (input, target) examples of any size; each is made a square of the tokenizer's
                resolution, as in `resize`. A list of such lists is an ensemble: the prompts vote
                on each token by the mean of their log-probabilities.
            queries: images to answer, of any size.
            batch_size: queries answered at once.
            sampling: decoding, temperature, top_k, top_p, seed and guidance, as of
                `delvm.inference.decoding.SamplingConfig`.

        Returns:
            one image per query, at the tokenizer's resolution.

        Raises:
            UserError: prompt and answer exceed the student's context, decoding and temperature
                contradict each other, or the images of a pair have different shapes.
        """
        answers = self.stream(pairs, queries, batch_size=batch_size, **sampling)
        return [answer.image for answer in answers]

    def stream(
        self,
        pairs: Pairs | Sequence[Pairs],
        queries: Iterable[Image.Image],
        *,
        batch_size: int = 32,
        row_ids: Iterable[int] | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Iterator[Answer]:
        """As `complete`, for any number of queries: one batch of them is in memory at a time.

        Args:
            pairs, batch_size, sampling: as for `complete`.
            queries: read as they are needed, so a generator may open them.
            row_ids: number of each query, with which it samples whatever is answered along with it;
                None: 0, 1, 2 and so on.

        Yields:
            the answer to each query.

        Raises:
            UserError: as `complete`, before the first query is read.
        """
        config = SamplingConfig(**sampling)
        if isinstance(queries, Image.Image | str):
            raise UserError("queries are one image: give a list, [query]")
        prompts = prompt_sets(pairs)
        for prompt in prompts:
            self.check_context_length(len(prompt))
        prompt_ids = [self.encode(pair_images(prompt)).flatten() for prompt in prompts]
        numbered = enumerate(queries) if row_ids is None else zip(row_ids, queries, strict=True)
        # Each query is reduced before the next one is read: photos can be large.
        squares = ((row, self.to_squares([query])[0]) for row, query in numbered)
        while rows := list(islice(squares, batch_size)):
            batch = [square for _, square in rows]
            query = self.encode(batch)  # (B, N)
            ids = self.engine.generate(
                prompt_ids,
                query,
                query.shape[1],
                config,
                row_ids=[row for row, _ in rows],
                codebook=self.tokenizer.codebook,
            )
            yield from map(Answer, batch, to_pil(self.tokenizer.decode(ids)), ids.cpu())

    def complete_each(
        self,
        prompts: Sequence[Pairs],
        queries: Sequence[Image.Image],
        *,
        batch_size: int = 32,
        **sampling: Unpack[SamplingOptions],
    ) -> list[Image.Image]:
        """Answer each query after a prompt of its own.

        Args:
            prompts: (input, target) examples for each query; their numbers may differ.
            queries, batch_size, sampling: as for `complete`.

        Returns:
            one image per query, at the tokenizer's resolution.

        Raises:
            UserError: as `complete`.
            ValueError: there are not as many prompts as queries.
        """
        examples = zip(prompts, queries, strict=True)
        answers = self.stream_each(examples, batch_size=batch_size, **sampling)
        return [answer.image for answer in answers]

    def stream_each(
        self,
        examples: Iterable[tuple[Pairs, Image.Image]],
        *,
        batch_size: int = 32,
        row_ids: Iterable[int] | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Iterator[Answer]:
        """As `complete_each`, for any number of queries: one batch is in memory at a time.

        Args:
            examples: pairs and query, read as they are needed. Those of a batch that have equally
                many pairs are answered at once.
            batch_size, row_ids, sampling: as for `stream`.

        Yields:
            the answer to each query, in the order of the examples.

        Raises:
            UserError: as `complete`, when a batch is read.
        """
        config = SamplingConfig(**sampling)
        numbered = enumerate(examples) if row_ids is None else zip(row_ids, examples, strict=True)
        squares = ((row, self._example_squares(*example)) for row, example in numbered)
        while rows := list(islice(squares, batch_size)):
            batch = [images for _, images in rows]  # of different lengths, the query last
            ids = [self.encode(images) for images in batch]  # (images, N) each
            answers = self.engine.generate_each(
                [[each[:-1].flatten() for each in ids]],
                torch.stack([each[-1] for each in ids]),
                self.tokenizer.tokens_per_image,
                config,
                row_ids=[row for row, _ in rows],
                codebook=self.tokenizer.codebook,
                batch_size=batch_size,
            )
            generated = zip(to_pil(self.tokenizer.decode(answers)), answers.cpu(), strict=True)
            for images, (image, tokens) in zip(batch, generated, strict=True):
                yield Answer(images[-1], image, tokens, images[:-1])

    def _example_squares(self, pairs: Pairs, query: Image.Image) -> list[Image.Image]:
        """The images of one example as the tokenizer sees them, the query last."""
        self.check_context_length(len(pairs))
        return self.to_squares([*pair_images(pairs), query])

    def extend(
        self,
        frames: Sequence[Image.Image],
        n: int,
        *,
        window: int | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> list[Image.Image]:
        """Continue a video by ``n`` frames, each predicted from the frames before it.

        It is the sequential prompting of LVM, see `delvm.inference.video` for what is the same. A
        student must have been trained on clips (`delvm prepare source=video`) to continue one; the
        shipped student was not.

        Args:
            frames: of any size, at least one, in their order; each is made a square of the
                tokenizer's resolution, as in `resize`.
            n: how many frames follow; 0 or more.
            window: frames that a new one is predicted from, the last ones; None = as many as the
                student's context holds next to the new one.
            sampling: as for `complete`, but for guidance, which a video has no prompt for. Frame i
                samples with the random numbers of query i.

        Returns:
            the new frames, at the tokenizer's resolution.

        Raises:
            UserError: there are no frames, n is negative, or the window exceeds the context.
        """
        return [frame.image for frame in self.stream_frames(frames, n, window=window, **sampling)]

    def stream_frames(
        self,
        frames: Sequence[Image.Image],
        n: int,
        *,
        window: int | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Iterator[Answer]:
        """As `extend`, frame by frame.

        Args:
            frames, n, window, sampling: as for `extend`.

        Yields:
            each new frame with its ids, as the answer to the frame before it.

        Raises:
            UserError: as `extend`, before a frame is read.
        """
        config = SamplingConfig(**sampling)
        tokens, context = self.tokenizer.tokens_per_image, self.student.max_seq_len
        window = resolve_window(window, context, tokens)
        if not frames:
            raise UserError("no frames to continue: give one or more")
        if n < 0:
            raise UserError(f"num_frames={n} is below 0: set num_frames=1 or more")
        if config.guidance != 1:
            raise UserError(
                f"guidance={config.guidance:g} is for answers to a prompt, and a video has none: "
                "set guidance=1"
            )
        return self._stream_frames(self.to_squares(frames[-window:]), n, window, config)

    def _stream_frames(
        self, squares: list[Image.Image], n: int, window: int, config: SamplingConfig
    ) -> Iterator[Answer]:
        last, codebook = squares[-1], self.tokenizer.codebook
        ids = self.encode(squares)
        for new in continue_images(self.student, ids, n, window, config, codebook):
            [image] = to_pil(self.tokenizer.decode(new[None]))
            yield Answer(last, image, new.cpu())
            last = image

    @property
    def max_pairs(self) -> int:
        """How many pairs fit into the student's context next to a query and its answer."""
        return max_pairs(self.tokenizer, self.student)

    def check_context_length(self, num_pairs: int, where: str = "") -> None:
        """Raise a UserError if pairs, query and answer do not fit into the student's context."""
        tokens, context = self.tokenizer.tokens_per_image, self.student.max_seq_len
        if (needed := (2 * num_pairs + 2) * tokens) > context:
            raise UserError(
                f"{where}{num_pairs} pairs, a query and its answer are {needed} tokens, and the "
                f"student's context is {context}: use at most "
                f"{max(0, self.max_pairs)} pairs, or a student with a longer context"
            )

    def encode(self, images: Sequence[Image.Image]) -> Tensor:
        """Token ids (B, N) of images of any size; (0, N) for an empty list."""
        tokenizer, device = self.tokenizer, self.tokenizer.codebook.device
        if not images:
            return torch.empty(0, tokenizer.tokens_per_image, dtype=torch.int64, device=device)
        return tokenizer.encode(upload(to_tensor(self.to_squares(images)), device))

    def to_squares(self, images: Sequence[Image.Image]) -> list[Image.Image]:
        """Images of any size as the tokenizer sees them: RGB squares of its resolution."""
        size = self.tokenizer.resolution
        return [to_square(_stored(image).upright(), size, self.resize) for image in images]


def prompt_sets(pairs: Pairs | Sequence[Pairs]) -> list[Pairs]:
    """The prompts that vote; pairs alone are one prompt.

    Raises:
        UserError: it is a path, or one pair alone.
    """
    if isinstance(pairs, str | Path):
        raise UserError(f"pairs are a path: give delvm.inference.read_prompt({str(pairs)!r})")
    if pairs and isinstance(pairs[0], Image.Image):
        raise UserError("pairs are one pair: give a list, [(input, target)]")
    if pairs and not isinstance(pairs[0][0], Image.Image):
        return list(cast(Sequence[Pairs], pairs))
    return [cast(Pairs, pairs)]


def pair_images(pairs: Pairs) -> list[Image.Image]:
    """The images of all pairs in a row; those of one pair must have the same shape."""
    images: list[Image.Image] = []
    for number, pair in enumerate(pairs, 1):
        images += aligned_pair(_stored(pair[0]), _stored(pair[1]), pair_names(number))
    return images


def pair_names(number: int) -> tuple[str, str]:
    """What to call the images of a pair in messages, counted from 1."""
    return f"the input of pair {number}", f"the target of pair {number}"


def max_pairs(tokenizer: TokenizerNet, student: StudentNet) -> int:
    """How many pairs fit into a student's context next to a query and its answer; below 1: none."""
    return student.max_seq_len // tokenizer.tokens_per_image // 2 - 1


def _stored(image: Image.Image) -> StoredImage:
    """An image as the command line sees it, not turned yet."""
    if not isinstance(image, Image.Image):
        raise UserError(
            f"a {type(image).__name__} is not an image of PIL: give PIL.Image.open(FILE)"
        )
    try:
        return to_stored(image)
    except (ValueError, OSError) as error:
        raise UserError(f"{image!r} cannot be read as an image: {error}") from None


def set_eval_mode(*models: TokenizerNet | StudentNet) -> None:
    """Switch dropout and the like off; every model is a `torch.nn.Module`."""
    for model in models:
        cast(nn.Module, model).eval()
