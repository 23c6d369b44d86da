"""README and docs: their commands compose, and their links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest

from delvm.commands import VERBS
from delvm.commands.app import compose
from delvm.errors import UserError

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("experiments/**/*.md")])
# docs/reproduce.md has a test of its own.
GUIDES = [ROOT / "README.md", *sorted({*ROOT.glob("docs/*.md")} - {ROOT / "docs/reproduce.md"})]
COMMANDS = re.compile(
    r"^    (?:\S*/|torchrun .*-m )?delvm (.+)$|`delvm ([a-z]+ [^`]+=[^`]+)`", re.M
)
# Words that stand for what the reader fills in.
GENERAL = re.compile(r"\.\.\.|\b(NAME|N)\b|\|")


def commands(page: Path) -> list[list[str]]:
    """Verb and words of each complete command of a page."""
    text = re.sub(r" \\\n +", " ", page.read_text("utf-8"))
    found = [shlex.split(a or b, comments=True) for a, b in COMMANDS.findall(text)]
    return [each for each in found if each[0] in VERBS and not GENERAL.search(" ".join(each))]


def one_job(words: list[str]) -> list[str]:
    """Overrides of the first job of a sweep."""
    return [re.sub(r"^([^=]+=)([^,\[{(]+),.*", r"\1\2", each) for each in words]


@pytest.mark.slow
@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_each_command_composes(page):
    for verb, *words in commands(page):
        overrides = [each for each in words if not each.startswith("-")]
        if "--config-dir" in words:
            folder = words[words.index("--config-dir") + 1]
            overrides = [f"hydra.searchpath=[{ROOT / folder}]", *overrides]
            overrides.remove(folder)
        try:
            compose(verb, one_job(overrides))
        except UserError as error:  # a sentence may name a part of a command
            assert str(error).startswith("missing value"), f"delvm {verb} {words}"


def anchors(page: Path) -> set[str]:
    """The names by which a page's headings are linked to, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.S)
    return {
        re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", text, re.M)
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_relative_link_leads_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {link}"
