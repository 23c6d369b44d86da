"""A real HTTP server on loopback, which stalls, cuts answers and fails on request."""

import threading
from collections import Counter
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytest.importorskip("aiohttp")  # what fsspec reads http:// with


class Handler(SimpleHTTPRequestHandler):
    """Serves files, and fails by `failures`, URL path -> what happens at each of its requests.

    "500" answers so, "cut" sends half of the file and hangs up, "stall" sends half and waits; a
    path that has no failures left is served.
    """

    protocol_version = "HTTP/1.1"

    def __init__(self, *args, failures, requests, release, **options):
        self.failures, self.requests, self.release = failures, requests, release
        super().__init__(*args, **options)

    def do_GET(self):
        self.requests[self.path] += 1
        left = self.failures.get(self.path)
        failure = next(left, None) if left is not None else None
        if failure is None:
            super().do_GET()
        elif failure == "500":
            self.send_error(500)
        else:
            data = Path(self.translate_path(self.path)).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            if failure == "stall":
                self.release.wait(30)
            self.close_connection = True

    def log_message(self, *args):
        pass


@contextmanager
def serve(root, failures):
    """(URL of the root, number of requests by path)."""
    requests, release = Counter(), threading.Event()
    handler = partial(
        Handler, directory=str(root), failures=failures, requests=requests, release=release
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        release.set()
        server.shutdown()
        server.server_close()
