"""`delvm serve`: a page in the browser, and a JSON endpoint, that answer queries."""

from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path

from delvm.commands.app import verb_main
from delvm.configs.serve import ServeConfig
from delvm.errors import UserError
from delvm.progress import log


def run(cfg: ServeConfig) -> None:
    """Load the students and serve until Ctrl-C."""
    if find_spec("gradio") is None:
        raise UserError("delvm serve needs the package gradio: pip install 'delvm[serve]'")
    # Imported here: torch and Gradio take seconds, which a mistake before need not wait for.
    from delvm.inference.prompter import Prompter
    from delvm.interop.load import load_student, load_tokenizer
    from delvm.models.precision import resolve_device
    from delvm.serving.app import listen, serve
    from delvm.serving.limits import Limits
    from delvm.serving.prompt_sets import check_prompt_sets, find_prompt_sets, shipped_prompts

    prompt_sets = find_prompt_sets(Path(cfg.prompts) if cfg.prompts else shipped_prompts())
    limits = Limits(**{each.name: getattr(cfg, each.name) for each in fields(Limits)})
    check_prompt_sets(prompt_sets, limits)
    listener = listen(cfg.host, cfg.port)
    device = resolve_device(cfg.device)
    tokenizer = load_tokenizer(cfg.tokenizer, device)
    prompters = {}
    for name, path in (cfg.students or {"shapes": "shapes"}).items():
        student = load_student(path, device, cfg.precision, key=f"students.{name}")
        prompters[name] = Prompter(tokenizer, student, resize=cfg.resize)
        log(f"serve: student {name} from {path}, {student.parameter_count() / 1e6:,.1f}M")
    serve(prompters, prompt_sets, limits, listener, cfg.host)


main = verb_main(__name__)
