"""Weights by hf://USER/NAME, from a stand-in of the Hub on this machine."""

import hashlib
import json
import shutil
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlparse

import huggingface_hub
import pytest
import torch

from delvm.errors import UserError
from delvm.interop import hub
from delvm.interop.fingerprint import fingerprint
from delvm.interop.load import load_student, load_tokenizer, resolve
from delvm.interop.save import save_model
from delvm.interop.weight_files import read_tensors
from delvm.training import load_teacher
from tests.commands.conftest import delvm, prompt, weights

pytestmark = pytest.mark.slow

__all__ = ["delvm", "prompt", "weights"]  # fixtures
COMMIT = "0123456789abcdef0123456789abcdef01234567"
REVISIONS = ("main", "v1", COMMIT)


class Handler(BaseHTTPRequestHandler):
    """The three requests of the Hub that a download makes, for folders USER/NAME below a root."""

    protocol_version = "HTTP/1.1"
    root: Path
    requested: list[str]

    def do_HEAD(self):
        self._answer(with_body=False)

    def do_GET(self):
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        parts = unquote(urlparse(self.path).path).strip("/").split("/")
        self.requested.append("/".join(parts))
        is_api = parts[:2] == ["api", "models"]
        user, name, what, revision, *file = parts[2:] if is_api else parts
        folder = self.root / user / name
        if not folder.is_dir():
            return self._send(401, b"{}", {"X-Error-Code": "RepoNotFound"}, with_body)
        if revision not in REVISIONS:
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, with_body)
        files = sorted(each for each in folder.rglob("*") if each.is_file())
        names = [each.relative_to(folder).as_posix() for each in files]
        if is_api and what == "revision":
            listed = [{"rfilename": each} for each in names]
            found = {"id": f"{user}/{name}", "sha": COMMIT, "siblings": listed}
            return self._send(200, json.dumps(found).encode(), {}, with_body)
        if is_api:  # tree
            entries = [
                {"type": "file", "path": each, "size": file.stat().st_size, "oid": _etag(file)}
                for each, file in zip(names, files, strict=True)
            ]
            return self._send(200, json.dumps(entries).encode(), {}, with_body)
        path = folder / "/".join(file)
        headers = {"ETag": f'"{_etag(path)}"', "X-Repo-Commit": COMMIT}
        self._send(200, path.read_bytes(), headers, with_body)

    def _send(self, status: int, body: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *args):
        pass


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


