"""Downloads, from a server on this machine: kept only when whole and of the right checksum."""

import hashlib
import io
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from classifier.download import find_files
from classifier.errors import UserError

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
