"""Files and folders that are written whole, by one living process at a time, whatever killed ones have left."""

import os
import subprocess
import sys

import pytest
from conftest import REPO

from classifier import files
from classifier.errors import UserError
from classifier.files import folder_written_whole, hold, is_held, written_whole


def write(path, text: str) -> None:
    with written_whole(path, "w") as f:
        f.write(text)


def fill(folder, text: str, replace: bool = True) -> None:
    with folder_written_whole(folder, replace) as inside:
        (inside / "a").write_text(text)


def test_what_a_killed_writer_has_left_goes_and_what_a_living_one_has_stays(tmp_path):
    (tmp_path / f".a.{os.getpid():08x}.tmp").write_text("half")  # containers restart with the same process number
    (tmp_path / ".other.0123abcd.tmp").write_text("half")
    with written_whole(tmp_path / "a", "w") as f:
        f.write("first")
        write(tmp_path / "a", "second")  # as another process would, at the same time
        (first,) = tmp_path.glob(".a.*.tmp")
    assert (tmp_path / "a").read_text() == "first" and not first.exists()
    assert (tmp_path / ".other.0123abcd.tmp").exists()  # of another file: whoever writes or holds that sweeps it away
    lock = hold(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".lock", "a"]
    lock.close()


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_folder_is_replaced_as_a_whole(tmp_path, monkeypatch, can_exchange):
    if not can_exchange:
        monkeypatch.setattr(files, "_exchanged", lambda *_: False)
    fill(tmp_path / "f", "old", replace=False)
    (tmp_path / "f" / "b").write_text("more")
    with pytest.raises(ZeroDivisionError), folder_written_whole(tmp_path / "f", replace=True) as inside:
        (inside / "a").write_text(str(1 / 0))
    assert (tmp_path / "f" / "a").read_text() == "old"
    fill(tmp_path / "f", "new")
    assert sorted(os.listdir(tmp_path)) == ["f"] and os.listdir(tmp_path / "f") == ["a"]
    with pytest.raises(UserError, match="Directory not empty; what was there before is untouched"):
        fill(tmp_path / "f", "newer", replace=False)
    assert (tmp_path / "f" / "a").read_text() == "new"


@pytest.mark.skipif(sys.platform != "linux", reason="renameat2 is Linux's")
def test_this_system_exchanges_folders_at_one_blow(tmp_path):
    fill(tmp_path / "one", "1")
    fill(tmp_path / "other", "2")
    assert files._exchanged(tmp_path / "one", tmp_path / "other")
    assert (tmp_path / "one" / "a").read_text() == "2" and (tmp_path / "other" / "a").read_text() == "1"
    assert not files._exchanged(tmp_path / "one", tmp_path / "nowhere")


def test_a_folder_is_held_by_its_lock_and_not_by_its_name(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with hold(out) as lock:
        assert is_held(out, lock)
        out.rename(tmp_path / "gone")
        assert not is_held(out, lock)
        out.mkdir()
        assert not is_held(out, lock)
        with hold(out) as other:
            assert is_held(out, other) and not is_held(out, lock)
        (tmp_path / "gone").rename(tmp_path / "again")
        assert is_held(tmp_path / "again", lock)


def test_a_lock_with_strange_bytes_is_no_obstacle(tmp_path):
    (tmp_path / ".lock").write_bytes(b"\xff\xfe\x00" * 100)
    with hold(tmp_path):
        assert (tmp_path / ".lock").read_bytes() == f"{os.getpid()}\n".encode()
    (tmp_path / ".lock").write_bytes(b"\xff\xfe")
    code = f"import sys, fcntl, time; f = open({str(tmp_path / '.lock')!r}); fcntl.flock(f, fcntl.LOCK_EX); print(1)"
    words = [sys.executable, "-u", "-c", code + "; time.sleep(60)"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, cwd=REPO) as process:
        process.stdout.read(1)
        with pytest.raises(UserError, match="is in use by another process"):
            hold(tmp_path)
        process.kill()
