"""Page and endpoint as one server."""

import os
import signal
import socket
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported

import gradio as gr  # noqa: E402
import uvicorn  # noqa: E402
from fastapi import FastAPI  # noqa: E402
from fastapi.middleware.trustedhost import TrustedHostMiddleware  # noqa: E402

import delvm  # noqa: E402
from delvm.errors import UserError  # noqa: E402
from delvm.inference.prompter import Prompter  # noqa: E402
from delvm.progress import log  # noqa: E402
from delvm.serving.cache import Cache  # noqa: E402
from delvm.serving.components import Drawings  # noqa: E402
from delvm.serving.endpoint import PREFIX, add_endpoint  # noqa: E402
from delvm.serving.gate import Gate  # noqa: E402
from delvm.serving.limits import Limits  # noqa: E402
from delvm.serving.page import CSS, build_page, theme  # noqa: E402
from delvm.serving.prompt_sets import PromptSet, copy_prompt_sets  # noqa: E402
from delvm.serving.service import Service  # noqa: E402

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def make_app(
    service: Service, prompt_sets: Sequence[PromptSet], cache: Path, host: str = LOOPBACK[0]
) -> Gate:
    """The ASGI application.

    Args:
        service: answers.
        prompt_sets: that the page offers; it serves copies, in the cache.
        cache: empty directory for uploaded files and answers, the only one that is served.
        host: that it will listen on. On a loopback address only requests to that name are
            answered, so that no web page elsewhere reaches it under a name of its own.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(cache)
    app = FastAPI(
        title="DeLVM",
        version=delvm.__version__,
        description="Answers to visual prompts. The paths begin with the version of this format.",
        openapi_url=f"{PREFIX}/openapi.json",
        docs_url=None,  # its scripts would come from elsewhere
        redoc_url=None,
    )
    add_endpoint(app, service)
    files = Cache(cache, service.limits)
    prompt_sets = copy_prompt_sets(prompt_sets, files.prompts)
    drawings = Drawings(2 * service.limits.max_upload_bytes)
    app.post("/gradio_api/component_server", include_in_schema=False)(drawings.receive)
    page = build_page(service, prompt_sets, files, drawings, title="DeLVM")
    gr.mount_gradio_app(
        app, page, path="/", footer_links=[], run_history=False, allowed_paths=[],
        blocked_paths=[], show_error=False, max_file_size=service.limits.max_upload_bytes,
        ssr_mode=False, enable_monitoring=False, pwa=False, mcp_server=False, theme=theme(),
        css_paths=[CSS],
    )  # fmt: skip
    # Gradio checks the paths that clients send only if this is set, which mounting does not do.
    page.has_launched = True
    if host in LOOPBACK:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, "[::1]"])
    return Gate(app, service.limits, files)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens, taken before models are loaded.

    Raises:
        UserError: the port is taken, or the host is not one of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
    except OSError as error:
        found.close()
        raise UserError(
            f"host={host} port={port} cannot be used: {error.strerror or error}: set port=0 for "
            "any free port, or another host"
        ) from None
    return found


def serve(
    prompters: Mapping[str, Prompter],
    prompt_sets: Sequence[PromptSet],
    limits: Limits,
    listener: socket.socket,
    host: str,
) -> None:
    """Serve until Ctrl-C or SIGTERM; uploaded files and answers are deleted then."""
    name = f"[{host}]" if ":" in host else host
    service = Service(prompters, limits)
    service.warm_up()
    with tempfile.TemporaryDirectory(prefix="delvm-serve-") as cache:
        app: Any = make_app(service, prompt_sets, Path(cache), host)
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False,
            timeout_graceful_shutdown=5,
        )  # fmt: skip
        url = f"http://{name}:{listener.getsockname()[1]}"
        log(f"page: {url}\nendpoint: {url}{PREFIX}/answer (docs/serve.md)\nstop with Ctrl-C")
        try:
            _Server(config).run(sockets=[listener])
        finally:
            service.close()


class _Server(uvicorn.Server):
    """A server that ends without raising the signal again, since stopping it is expected."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(signal.Signals(sig), frame)
        self._captured_signals.clear()
