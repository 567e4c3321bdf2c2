"""Downloads, from a server on this machine: kept only when whole and of the right checksum."""

import hashlib
import io
import os
import socket
import subprocess
import sys
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import REPO, command, refuse, transformers_model

from classifier.download import find_files
from classifier.errors import UserError
from classifier.weights import ANSWER_SECONDS

CONTENT = b"\tid\tsentence\tsentiment\n0\ta\tfine\t1\n"
PACKED = io.BytesIO()
with zipfile.ZipFile(PACKED, "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("trees/a.txt", CONTENT)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        if self.path == "/missing.csv":
            self.send_error(404)
            return
        self.send_response(200)
        content = PACKED.getvalue() if self.path.endswith(".zip") else CONTENT
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:-5] if self.path.startswith("/cut") else content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked = []
        server.url = f"http://127.0.0.1:{server.server_port}/"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_missing_files_are_downloaded_and_present_ones_are_not(server, tmp_path):
    (tmp_path / "here.csv").write_bytes(CONTENT)
    files = {"train": ("here.csv", SHA256), "dev": ("there.csv", SHA256)}
    found = find_files(files, None, tmp_path, server.url)
    assert found == {"train": tmp_path / "here.csv", "dev": tmp_path / "there.csv"}
    assert (tmp_path / "there.csv").read_bytes() == CONTENT and server.asked == ["/there.csv"]
    assert find_files(files, None, tmp_path, server.url) == found and len(server.asked) == 1


@pytest.mark.parametrize(
    "name, sha256, message",
    [
        ("missing.csv", SHA256, "cannot download .*missing.csv .*: get missing.csv by other means"),
        ("cut.csv", SHA256, "cut.csv"),
        ("other.csv", "0" * 64, "sha256 is wrong"),
    ],
)
def test_a_failed_download_leaves_nothing_behind(server, tmp_path, name, sha256, message):
    with pytest.raises(UserError, match=message):
        find_files({"train": (name, sha256)}, None, tmp_path / "data", server.url)
    assert list((tmp_path / "data").iterdir()) == []


def test_a_file_comes_out_of_an_archive_or_is_refused(server, tmp_path):
    files = {"trees": ("trees/a.txt", SHA256)}
    found = find_files(files, None, tmp_path / "data", server.url + "all.zip")
    assert found == {"trees": tmp_path / "data" / "trees" / "a.txt"} and found["trees"].read_bytes() == CONTENT
    for archive, name, sha256 in (
        ("cut.zip", "trees/a.txt", SHA256),
        ("all.zip", "trees/b.txt", SHA256),
        ("all.zip", "trees/a.txt", "0" * 64),
    ):
        with pytest.raises(UserError, match="sha256 is wrong"):
            find_files({"trees": (name, sha256)}, None, tmp_path / "other", server.url + archive)
    assert not [path for path in (tmp_path / "other").rglob("*") if path.is_file()]


def test_without_a_server_it_says_what_to_put_where(tmp_path):
    with pytest.raises(
        UserError, match=r"cannot download .*get a.csv by other means .* or name their folder with --source"
    ):
        find_files({"train": ("a.csv", SHA256)}, None, tmp_path / "data", "http://127.0.0.1:9/")


def test_source_comes_first_and_a_changed_file_is_noted(tmp_path, capsys):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.csv").write_bytes(b"mine")
    (tmp_path / "a.csv").write_bytes(CONTENT)
    found = find_files({"train": ("a.csv", SHA256)}, str(tmp_path / "source"), tmp_path, "http://127.0.0.1:9/")
    assert found == {"train": tmp_path / "source" / "a.csv"}
    assert "is not the published a.csv" in capsys.readouterr().out


# -----------------------------------------------------------------------------
# GPT-2's weights, from a hub on this machine


def finetune(folder: Path, port: int) -> tuple[str, float]:
    """What finetune.py says that asks a hub at this port for GPT-2's weights, and the seconds that took."""
    hub = {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "0"}
    start = time.monotonic()
    message = refuse("finetune.py", "--data_dir=data/sample", cwd=folder, run=command, env=os.environ | hub)
    return message, time.monotonic() - start


def test_a_hub_that_refuses_or_keeps_silent_is_soon_given_up(workspace):
    start = time.monotonic()
    refuse("finetune.py", "--data_dir=data/sample", "--init_from=nowhere", cwd=workspace, run=command)
    usual = time.monotonic() - start  # PyTorch's import, above all
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connected, and never answered
        port = silent.getsockname()[1]
        message, seconds = finetune(workspace, port)
        assert "cannot be downloaded (TimeoutError). On a machine with network run `hf download" in message
        assert seconds < usual + 5
    message, seconds = finetune(workspace, port)  # nobody there any more
    assert "cannot be downloaded (ConnectError)" in message or "cannot be downloaded (ConnectionError)" in message
    assert seconds < usual + 5


class SlowHub(BaseHTTPRequestHandler):
    """Answers at once, and sends each file a piece at a time for longer than the wait for an answer."""

    def do_HEAD(self):
        self.send_response(200)
        content = self.server.files[self.path.rpartition("/")[2]]
        for name, value in (
            ("Content-Length", len(content)),
            ("ETag", f'"{len(content)}"'),
            ("X-Repo-Commit", "c" * 40),
        ):
            self.send_header(name, str(value))
        self.end_headers()
        return content

    def do_GET(self):
        if "/resolve/" not in self.path:
            self.send_error(404)
            return
        content = self.do_HEAD()
        for start in range(0, len(content), len(content) // 4 + 1):
            time.sleep(self.server.seconds / 4 if len(content) > 10_000 else 0)
            self.wfile.write(content[start : start + len(content) // 4 + 1])

    def log_message(self, *_):
        pass


def test_a_slow_download_is_waited_for(tmp_path):
    sizes = {"vocab_size": 50257, "n_positions": 64, "n_embd": 8, "n_layer": 1}
    transformers_model("GPT2LMHeadModel", tmp_path / "hub", **sizes)
    with ThreadingHTTPServer(("127.0.0.1", 0), SlowHub) as server:
        server.files = {path.name: path.read_bytes() for path in (tmp_path / "hub").iterdir()}
        server.seconds = ANSWER_SECONDS + 1
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            hub = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "cache")}
            code = "from classifier.weights import find_weights; print(find_weights('gpt2')[0])"
            environment = os.environ | hub | {"HF_HUB_OFFLINE": "0", "PYTHONPATH": str(REPO)}
            done = subprocess.run(
                [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
            )
        finally:
            server.shutdown()
            thread.join()
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.splitlines()[-1])
    for name in ("config.json", "model.safetensors"):
        assert (folder / name).read_bytes() == (tmp_path / "hub" / name).read_bytes()
