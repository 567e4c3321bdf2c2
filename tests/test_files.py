"""Files that are written whole, and folders that one living process holds, whatever killed ones have left."""

import os

import pytest

from classifier.errors import UserError
from classifier.files import hold, is_held, written_whole


def test_a_file_is_replaced_as_a_whole(tmp_path):
    (tmp_path / ".a.tmp").write_text("half of what a killed writer wrote")
    with written_whole(tmp_path / "a", "w") as f:
        f.write("first")
        f.flush()
        assert not (tmp_path / "a").exists()
    with pytest.raises(ZeroDivisionError), written_whole(tmp_path / "a", "w") as f:
        f.write("second")
        f.write(str(1 / 0))
    assert (tmp_path / "a").read_text() == "first" and os.listdir(tmp_path) == ["a"]
    (tmp_path / "link").symlink_to("a")
    with written_whole(tmp_path / "link", "w") as f:
        f.write("through the link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "a").read_text() == "through the link"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="something other than a file is there"), written_whole(tmp_path / "pipe"):
        pass
    with pytest.raises(UserError, match="cannot write .*: No such file"), written_whole(tmp_path / "b" / "c"):
        pass


def test_a_folder_is_held_by_its_lock_and_not_by_its_name(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / ".best.pt.tmp").write_text("half of what a killed writer wrote")
    (out / ".mine.tmp").touch()
    with hold(out) as held:
        assert sorted(os.listdir(out)) == [".lock", ".mine.tmp"] and is_held(out, held)
        with pytest.raises(UserError, match="is in use by another process"), hold(out):
            pass
        out.rename(tmp_path / "gone")
        assert not is_held(out, held)
        with hold(out) as other:  # made anew
            assert is_held(out, other) and not is_held(out, held)
        (tmp_path / "gone").rename(tmp_path / "again")
        assert is_held(tmp_path / "again", held)
    with hold(tmp_path / "again"):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write into .*file: File exists"), hold(tmp_path / "file"):
        pass
