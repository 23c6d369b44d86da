"""Sizes of the runs of all studies: for a core of a CPU, or for a GPU."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_STEPS = re.compile(r"(trainer\.(?:max_steps|val_check_interval))=(\d+)")
_DIM = re.compile(r"(student\.net\.dim)=(\d+)")
_LR = re.compile(r"(optimizer\.lr)=([\d.e-]+)")


@dataclass(frozen=True)
class Preset:
    """What differs from the commands as the studies have them.

    Attributes:
        out: Where runs are.
        suffix: Of results.csv and plot.png.
        scale: That the widths of nets are multiplied by, and learning rates divided by.
        steps: That the numbers of steps are multiplied by.
        words: Further overrides of each training of a student.
        nets: Experiment -> overrides of its net, which the studies leave as they are.
        equal_compute: Steps of a student alone, as a multiple, that take as many operations as
            those of one with its teacher's forward pass.
    """

    out: Path
    suffix: str = ""
    scale: int = 1
    steps: int = 1
    words: tuple[str, ...] = ()
    nets: Mapping[str, str] = field(default_factory=dict)
    equal_compute: float = 2.56

    def apply(self, words: Sequence[str]) -> list[str]:
        """The arguments of `delvm` of a stage; those of a tokenizer and of other verbs stay."""
        name = next((word for word in words if word.startswith("experiment=")), "").partition("=")[
            2
        ]
        if name not in self.nets:
            return list(words)
        found = [self._scaled(word) for word in words]
        explicit = any(map(_DIM.match, words))
        net = [] if explicit else self.nets[name].split()
        # Last words win, and those of the study stay the last.
        return [*found[:2], *net, *self.words, *found[2:]]

    def _scaled(self, word: str) -> str:
        if found := _STEPS.fullmatch(word):
            return f"{found[1]}={int(found[2]) * self.steps}"
        if found := _DIM.fullmatch(word):
            return f"{found[1]}={int(found[2]) * self.scale}"
        if found := _LR.fullmatch(word):
            return f"{found[1]}={float(found[2]) / self.scale:g}"
        return word


_TEACHER = "student.net.dim=768 student.net.n_layers=12 student.net.n_heads=12 optimizer.lr=5e-4"
_STUDENT = "student.net.dim=512 student.net.n_layers=6 student.net.n_heads=8 optimizer.lr=8e-4"
PRESETS = {
    "cpu": Preset(Path("outputs/studies")),
    # Batches of four times the sentences, for ten times as many steps: forty times the data.
    "gpu": Preset(
        Path("outputs/studies_gpu"),
        "_gpu",
        scale=4,
        steps=10,
        words=(
            "trainer=gpu",
            "data.batch_size=64",
            # Of the experiments, where a study sets none.
            "trainer.max_steps=8000",
            "trainer.val_check_interval=8000",
        ),
        nets={
            "distill_teacher": _TEACHER,
            "distill_alone": _STUDENT,
            "distill_student": _STUDENT,
        },
        equal_compute=2.37,
    ),
}
