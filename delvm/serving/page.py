"""What the browser shows: pairs and query to the left, sampling below, the answer to the right."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from delvm.inference.decoding import Decoding
from delvm.progress import log
from delvm.serving.cache import KEPT_SECONDS, SWEEP_SECONDS, Cache
from delvm.serving.components import Drawings, drawing_input, image_input
from delvm.serving.page_events import DRAW, OWN, UPLOAD, Events
from delvm.serving.prompt_sets import PromptSet
from delvm.serving.service import Service

CSS = Path(__file__).parent / "page.css"
MAX_PAIRS = 4  # boxes on the page, where the context holds as many

_INTRO = """# DeLVM
Show a task by example: a few pairs of images, then a query. The student answers with an image,
a row of tokens at a time. There is no text in it anywhere."""
_SMALL = "delvm-small"  # class of the boxes of pairs, see page.css

_DECODING = [
    ("mean embedding (closest in pixels)", Decoding.mean_embedding.value),
    ("greedy (most likely tokens)", Decoding.greedy.value),
    ("sample (a different answer for each seed)", Decoding.sample.value),
]


def build_page(
    service: Service,
    prompt_sets: Sequence[PromptSet],
    cache: Cache,
    drawings: Drawings,
    title: str,
) -> gr.Blocks:
    """The page as Gradio's blocks, with a queue that is bounded.

    Args:
        service: answers.
        prompt_sets: ready prompts, in the cache; the first one is shown at first.
        cache: Gradio's, for uploaded files and answers.
        drawings: that browsers have sent.
        title: of the browser's tab.
    """
    names = list(service.prompters)
    most = max(len(each.pairs) for each in prompt_sets)
    fits = min(each.max_pairs for each in service.prompters.values())
    max_pairs = max(1, min(MAX_PAIRS, max(most, 3), fits))
    for each in prompt_sets:
        if len(each.pairs) > max_pairs:
            log(f"page: of the {len(each.pairs)} pairs of {each.name}, {max_pairs} are shown")
    events = Events(service, prompt_sets, cache, drawings, max_pairs)
    ages = (SWEEP_SECONDS, KEPT_SECONDS)
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=ages) as page:
        gr.Markdown(_INTRO, elem_id="intro")
        with gr.Row(elem_id="columns"):
            with gr.Column(scale=5, min_width=300):
                task = gr.Radio(
                    [*(each.name for each in prompt_sets), OWN],
                    value=prompt_sets[0].name,
                    label="Task",
                    elem_id="task",
                )
                boxes = _pair_boxes(max_pairs)
                uploaded, drawing, tab = _query_boxes()
                for each in prompt_sets:  # Gradio deletes files of boxes otherwise
                    uploaded.keep_in_cache.update(map(str, each.files))
                students = gr.CheckboxGroup(
                    names, value=names, label="Students", visible=len(names) > 1, elem_id="students"
                )
                sampling = _sampling_boxes()
            with gr.Column(scale=4, min_width=300, elem_id="result"):
                with gr.Row():
                    run = gr.Button("Answer", variant="primary", elem_id="run", min_width=120)
                    stop = gr.Button("Stop", elem_id="stop", min_width=80, scale=0)
                outputs = _result_boxes(names)
        inputs = [students, *boxes, uploaded, drawing, tab, *sampling]
        task.change(events.pick, task, [*boxes, uploaded], show_progress="hidden")
        page.load(events.pick, task, [*boxes, uploaded], show_progress="hidden")
        for box in (*boxes, uploaded):
            box.upload(events.check, box, box, preprocess=False, show_progress="hidden")
        started = run.click(
            events.answer, inputs, outputs, preprocess=False,
            show_progress="minimal", show_progress_on=outputs[0],
        )  # fmt: skip
        stop.click(None, cancels=[started])
    return page.queue(max_size=service.limits.max_queue, default_concurrency_limit=1)


def _pair_boxes(count: int) -> list[gr.Image]:
    """Input and target of each pair, one pair above the other's column on a narrow screen."""
    boxes = []
    with gr.Row(elem_id="pairs"):
        for number in range(1, count + 1):
            with gr.Column(min_width=88, elem_classes="delvm-pair"):
                for role in ("input", "target"):
                    boxes.append(
                        image_input(
                            f"{number}: {role}",
                            height=120,
                            min_width=80,
                            placeholder="drop or click",
                            elem_classes=_SMALL,
                            elem_id=f"{role}-{number}",
                        )
                    )
    return boxes


def _query_boxes() -> tuple[gr.Image, gr.ImageEditor, gr.State]:
    tab = gr.State(UPLOAD)
    with gr.Tabs(elem_id="query-tabs"):
        with gr.Tab("Query: an image") as first:
            uploaded = image_input("Query", height=220, elem_id="query")
        with gr.Tab("Query: draw it") as second:
            drawing = drawing_input("Draw the query, or paint over an image", elem_id="drawing")
    first.select(lambda: UPLOAD, None, tab, show_progress="hidden")
    second.select(lambda: DRAW, None, tab, show_progress="hidden")
    return uploaded, drawing, tab


def _sampling_boxes() -> list[Any]:
    with gr.Accordion("Sampling", open=False, elem_id="sampling"):
        decoding = gr.Radio(_DECODING, value=Decoding.mean_embedding.value, label="Decoding")
        with gr.Column(visible=False) as sampled:
            temperature = gr.Slider(0.05, 2, 1.0, step=0.05, label="Temperature")
            top_k = gr.Slider(0, 1024, 0, step=1, label="Top k", info="0 keeps all tokens")
            top_p = gr.Slider(0.01, 1, 1.0, step=0.01, label="Top p", info="1 keeps all tokens")
            seed = gr.Number(0, label="Seed", precision=0, minimum=0)
        guidance = gr.Slider(
            0, 4, 1.0, step=0.1, label="Guidance",
            info="1 is off; above 1 exaggerates what the pairs change",
        )  # fmt: skip
    decoding.change(
        lambda method: gr.Column(visible=method == Decoding.sample),
        decoding,
        sampled,
        show_progress="hidden",
    )
    return [decoding, temperature, top_k, top_p, guidance, seed]


def _result_boxes(names: Sequence[str]) -> list[Any]:
    """Status, round trip, the answer of each student, and the download."""
    status = gr.Markdown(
        "Pick a task or upload your own pairs, then press **Answer**.",
        elem_id="status",
        min_height=48,
    )
    with gr.Row(elem_id="answers"):
        answers = [
            gr.Image(
                label=f"Answer: {name}" if len(names) > 1 else "Answer",
                alt_text=f"answer of the student {name}",
                format="png", interactive=False, buttons=["fullscreen"], min_width=140,
                elem_id=f"answer-{number}", elem_classes="delvm-answer",
            )
            for number, name in enumerate(names)
        ]  # fmt: skip
    with gr.Row():
        round_trip = gr.Image(
            label="The query through the tokenizer and back",
            alt_text="the query, encoded and decoded by the tokenizer",
            format="png", interactive=False, buttons=["fullscreen"], elem_id="round-trip",
            height=220, min_width=140,
        )  # fmt: skip
    download = gr.DownloadButton("Download the answer", interactive=False, elem_id="download")
    return [status, round_trip, *answers, download]


def theme() -> Any:
    """A theme of fonts that every system has; others would be fetched from elsewhere."""
    sans = ["system-ui", "-apple-system", "Segoe UI", "sans-serif"]
    mono = ["ui-monospace", "Consolas", "monospace"]
    return gr.themes.Default(font=sans, font_mono=mono, primary_hue="blue", neutral_hue="slate")
