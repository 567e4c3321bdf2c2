"""Downloads, from a server on this machine: kept only when whole and of the right checksum."""

import hashlib
import io
import re
import socket
import threading
import time
import zipfile
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import refuse, succeed, transformers_model

from classifier.data.download import find_files
from classifier.errors import UserError

CONTENT = b"\tid\tsentence\tsentiment\n0\ta\tfine\t1\n"
PACKED = io.BytesIO()
with zipfile.ZipFile(PACKED, "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("trees/a.txt", CONTENT)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Answers as a hub does, with that status to /some/NUMBER; large files come in pieces, cut ones without the end."""

    def do_HEAD(self) -> bytes:
        content = self.server.files.get(self.path.rpartition("/")[2], b"")
        headers = {"Content-Length": len(content), "ETag": f'"{len(content)}"', "X-Repo-Commit": "c" * 40}
        refusal = re.match("/some/([0-9]+)/", self.path)
        if refusal:
            headers = {"X-Error-Code": "GatedRepo", "X-Error-Message": "ask its owner"}
        elif not content:
            headers = {"X-Error-Code": "EntryNotFound"}
        elif self.path.endswith("/config.json"):
            time.sleep(self.server.seconds / 2.5)
        self.send_response(int(refusal[1]) if refusal else 200 if content else 404)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        return content

    def do_GET(self):
        self.server.asked.append(self.path)
        content = self.do_HEAD()
        piece = len(content) // 4 + 1
        sent = content[:-5] if "cut" in self.path else content
        for start in range(0, len(sent), piece):
            time.sleep(self.server.seconds / 4 if len(content) > 10_000 else 0)
            self.wfile.write(sent[start : start + piece])

    def log_message(self, *_):
        pass


@contextmanager
def serving(files: dict[str, bytes], seconds: float = 0):
    """A server on this machine that takes so many seconds for a large file."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        vars(server).update(files=files, seconds=seconds, asked=[], url=f"http://127.0.0.1:{server.server_port}/")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def server():
    archives = dict.fromkeys(["all.zip", "cut.zip"], PACKED.getvalue())
    with serving(archives | dict.fromkeys(["there.csv", "cut.csv", "other.csv"], CONTENT)) as server:
        yield server


def test_missing_files_are_downloaded_and_present_ones_are_not(server, tmp_path, capsys):
    (tmp_path / "here.csv").write_bytes(CONTENT)
    files = {"train": ("here.csv", SHA256), "dev": ("there.csv", SHA256)}
    found = find_files(files, None, tmp_path, server.url)
    assert found == {"train": tmp_path / "here.csv", "dev": tmp_path / "there.csv"}
    assert (tmp_path / "there.csv").read_bytes() == CONTENT and server.asked == ["/there.csv"]
    assert find_files(files, None, tmp_path, server.url) == found and len(server.asked) == 1
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "here.csv").write_bytes(b"mine")  # comes first, and is noted as changed
    found = find_files({"train": files["train"]}, str(tmp_path / "source"), tmp_path, server.url)
    assert found == {"train": tmp_path / "source" / "here.csv"}
    assert "is not the published here.csv" in capsys.readouterr().out
    found = find_files({"trees": ("trees/a.txt", SHA256)}, None, tmp_path, server.url + "all.zip")  # out of an archive
    assert found == {"trees": tmp_path / "trees" / "a.txt"} and found["trees"].read_bytes() == CONTENT


def test_a_failed_download_leaves_nothing_behind(server, tmp_path):
    for name, sha256, url, message in (
        ("missing.csv", SHA256, server.url, "cannot download .*missing.csv .*Not Found.*: get missing.csv by other"),
        ("cut.csv", SHA256, server.url, "cut.csv"),
        ("other.csv", "0" * 64, server.url, "wrong sha256"),
        ("a.csv", SHA256, "http://127.0.0.1:9/", "cannot download .*get a.csv .* or pass their folder with --source"),
        ("trees/a.txt", SHA256, server.url + "cut.zip", "Connection broken|wrong sha256"),
        ("trees/b.txt", SHA256, server.url + "all.zip", "wrong sha256"),
    ):
        with pytest.raises(UserError, match=message):
            find_files({"train": (name, sha256)}, None, tmp_path / "data", url)
    assert not [*tmp_path.rglob("*")]


# -----------------------------------------------------------------------------
# GPT-2's weights, from a hub on this machine


@pytest.fixture
def ask(workspace, monkeypatch):
    """A function that asks a hub at some address for a model's weights, as finetune.py does with an empty cache."""

    def ask(url: str, name: str = "gpt2", run=refuse) -> str:
        hub = {"HF_HUB_CACHE": str(workspace / "cache"), "HF_HUB_OFFLINE": False, "HF_HUB_ETAG_TIMEOUT": 2}
        hub["HUGGINGFACE_CO_URL_TEMPLATE"] = url + "{repo_id}/resolve/{revision}/{filename}"
        for constant, value in hub.items():
            monkeypatch.setattr(f"huggingface_hub.constants.{constant}", value)
        words = [
            "--data_dir=data/sample",
            f"--init_from={name}",
            "--max_steps=1",
            "--block_size=32",
            "--overwrite=True",
        ]
        return run("finetune.py", *words, cwd=workspace)

    return ask


def test_a_hub_out_of_reach_is_told_with_the_way_out(ask):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connected, and never answered
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        messages = [ask(url)]
    messages.append(ask(url))  # nobody there any more
    for message, reason in zip(messages, (r".*timed out", r".*refused"), strict=True):
        assert re.search(rf"cannot be downloaded \({reason}\). On a machine with network run `hf download", message)
        assert message.endswith("--init_from=scratch --learning_rate=1e-3 --gradient_accumulation_steps=1\n")


def test_a_slow_mirror_is_waited_for_and_a_refusal_is_told_as_the_hub_says_it(ask, workspace):
    sizes = {"vocab_size": 50257, "n_positions": 64, "n_embd": 8, "n_layer": 1}
    transformers_model("GPT2LMHeadModel", workspace / "hub", **sizes)
    files = {path.name: path.read_bytes() for path in (workspace / "hub").iterdir()}
    with serving(files, seconds=3) as server:  # longer than any wait for an answer
        ask(server.url, run=succeed)
        for name, answer in {"some/403": "ask its owner", "some/429": "429"}.items():
            message = ask(server.url, name)
            assert "is no folder here, and the hub answered: " in message and answer in message
    (weights,) = (workspace / "cache").rglob("model.safetensors")
    assert weights.read_bytes() == files["model.safetensors"]
