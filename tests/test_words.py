"""The vocabulary: words that must not appear in code, configs and docs, each with its replacement.

Identifiers are split at underscores and capitals first, so "image" in the table also covers
`images_in` and `ImageDataset`. A phrase also matches across a line break.
"""

import bisect
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PATTERNS = (
    "delvm/**/*.py", "delvm/**/*.cpp", "delvm/**/*.h", "delvm/**/*.j2", "conf/**/*.yaml",
    "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile", "pyproject.toml",
    ".pre-commit-config.yaml", "docs/*.md", "notebooks/*.ipynb", "examples/**/*.*",
    "experiments/**/*.py", "experiments/**/*.md", "tests/**/*.py",
)  # fmt: skip
LATER = ("delvm/cli.py", "delvm/commands/*", "delvm/configs/*", "tests/commands/*")
TEXT = {".py", ".cpp", ".h", ".j2", ".yaml", ".md", ".toml", ".ipynb", ".sbatch", ""}

# What one can count, and what one can count it by: "tokens a second", "one file a task".
_COUNTED = (
    "bits|bytes|classes|clips|codes|cores|crops|devices|entries|examples|files|FLOPs?|GFLOPs?|GiB|"
    "GPUs|ids|images|jobs|layers|lines|masks|MiB|names|nanoseconds|ns|pairs|people|pixels|"
    "processes|queries|records|rows|samples|seconds|sentences|shards|steps|threads|tokens|values|"
    "vectors|workers"
)
_ONE = (
    "batch|byte|bit|call|column|core|digit|draw|entry|file|GPU|image|job|line|number|pair|panel|"
    "process|prompt|record|row|shard|stage|step|thread|token|value|worker"
)
_PER = (
    "batch|class|clip|copy|core|data set|device|epoch|example|family|folder|GPU|hour|image|job|"
    "key|layer|line|machine|minute|name|node|pair|pass|person|pixel|process|query|rank|record|row|"
    "run|second|sentence|setting|shard|source|split|stage|step|student|task|token|verb|video|worker"
)
# Not before a verb, as in "the tokens a student predicts".
_THEN = r"(?=\s*[^\w\s]|\s(?:and|as|at|below|by|each|for|from|in|is|of|on|or|than|to|with)\b)"

# regular expression (a space is any white space) -> what to write instead
BANNED = {
    # British spelling
    r"colou?ris(?:e[ds]?|ing|ation)|colour\w*|discolour\w*": "color, colorize, colorization",
    r"grey\w*": "gray",
    r"centr(?:es?|ed|ing)": "center",
    r"(?:analys|catalogu|categoris|emphasis|finalis|generalis|initialis|localis|materialis|"
    r"maximis|memoris|minimis|normalis|optimis|organis|parallelis|parameteris|quantis|randomis|"
    r"realis|recognis|regularis|serialis|specialis|stabilis|standardis|summaris|synchronis|"
    r"tokenis|utilis|vectoris|visualis)(?:e[drs]?|ing|ations?)": "-ize, -izing, -ization",
    r"learnt|spelt|burnt|dreamt": "learned, spelled",
    r"artefacts?|behaviours?|favour\w*|honour\w*|judgement|neighbour\w*|programmes?|whilst": (
        "artifact, behavior, favor, neighbor, while"
    ),
    r"(?:cancel|label|level|model|signal|total|travel|tunnel|unlabel)l(?:ed|ing|er)": (
        "one l: labeled, modeling"
    ),
    r"distils?": "distill",
    # one word, several meanings
    r"pictures?": "image",
    r"(?<!page )faults?(?! toleran)|faulty|faultless": "error, issue, corrupt",
    r"processors?": "CPU",
    r"(?<!stick )figures": "metrics, values, numbers",
    r"anew": "again, from scratch",
    r"beside": "next to, alongside, compared with, vs.",
    r"things?": "name it",
    r"told|tells": "report, print, show, distinguish, instruct",
    r"said|says|unsaid": "state, report, print, give",
    r"wanted": "expected, required",
    r"mark(?= =|,|\))": "fingerprint",
    r"how many-?th|manieth": "index",
    r"mend(?:s|ed|ing|able)?": "fix",
    r"likeness(?:es)?": "reconstruction quality, similarity",
    r"adversar(?:y|ies)": "discriminator",
    r"misreads?|misreading": "token_noise",
    r"reviv(?:e[sd]?|al|ing)": "replace dead codes, reset",
    r"(?:turn|turns) about|in turns": "interleaved, alternating",
    r"of one's own": "custom, your own",
    r"riddles?": "say it plainly",
    r"drawn": "sampled, rendered, reconstructed, generated",
    r"draws? (?:a |an |the |its |each |all |more |new |one )*(?:answers?|codes?|images?|samples?|"
    r"tokens?|reconstructions?)": "sample, generate, reconstruct, render",
    r"(?:a|as a|no|this|their|its|which|equal|the same) shares?|shares? of|shares? = ": (
        "fraction, ratio, weight, part of"
    ),
    r"(?:newest|is|are|as|be|not|it|always|never|a file|one|left|stays?) whole(?! number)": (
        "complete, full, atomic, valid"
    ),
    r"whole (?:checkpoints?|pipeline|suite|test|or not)": "complete, full, valid",
    r"(?:lie|lies|lying) (?:about|above|apart|at|beside|between|beyond|below|here|in|inside|on|"
    r"outside|next|there|under|within|where)|where \w+ lies?": "is in, is located, is stored",
    r"(?:decimal |in )?(?<!decimal )(?<!in )places": "indices, positions, paths",
    r"(?:its|their|the|a|each|same|this|that|of|self\.|by) place (?:in|of|is|on|where)": (
        "index, position, path"
    ),
    r"top folder": "root folder",
    r"as many as there (?:are|is)": "all",
    r"the reference(?: repository|s|'s)?(?! (?:audio|decoder|distribution|image|implementation|"
    r"model|output|pixel|point|set|solution))": "DeLVM (the repository); or say which reference",
    # phrases
    r"(?<!there )(?:is|are|was|were|be|being) (?-i:no)(?! (?:less|longer|more|need|one|\w+er\b))": (
        "is not a, has no, without"
    ),
    r"no number(?! of)|no numbers(?! of)": "non-finite, NaN, not a number",
    r"(?:go|goes|going|went|gone) on(?= with| from| at| where| as|[,.;:)])": "resume, continue",
    rf"(?:{_COUNTED}) (?-i:an?) (?:{_PER}){_THEN}|/s an? (?:{_PER})": "per: tokens per image",
    rf"(?:an?|one|two|\d+) (?:{_ONE}) (?-i:an?) (?:{_PER}){_THEN}": "per: one file per task",
    # former names of keys, verbs and options
    r"(?<!all )(?<!all-)delvm gather|strategy\.gather": "delvm runs, strategy.param_dtype",
    r"adversarial start|lone attention|signed pixels|normalize codes|mlp width|"
    r"val every(?! n)|log every(?! n)|save every|max skipped|accumulate=|engine=|subject=|"
    r"blockwise|nearest to expected|demo alone": "the new name: see delvm/configs/renamed.yaml",
}

