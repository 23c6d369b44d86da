"""Prompt a student by example: pairs and queries as images in, answers as images out."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import cast

import torch
from PIL import Image
from torch import Tensor, nn

from delvm.data.image_io import StoredImage, aligned, to_pil, to_stored, to_tensor
from delvm.data.resizing import ResizeMode, parse_resize_mode, same_shape, to_square
from delvm.errors import UserError
from delvm.inference.decoding import Decoding, resolve_decoding
from delvm.inference.engine import Engine
from delvm.inference.sampling import num_image_tokens
from delvm.interop.fingerprint import codebook_matches, fingerprint
from delvm.models.protocols import StudentNet, TokenizerNet


class Prompter:
    """A tokenizer and a student trained on its tokens, ready to be prompted.

    Attributes:
        resize: how images of other shapes are made square.
    """

    def __init__(
        self, tokenizer: TokenizerNet, student: StudentNet, *, resize: str | None = None
    ) -> None:
        """Put both models in evaluation mode.

        Args:
            tokenizer: the one whose tokens the student was trained on.
            student: its weights stay on the device where they are.
            resize: how images of other shapes are made square, a `ResizeMode`. None: as those that
                the student was trained on, or short_side where it does not record that.

        Raises:
            UserError: the student was trained on another tokenizer's tokens, or the mode is
                unknown.
        """
        check_tokenizer_match(tokenizer, student)
        self.tokenizer, self.student = tokenizer, student
        self.engine = Engine(student)
        trained_on = str(getattr(student, "resize", ""))  # students of other packages have none
        self.resize = parse_resize_mode(resize or trained_on or ResizeMode.short_side)
        set_eval_mode(tokenizer, student)

    def complete(
        self,
        pairs: Sequence[tuple[Image.Image, Image.Image]],
        queries: Sequence[Image.Image],
        *,
        decoding: Decoding | str | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        batch_size: int = 32,
    ) -> list[Image.Image]:
        """Answer each query in the way that the pairs demonstrate.

        Args:
            pairs: (input, target) examples of any size; each is made a square of the tokenizer's
                resolution, as in `resize`.
            queries: images to answer, of any size.
            decoding: "mean_embedding" (the code nearest to the mean embedding, closest in pixels),
                "greedy" (the most likely token) or "sample". None: "sample" above temperature 0,
                "mean_embedding" at 0.
            temperature: of sampling; above 0 with "sample" only. LVM samples at 1. (DeLVM is
                greedy: its notebook sets a temperature and a top-p, but not ``do_sample``, without
                which transformers ignores both.)
            top_k, top_p: sample from the k most likely tokens, and from the fewest tokens that
                together have the probability p.
            seed: of the samples, together with the index of the query.
            batch_size: queries answered at once.

        Returns:
            one image per query, at the tokenizer's resolution.

        Raises:
            UserError: prompt and answer exceed the student's context, decoding and temperature
                contradict each other, or the images of a pair have different shapes.
        """
        answers = self.stream(
            pairs,
            queries,
            decoding=decoding,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            batch_size=batch_size,
        )
        return [answer for _, answer in answers]

    def stream(
        self,
        pairs: Sequence[tuple[Image.Image, Image.Image]],
        queries: Iterable[Image.Image],
        *,
        decoding: Decoding | str | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        batch_size: int = 32,
    ) -> Iterator[tuple[Image.Image, Image.Image]]:
        """As `complete`, for any number of queries: one batch of them is in memory at a time.

        Args:
            pairs, decoding, temperature, top_k, top_p, seed, batch_size: as for `complete`.
            queries: read as they are needed, so a generator may open them.

        Yields:
            the query as the tokenizer sees it (`to_squares`), and its answer.

        Raises:
            UserError: as `complete`, before the first query is read.
        """
        self.check_context_length(len(pairs))
        method = resolve_decoding(decoding, temperature)
        prompt = self.encode(_open_pairs(pairs)).flatten()
        waiting, start = iter(queries), 0
        while batch := self.to_squares(list(islice(waiting, batch_size))):
            query = self.encode(batch)  # (B, N)
            ids = self.engine.generate(
                prompt,
                query,
                max_new_tokens=query.shape[1],
                decoding=method,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                seed=seed,
                row_offset=start,
                codebook=self.tokenizer.codebook,
            )
            yield from zip(batch, to_pil(self.tokenizer.decode(ids)), strict=True)
            start += len(batch)

    def check_context_length(self, num_pairs: int) -> None:
        """Raise a UserError if pairs, query and answer do not fit into the student's context."""
        tokens, context = self.tokenizer.tokens_per_image, self.student.max_seq_len
        if (needed := (2 * num_pairs + 2) * tokens) > context:
            raise UserError(
                f"{num_pairs} pairs, a query and its answer are {needed} tokens, and the student's "
                f"context is {context}: use at most {max(0, context // tokens // 2 - 1)} pairs"
            )

    def encode(self, images: Sequence[Image.Image]) -> Tensor:
        """Token ids (B, N) of images of any size; (0, N) for an empty list."""
        tokenizer, device = self.tokenizer, self.tokenizer.codebook.device
        if not images:
            return torch.empty(0, tokenizer.tokens_per_image, dtype=torch.int64, device=device)
        return tokenizer.encode(to_tensor(self.to_squares(images)).to(device))

    def to_squares(self, images: Sequence[Image.Image]) -> list[Image.Image]:
        """Images of any size as the tokenizer sees them: RGB squares of its resolution."""
        size = self.tokenizer.resolution
        return [to_square(_stored(image).upright(), size, self.resize) for image in images]


def _open_pairs(pairs: Sequence[tuple[Image.Image, Image.Image]]) -> list[Image.Image]:
    """The images of all pairs in a row; those of one pair must have the same shape."""
    images = []
    for number, pair in enumerate(pairs, 1):
        first, second = aligned(_stored(pair[0]), _stored(pair[1]))
        if not same_shape(first.size, second.size):
            raise UserError(
                f"pair {number} has images of {first.width} x {first.height} and "
                f"{second.width} x {second.height} pixels: crop them to one shape"
            )
        images += [first, second]
    return images


def _stored(image: Image.Image) -> StoredImage:
    """An image as the command line sees it, not turned yet."""
    try:
        return to_stored(image)
    except (ValueError, OSError) as error:
        raise UserError(f"{image!r} cannot be read as an image: {error}") from None


def set_eval_mode(*models: TokenizerNet | StudentNet) -> None:
    """Switch dropout and the like off; every model is a `torch.nn.Module`."""
    for model in models:
        cast(nn.Module, model).eval()


def check_tokenizer_match(tokenizer: TokenizerNet, student: StudentNet) -> None:
    """Check that a student was trained on a tokenizer's tokens.

    Students of other projects do not store the fingerprint of their tokenizer. They are matched by
    the codebook that they contain or, without one, by the number of image tokens.

    Raises:
        UserError: it was trained on another tokenizer's tokens.
    """
    given, trained_on = fingerprint(tokenizer), student.tokenizer_fingerprint
    fix = "set tokenizer=PATH to the one its token shards were made with"
    if trained_on and trained_on != given:
        raise UserError(
            f"tokenizer {given} is not the one this student was trained on ({trained_on}): {fix}"
        )
    codebook_size, known = tokenizer.codebook_size, num_image_tokens(student)
    if codebook_size != known:
        raise UserError(
            f"num_embeddings {codebook_size} (tokenizer) != {known} codes (student): {fix}"
        )
    if not trained_on and not codebook_matches(student, tokenizer.codebook):
        raise UserError(
            f"the codes of tokenizer {given} differ from those that this student contains: {fix}"
        )
