"""Prompt by example: pairs and queries as pictures in, answers as pictures out."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from delvm.data.image_io import fit, to_images, to_pixels
from delvm.errors import UserError
from delvm.inference.sampling import generate
from delvm.interop.fingerprint import fingerprint, may_carry
from delvm.models.transformer import Transformer
from delvm.models.vqgan import VQGAN

Picture = Image.Image


class Prompter:
    """A tokenizer and a student that belong together, ready to be prompted."""

    def __init__(self, tokenizer: VQGAN, student: Transformer) -> None:
        """Check that the student was trained on this tokenizer's ids, as far as it tells.

        Raises:
            UserError: it was trained on another's.
        """
        check_belongs(tokenizer, student)
        self.tokenizer, self.student = tokenizer.eval(), student.eval()

    def complete(
        self,
        pairs: Sequence[tuple[Picture, Picture]],
        queries: Sequence[Picture],
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        batch_size: int = 32,
        expected: bool = True,
    ) -> list[Picture]:
        """Answer each query as the pairs show it.

        Args:
            pairs: (input, target) examples, of any size; each is resized by its short side and
                cropped at the centre to the tokenizer's resolution.
            queries: pictures to answer, of any size.
            temperature: 0 draws nothing by chance (the reference: 0.1); see ``expected``.
            top_k, top_p: keep the k most likely tokens, the fewest with a mass of p (0.75).
            seed: with the place of a query, decides its draw.
            batch_size: queries answered at once.
            expected: with temperature 0, take the code nearest to the expected one each time, by
                which pictures come closer to the truth, rather than the most likely one.

        Returns:
            one picture a query, at the tokenizer's resolution.

        Raises:
            UserError: the prompt and its answer do not fit into the student's context.
        """
        self.check_fits(len(pairs))
        if not queries:
            return []
        prompt = self.encode([picture for pair in pairs for picture in pair]).flatten()
        answers: list[Picture] = []
        for start in range(0, len(queries), batch_size):
            query = self.encode(queries[start : start + batch_size])
            prefix = torch.cat((prompt.expand(len(query), -1), query), dim=1)
            ids = generate(
                self.student, prefix, query.shape[1],
                temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, first_row=start,
                codes=self.tokenizer.codebook if expected else None,
            )  # fmt: skip
            answers += to_images(self.tokenizer.decode(ids))
        return answers

    def check_fits(self, pairs: int) -> None:
        """Raise a UserError when ``pairs`` pairs, a query and its answer exceed the context."""
        tokens = self.tokenizer.config.tokens_per_image
        context = self.student.config.context
        if (needed := (2 * pairs + 2) * tokens) > context:
            raise UserError(
                f"{pairs} pairs, a query and its answer are {needed} tokens, and the student's "
                f"context is {context}: use at most {max(0, context // tokens // 2 - 1)} pairs"
            )

    def encode(self, pictures: Sequence[Picture]) -> Tensor:
        """Ids (B, N) of pictures of any size; (0, N) of none."""
        side, device = self.tokenizer.config.resolution, self.tokenizer.codebook.device
        if not pictures:
            return torch.empty(
                0, self.tokenizer.config.tokens_per_image, dtype=torch.int64, device=device
            )
        pixels = to_pixels([fit(picture.convert("RGB"), side) for picture in pictures])
        return self.tokenizer.encode(pixels.to(device))


def check_belongs(tokenizer: VQGAN, student: Transformer) -> None:
    """Check that a student was trained on a tokenizer's ids.

    Students of other projects do not name their tokenizer: those are told by the codes they carry,
    or else by how many ids of pictures they know.

    Raises:
        UserError: it was trained on another's.
    """
    mine, theirs = fingerprint(tokenizer), student.tokenizer_fingerprint
    remedy = "set tokenizer=PATH to the one its token shards were made with"
    if theirs and theirs != mine:
        raise UserError(
            f"tokenizer {mine} is not the one this student was trained on ({theirs}): {remedy}"
        )
    codes, known = tokenizer.config.num_embeddings, student.space.codes
    if codes != known:
        raise UserError(f"num_embeddings {codes} (tokenizer) != {known} codes (student): {remedy}")
    if not theirs and not may_carry(student, tokenizer.codebook):
        raise UserError(
            f"the codes of tokenizer {mine} are not those that this student carries: {remedy}"
        )
