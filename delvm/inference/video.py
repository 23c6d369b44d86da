"""Continuing a video: each new image follows the last images, as many as a window holds.

It is what LVM's code does (`evaluation/vqlm_demo/inference.py`, arXiv 2312.00785): a sentence of
frames alone, without special tokens; images are made until the context is full, then the window
moves on by one image for each new one, and new images stay the tokens that were generated. As
there, the default window is all of the context but one image: 15 frames of 256 tokens in LVM's
4,096 tokens, 7 in the 2,048 of DeLVM's students. LVM samples at temperature 1 and top-p 1.

Notation:
    B sequences    K images    N tokens per image    W images in the window
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from delvm.errors import UserError
from delvm.inference.decoding import SamplingConfig
from delvm.inference.generation import Rows, decode_tokens
from delvm.models.protocols import StudentNet


def resolve_window(window: int | None, context: int, tokens_per_image: int) -> int:
    """The number of images that each new one follows; None = as many as the context holds.

    Raises:
        UserError: it is below 1, or the window and the new image exceed the context.
    """
    most = context // tokens_per_image - 1
    if most < 1:
        raise UserError(
            f"a frame and the one after it are {2 * tokens_per_image} tokens, and the student's "
            f"context is {context}: set student=PATH to one with a longer context"
        )
    if window is None:
        return most
    if window < 1:
        raise UserError(f"window={window} is below 1: set window=1 or more")
    if window > most:
        raise UserError(
            f"window={window} and the frame after it are {(window + 1) * tokens_per_image} tokens, "
            f"and the student's context is {context}: set window={most} or less"
        )
    return window


def continue_images(
    student: StudentNet,
    images: Tensor,
    count: int,
    window: int,
    sampling: SamplingConfig,
    codebook: Tensor | None = None,
) -> Iterator[Tensor]:
    """Generate the next images of a sequence.

    Args:
        student: in evaluation mode.
        images: ids (K, N) int64, K >= 1.
        count: of new images.
        window: W, the images before a new one that it can depend on.
        sampling: how tokens are chosen; new image i samples as query i of a prompt does.
        codebook: as of `delvm.inference.generation.decode_tokens`.

    Yields:
        the ids (N,) of each new image.

    Raises:
        ValueError: W + 1 images exceed the student's context.
    """
    for ids in continue_sequences(
        student, images[None], count, window, sampling, codebook, row_ids=[0]
    ):
        yield ids[0]


def continue_sequences(
    student: StudentNet,
    images: Tensor,
    count: int,
    window: int,
    sampling: SamplingConfig,
    codebook: Tensor | None = None,
    *,
    row_ids: Sequence[int],
) -> Iterator[Tensor]:
    """Generate the next images of several sequences of the same length.

    While all images fit into the window, one key-value cache is extended. Then positions move by
    one image with each new one, and the images in the window are computed again.

    Args:
        images: ids (B, K, N) int64.
        row_ids: number of the first new image of each sequence, by which it samples, the next one
            having the next number.
        student, count, window, sampling, codebook: as of `continue_images`.

    Yields:
        the ids (B, N) of the next image of each sequence, ``count`` times.

    Raises:
        ValueError: W + 1 images exceed the student's context.
    """
    size, made = images.shape[2], 0
    images = images[:, -window:]
    while made < count:
        fitting = min(window - images.shape[1] + 1, count - made)  # until the window is full
        with torch.inference_mode():
            rows = Rows(student, images.flatten(1), fitting * size)
        for _ in range(fitting):
            numbers = [number + made for number in row_ids]
            ids = decode_tokens([rows], size, sampling, row_ids=numbers, codebook=codebook)
            rows.append(ids[:, -1:])
            images = torch.cat((images, ids[:, None]), dim=1)
            made += 1
            yield ids
        images = images[:, -window:]
