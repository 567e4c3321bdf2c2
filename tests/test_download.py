"""Downloads, from a server on this machine: kept only when whole and of the right checksum."""

import hashlib
import io
import os
import re
import socket
import subprocess
import threading
import time
import zipfile
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import command, refuse, transformers_model

from classifier.data.download import find_files
from classifier.errors import UserError

CONTENT = b"\tid\tsentence\tsentiment\n0\ta\tfine\t1\n"
PACKED = io.BytesIO()
with zipfile.ZipFile(PACKED, "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("trees/a.txt", CONTENT)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Answers at once, as a hub does; sends what is large a piece at a time, and of what is called cut not the end."""

    def do_HEAD(self) -> bytes:
        content = self.server.files.get(self.path.rpartition("/")[2], b"")
        self.send_response(200 if content else 404)
        headers = {"Content-Length": len(content), "ETag": f'"{len(content)}"', "X-Repo-Commit": "c" * 40}
        for name, value in (headers if content else {"X-Error-Code": "EntryNotFound"}).items():
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
        ("missing.csv", SHA256, server.url, "cannot download .*missing.csv .Not Found.: get missing.csv by other"),
        ("cut.csv", SHA256, server.url, "cut.csv"),
        ("other.csv", "0" * 64, server.url, "wrong sha256"),
        ("a.csv", SHA256, "http://127.0.0.1:9/", "cannot download .*get a.csv .* or pass their folder with --source"),
        ("trees/a.txt", SHA256, server.url + "cut.zip", "wrong sha256"),
        ("trees/b.txt", SHA256, server.url + "all.zip", "wrong sha256"),
    ):
        with pytest.raises(UserError, match=message):
            find_files({"train": (name, sha256)}, None, tmp_path / "data", url)
    assert not [*tmp_path.rglob("*")]


# -----------------------------------------------------------------------------
# GPT-2's weights, from a hub on this machine


def finetune(folder: Path, url: str) -> tuple[subprocess.CompletedProcess, float]:
    """What finetune.py says that asks a hub at this address for GPT-2's weights, and the seconds that took."""
    hub = {"HF_ENDPOINT": url, "HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "0"}
    start = time.monotonic()
    words = ["finetune.py", "--data_dir=data/sample", "--init_from=gpt2", "--max_steps=1", "--block_size=32"]
    done = command(*words, cwd=folder, env=os.environ | hub)
    return done, time.monotonic() - start


def test_a_hub_that_refuses_or_keeps_silent_is_soon_given_up(workspace):
    start = time.monotonic()
    refuse("finetune.py", "--data_dir=data/sample", "--init_from=nowhere", cwd=workspace, run=command)
    usual = time.monotonic() - start  # PyTorch's import, above all
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connected, and never answered
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        answers = [finetune(workspace, url)]
    answers.append(finetune(workspace, url))  # nobody there any more
    for (done, seconds), reasons in zip(answers, (r"TimeoutError", r"ConnectError|ConnectionError"), strict=True):
        message = done.stderr.decode()
        assert done.returncode == 1 and message.count("\n") == 1 and seconds < usual + 5
        assert re.search(rf"cannot be downloaded \(({reasons})\). On a machine with network run `hf download", message)


def test_a_slow_download_is_waited_for(workspace):
    sizes = {"vocab_size": 50257, "n_positions": 64, "n_embd": 8, "n_layer": 1}
    transformers_model("GPT2LMHeadModel", workspace / "hub", **sizes)
    files = {path.name: path.read_bytes() for path in (workspace / "hub").iterdir()}
    with serving(files, seconds=3) as server:  # longer than any wait for an answer
        done, _ = finetune(workspace, server.url)
    assert done.returncode == 0, done.stderr
    (weights,) = (workspace / "cache").rglob("model.safetensors")
    assert weights.read_bytes() == files["model.safetensors"]
