"""`delvm generate`: prompt a student with example pairs and generate the answers to queries."""

from delvm.commands.app import verb_main
from delvm.commands.continue_video import continue_video
from delvm.commands.output_check import check_output_dir
from delvm.configs.verbs import GenerateConfig
from delvm.data.image_io import open_image
from delvm.inference.answer_files import AnswerWriter, plan_outputs
from delvm.inference.prompt_files import read_prompt
from delvm.inference.query_files import check_queries
from delvm.progress import track


def run(cfg: GenerateConfig) -> None:
    """Write an answer for each query, and image grids of prompt, queries and answers."""
    if cfg.video is not None:
        return continue_video(cfg, cfg.video)
    assert cfg.prompt is not None and cfg.query is not None  # or `validate` has an error
    files = plan_outputs(cfg.query, cfg.output)
    queries = [each.query for each in files.questions]
    check_output_dir(str(files.grids[0].parent), "output")
    pairs = read_prompt(cfg.prompt, cfg.prompt_dir)
    check_queries(queries)
    # Imported here: torch takes seconds, which a mistake above need not wait for.
    from delvm.inference.prompter import Prompter
    from delvm.interop.load import load_student, load_tokenizer
    from delvm.models.precision import resolve_device

    device = resolve_device(cfg.device)
    tokenizer, student = load_tokenizer(cfg.tokenizer, device), load_student(cfg.student, device)
    prompter = Prompter(tokenizer, student, resize=cfg.resize)
    writer = AnswerWriter(files, prompter.to_squares([image for pair in pairs for image in pair]))
    total = len(queries)
    answers = prompter.stream(
        pairs,
        map(open_image, queries),
        batch_size=cfg.batch_size,
        **cfg.sampling,
    )
    if total > cfg.batch_size:
        answers = track(answers, total, "generate", "answers")
    for answer in answers:
        writer.write(answer.query, answer.image)
    print(
        f"answer: {files.questions[0].answer}"
        if total == 1
        else f"answers: {total} in {cfg.output}"
    )
    print(f"image grid: {', '.join(map(str, files.grids))}")


main = verb_main(__name__)
