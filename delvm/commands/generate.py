"""`delvm generate`: prompt a student with example pairs and generate the answers to queries."""

from delvm.commands.app import verb_main
from delvm.configs.verbs import GenerateConfig
from delvm.data.image_io import open_image
from delvm.inference.answer_files import plan_outputs, write_answers
from delvm.inference.prompt_folder import read_prompt


def run(cfg: GenerateConfig) -> None:
    """Write an answer for each query, and image grids of prompt, queries and answers."""
    files = plan_outputs(cfg.query, cfg.output)
    pairs = read_prompt(cfg.prompt)
    # Imported here: torch takes seconds, which a mistake above need not wait for.
    from delvm.inference.prompter import Prompter
    from delvm.interop.load import load_student, load_tokenizer
    from delvm.models.precision import resolve_device

    device = resolve_device(cfg.device)
    tokenizer, student = load_tokenizer(cfg.tokenizer, device), load_student(cfg.student, device)
    prompter = Prompter(tokenizer, student, resize=cfg.resize)
    prompter.check_context_length(len(pairs))
    queries = [prompter.to_squares([open_image(path)])[0] for path in files.queries]
    answers = prompter.complete(
        pairs,
        queries,
        decoding=cfg.decoding,
        temperature=cfg.temperature,
        top_k=cfg.top_k,
        top_p=cfg.top_p,
        seed=cfg.seed,
        batch_size=cfg.batch_size,
    )
    prompt = prompter.to_squares([image for pair in pairs for image in pair])
    write_answers(files, prompt, queries, answers)
    one = len(answers) == 1
    print(f"answer: {files.answers[0]}" if one else f"answers: {len(answers)} in {cfg.output}")
    print(f"image grid: {', '.join(map(str, files.grids))}")


main = verb_main(__name__)