# (files, regular expression of a line, why the word may stay there)
ALLOWED = (
    (r"tests/test_words\.py", r"", "the table itself"),
    (r"delvm/(legacy\.py|configs/renamed\.yaml)", r"", "map former names to new ones"),
    (r"tests/(test_legacy|commands/test_renamed)\.py", r"", "tests of former names"),
    (
        r"tests/(models/test_names_on_disk|data/prepare/test_former_names)\.py",
        r"",
        "tests of former names",
    ),
    (r"tests/tasks/test_tasks\.py", r"colourisation", "test of a former name"),
    (r"delvm/interop/fingerprint\.py", r"_DEFAULTS_BEFORE_V1", "first names, part of the hash"),
    (r"CHANGELOG\.md", r"` (is|are) `|val_every|gather", "names the former keys"),
    (r"experiments/LOG\.md", r"", "a dated log stays as it was written"),
)

_REGEX = {
    re.compile(rf"(?<!\w)(?:{regex})(?!\w)", re.IGNORECASE): instead
    for regex, instead in BANNED.items()
}
_LINE_START = re.compile(r"""^\s*(?:#+|//+|\*|>|-)?\s*(?:[frb]*["'])?""")
_LINE_END = re.compile(r"""["']?\s*$""")


def files() -> list[Path]:
    found = {path for pattern in PATTERNS for path in ROOT.glob(pattern)}
    later = {path for pattern in LATER for path in ROOT.glob(pattern)}
    return sorted(path for path in found - later if path.is_file() and path.suffix in TEXT)


def plain_text(line: str) -> str:
    """A line without indentation, comment signs and quotes at its ends, identifiers split."""
    line = re.sub(r"_+|(?<=[a-z0-9])(?=[A-Z])", " ", line)
    return re.sub(r"\s+", " ", _LINE_END.sub("", _LINE_START.sub("", line)))


def violations(name: str, text: str) -> Iterator[str]:
    """One line per banned word: file:line: word, and what to write instead."""
    lines = text.splitlines()
    plain = [plain_text(line) for line in lines]
    ends = [*itertools.accumulate(len(line) + 1 for line in plain)]
    exempt = [re.compile(line) for file, line, _ in ALLOWED if re.fullmatch(file, name)]
    for regex, instead in _REGEX.items():
        for match in regex.finditer(" ".join(plain)):
            index = bisect.bisect_right(ends, match.start())
            if not any(line.search(lines[index]) for line in exempt):
                yield f"{name}:{index + 1}: '{match[0]}', write: {instead}"


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_banned_words(path):
    found = [*violations(str(path.relative_to(ROOT)), path.read_text("utf-8"))]
    assert not found, "\n" + "\n".join(found)
