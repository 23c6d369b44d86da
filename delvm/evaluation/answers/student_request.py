"""What an evaluation of students is asked for, and whether it is possible."""

from dataclasses import dataclass

from delvm import tasks as all_tasks
from delvm.data.shards.manifest import load_manifests
from delvm.errors import UserError, did_you_mean
from delvm.evaluation.answers.run import AnswerOptions
from delvm.evaluation.queries.prompt_selection import PromptSelection
from delvm.evaluation.queries.query_set import validate
from delvm.inference.prompter import max_pairs
from delvm.interop.fingerprint import check_tokenizer_match
from delvm.models.protocols import StudentNet, Students, TokenizerNet
from delvm.progress import log
from delvm.storage import StoragePath, as_path


@dataclass(frozen=True)
class StudentOptions(AnswerOptions):
    """The arguments of an evaluation of pairs."""

    num_shots: int
    num_prompts: int
    num_draws: int
    prompt_selection: str
    shared_prompt: bool
    compile: bool


def metric_names(task: str) -> list[str]:
    """Of images and of the set."""
    known = all_tasks.get_or_default(task)
    return [*known.metrics, *known.set_metrics]


def select_tasks(root: StoragePath, names: list[str] | None) -> list[str]:
    """The tasks to evaluate, without duplicates, trained ones first.

    Without names, examples that are not pairs, such as clips of videos, are left out and listed.

    Raises:
        UserError: A task is unknown or its examples are not pairs.
    """
    manifests = load_manifests(root, "test", "images")
    paired = [name for name, manifest in manifests.items() if manifest.images_per_example == 2]
    selected = set(names or paired)
    for name in sorted(selected):
        if name not in manifests:
            raise UserError(f"no task '{name}' in {root}/test: {did_you_mean(name, manifests)}")
        if name not in paired:
            raise UserError(
                f"task '{name}' has examples of {manifests[name].images_per_example} images, but "
                f"prompts need pairs: set tasks=[{','.join(paired)}]"
            )
    if not selected:
        raise UserError(f"{root}/test holds no pairs, which prompts need: set input_dir=FOLDER")
    if others := [name for name in manifests if name not in paired and not names]:
        log(f"evaluate: left out, since prompts need pairs: {', '.join(others)}")
    known = [name for name in all_tasks.NAMES if name in selected]
    return known + sorted(selected - set(known))


def validate_request(
    options: StudentOptions, tasks: list[str], tokenizer: TokenizerNet, students: Students
) -> None:
    """Refuse impossible requests before any work is done."""
    for name in ("num_queries", "num_shots", "num_prompts", "num_draws", "batch_size"):
        if (value := getattr(options, name)) < 1:
            raise UserError(f"{name}={value} is below 1: set {name}=1 or more")
    _validate_selection(options)
    if not students:
        raise UserError("no students to evaluate: set students.NAME=PATH")
    validate(
        as_path(options.input_dir),
        tasks,
        tokenizer.resolution,
        num_queries=options.num_queries,
        num_shots=options.num_shots,
    )
    for name, student in students.items():
        _validate_student(name, student, tokenizer, options.num_shots)
        _compare_resize(name, student, as_path(options.input_dir), tasks)


def _validate_selection(options: StudentOptions) -> None:
    selection = options.prompt_selection
    if selection not in list(PromptSelection):
        valid = did_you_mean(selection, list(PromptSelection))
        raise UserError(f"prompt_selection={selection} is unknown: {valid}")
    if selection == PromptSelection.random:
        return
    if options.num_draws > 1:
        raise UserError(
            f"num_draws={options.num_draws}, but prompt_selection={selection} always finds the "
            "same prompts: set num_draws=1"
        )
    if options.shared_prompt:
        raise UserError(
            f"shared_prompt=true, but prompt_selection={selection} finds other prompts for each "
            "query: set shared_prompt=false"
        )


def _compare_resize(name: str, student: StudentNet, root: StoragePath, tasks: list[str]) -> None:
    """Log where a student was trained on images that were made square in another way."""
    trained_on = str(getattr(student, "resize", ""))  # students of other packages have none
    manifests = load_manifests(root, "test", "images")
    given = {manifests[task].resize for task in tasks} - {"", trained_on}
    if trained_on and given:
        log(
            f"evaluate: student '{name}' was trained on images of resize={trained_on}, those in "
            f"{root} are of {', '.join(sorted(given))}: to compare it fairly, prepare them with "
            f"source.resize={trained_on}"
        )


def _validate_student(
    name: str, student: StudentNet, tokenizer: TokenizerNet, num_shots: int
) -> None:
    try:
        check_tokenizer_match(tokenizer, student)
    except UserError as error:
        raise UserError(f"student '{name}': {error}, or students.{name}=PATH") from None
    tokens, context = tokenizer.tokens_per_image, student.max_seq_len
    if (needed := (2 * num_shots + 2) * tokens) > context:
        most = max_pairs(tokenizer, student)
        fix = f"set num_shots={most}" if most > 0 else f"set students.{name}=PATH"
        raise UserError(
            f"{num_shots} pairs, a query and its answer are {needed} tokens, the context of "
            f"student '{name}' is {context}: {fix}"
        )