class Remote(NamedTuple):
    """The stand-in.

    Attributes:
        root: where the folders USER/NAME are.
        requested: paths, in their order.
    """

    root: Path
    requested: list[str]
    server: ThreadingHTTPServer

    def push(self, source: Path, name: str) -> Path:
        return Path(shutil.copytree(source, self.root / name))


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """The folder of repositories; the Hub is a server that has them."""
    root = tmp_path / "remote"
    root.mkdir()
    handler = type("Bound", (Handler,), {"root": root, "requested": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    url, cache = f"http://127.0.0.1:{server.server_port}", tmp_path / "cache"
    download = huggingface_hub.snapshot_download
    local = partial(download, endpoint=url, cache_dir=cache, token=False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", local)
    hub._snapshot.cache_clear()
    yield Remote(root, handler.requested, server)
    server.shutdown()
    server.server_close()
    hub._snapshot.cache_clear()


@pytest.fixture
def pushed(remote, delvm, weights):
    """What `delvm export` writes, pushed to hf://me/tiny."""
    words = (f"checkpoint={weights}/student", f"tokenizer={weights}/tokenizer", "format=delvm")
    code, out, err = delvm("export", *words, "output_dir=push")
    assert code == 0 and "student of 0.0M parameters to push (delvm, float32)" in out, err
    return remote.push(Path("push"), "me/tiny")


def test_an_export_that_is_pushed_is_loaded(remote, pushed, weights, capsys):
    tokenizer, student = load_tokenizer("hf://me/tiny"), load_student("hf://me/tiny")
    ours = load_student(weights)
    ids = torch.randint(0, 32, (2, 12))
    assert torch.equal(student(ids), ours(ids))
    assert fingerprint(tokenizer) == student.tokenizer_fingerprint == ours.tokenizer_fingerprint
    assert f"hf://me/tiny is at hf://me/tiny@{COMMIT}" in capsys.readouterr().err
    assert (pushed / "README.md").is_file()
    assert not any(each.endswith("README.md") for each in remote.requested)


def test_it_is_downloaded_once(remote, pushed):
    load_student(f"hf://me/tiny@{COMMIT}")
    count = len(remote.requested)
    load_tokenizer(f"hf://me/tiny@{COMMIT}")
    hub._snapshot.cache_clear()  # as in another process
    load_student(f"hf://me/tiny@{COMMIT}")
    again = remote.requested[count:]
    assert not any("resolve" in each and each.endswith(".safetensors") for each in again)
    remote.server.shutdown()
    remote.server.server_close()
    hub._snapshot.cache_clear()
    assert load_student(f"hf://me/tiny@{COMMIT}").vocab_size == 32  # without a connection


def test_revisions_and_paths(remote, pushed):
    folder = resolve("hf://me/tiny@v1", "student")
    assert folder.name == "student" and COMMIT in folder.parts
    assert resolve(Path("hf://me/tiny"), "tokenizer") == folder.parent / "tokenizer"


def test_verbs_take_addresses(delvm, pushed, prompt):
    words = ("tokenizer=hf://me/tiny", f"student=hf://me/tiny@{COMMIT}", f"prompt={prompt}")
    code, _, err = delvm("generate", *words, f"query={prompt}/000000_img.png", "output=a.png")
    assert code == 0 and Path("a.png").is_file(), err
    code, out, err = delvm("export", "checkpoint=hf://me/tiny", "format=llama", "output_dir=l")
    assert code == 0 and "student of 0.0M parameters to l" in out, err


def test_a_teacher(pushed):
    assert load_teacher("hf://me/tiny").vocab_size == 32


def test_a_repository_of_another_layout(remote, delvm, weights):
    code, _, err = delvm("export", f"checkpoint={weights}", "format=llama", "output_dir=llama")
    assert code == 0, err
    remote.push(Path("llama"), "me/llama")
    assert load_student("hf://me/llama").vocab_size == 32


def test_pickles_are_neither_downloaded_nor_read(remote, weights, tmp_path):
    folder = remote.push(weights / "student", "me/pickle")
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no weights in safetensors .* pickles, which can run code"):
        load_student("hf://me/pickle")
    assert not any(each.endswith(".bin") for each in remote.requested)
    [cached] = (tmp_path / "cache").glob("*/snapshots/*")
    torch.save({}, cached / "pytorch_model.bin")  # by another program
    with pytest.raises(UserError, match="no weights in safetensors"):
        load_student("hf://me/pickle")


def test_an_index_that_names_pickles_is_refused(remote, weights):
    """By other programs these may have been downloaded to the same folder."""
    folder = remote.push(weights / "student", "me/index")
    state = read_tensors(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    index = {"weight_map": dict.fromkeys(state, "shard.bin")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"names 'shard\.bin', which is not in safetensors"):
        resolve("hf://me/index", "student")


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("hf://me", "hf://me is not an address on the Hub: set student=hf://USER/NAME"),
        ("hf://me/a/b", "is not an address on the Hub"),
        ("hf://me/../b", "is not an address on the Hub"),
        ("hf://me/none", "hf://me/none was not found on the Hub: check the name"),
        ("hf://me/tiny@v9", "hf://me/tiny has no revision v9: set student=hf://me/tiny@main"),
        ("hf://me/empty", "holds no student: it has a config.json neither at its root nor in"),
    ],
)
def test_errors_are_in_words(remote, pushed, address, words):
    (remote.root / "me/empty").mkdir()
    (remote.root / "me/empty/data.json").write_text("{}")
    with pytest.raises(UserError, match=words) as found:
        load_student(address)
    assert "\n" not in str(found.value)


def test_without_a_connection_and_cache(remote):
    remote.server.shutdown()
    remote.server.server_close()
    with pytest.raises(UserError, match="cannot be reached and is not in the cache"):
        load_student("hf://me/tiny")


def test_student_and_tokenizer_of_an_export_must_belong_together(delvm, weights):
    words = ("export", f"checkpoint={weights}", "format=delvm", "output_dir=push")
    code, _, err = delvm(*words)
    assert code == 2 and "set tokenizer=PATH to the one it was trained with" in err
    code, _, err = delvm(*words, "tokenizer=shapes")
    assert code == 2 and "is not the one this student was trained on" in err
    code, _, err = delvm(*words[:2], "format=llama", "output_dir=push", "tokenizer=shapes")
    assert code == 2 and "tokenizer=shapes is for format=delvm, not for format=llama" in err
    assert not Path("push").exists()


def test_a_student_that_records_no_tokenizer_is_matched_by_its_codes(delvm, weights, tmp_path):
    """As those of other projects are."""
    student = load_student(weights)
    student.tokenizer_fingerprint = ""
    save_model(student, tmp_path / "unnamed")
    other = load_tokenizer(weights)
    torch.nn.init.normal_(other.codebook)
    save_model(other, tmp_path / "other")
    words = ("export", f"checkpoint={tmp_path}/unnamed", "format=delvm", "output_dir=push")
    code, _, err = delvm(*words, f"tokenizer={tmp_path}/other")
    assert code == 2 and "differ from those that this student contains" in err, err
    assert not Path("push").exists()
    code, _, err = delvm(*words, f"tokenizer={weights}/tokenizer")
    assert code == 0, err


def test_a_model_card_states_what_was_exported(pushed, weights):
    card = (pushed / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: delvm\n")
    assert f"| tokenizer | {load_student(weights).tokenizer_fingerprint} |" in card
    assert 'delvm.load_student("hf://USER/NAME")' in card


def test_a_model_card_of_transformers_layouts(delvm, weights):
    calls = {
        "llama": 'AutoModelForCausalLM.from_pretrained("USER/NAME")',
        "internlm_hf": 'AutoModel.from_pretrained("USER/NAME", trust_remote_code=True)',
    }
    for layout, call in calls.items():
        words = (f"checkpoint={weights}/student", f"format={layout}", f"output_dir={layout}")
        code, _, err = delvm("export", *words)
        assert code == 0, err
        card = Path(layout, "README.md").read_text()
        assert f"\nimport transformers\n\nstudent = transformers.{call}\n" in card
