"""The .bin format: what goes in comes out, and what does not fit is refused with file and line."""

import csv
import errno
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import PREPARE_SAMPLE, REPO, decoded, make_split, refuse, succeed, visible

import prepare_sst
from classifier.data.dataset import FIELDS, count_longer, load_meta, load_split, long_note, meta_sha256
from classifier.data.prepare import prepare_course
from classifier.errors import UserError
from classifier.files import file_sha256, hold

COUNTS = {  # examples, tokens, labels
    "sst": {
        "train": (8544, 191641, [1092, 2218, 1624, 2322, 1288]),
        "dev": (1101, 24946, [139, 289, 229, 279, 165]),
        "test": (2210, 49693, None),
    },
    "cfimdb": {"train": (1707, 362100, [856, 851]), "dev": (245, 53630, [123, 122]), "test": (488, 106460, None)},
}


@pytest.mark.parametrize("task, longest, p95", [("sst", 77, 42), ("cfimdb", 494, 379)])
def test_the_courses_files_give_the_published_counts(tsv_dir, tmp_path, task, longest, p95):
    printed = succeed(f"prepare_{task}.py", "--source", tsv_dir, cwd=tmp_path)
    assert "note:" not in printed  # the checksums are the published ones
    assert all(len(line) <= 80 for line in printed.splitlines())
    meta = load_meta(tmp_path / "data" / task)
    for split, counts in COUNTS[task].items():
        part = meta["splits"][split]
        assert (part["examples"], part["tokens"], part["label_counts"]) == counts
        assert f"{split:<6}{counts[0]:>9,}{counts[1]:>11,}" in printed
    assert meta["splits"]["train"]["length_percentiles"]["95"] == p95
    assert meta["splits"]["train"]["length_percentiles"]["100"] == longest

    # the texts themselves, read by Python's csv
    split = load_split(tmp_path / "data" / task, "dev")
    with open(tsv_dir / f"ids-{task}-dev.csv", encoding="utf-8", newline="") as f:
        rows = list(csv.DictReader(f, delimiter="\t"))
    assert split.ids() == [row["id"] for row in rows]
    assert split.labels.tolist() == [int(row["sentiment"]) for row in rows]
    assert decoded(split) == [row["sentence"] for row in rows]


def test_a_bad_tsv_is_refused_and_what_was_prepared_stays(tmp_path):  # more are in test_formats.py
    header, good, bad = "\tid\tsentence\tsentiment\n", tmp_path / "good.tsv", tmp_path / "bad.tsv"
    good.write_text(header + "0\ta\tfine\t1\n")

    def prepare(dev) -> None:
        labels = {"0": "no", "1": "yes"}
        prepare_course("x", {"train": good, "dev": dev}, prepare_sst.COLUMNS, labels, tmp_path / "out")

    prepare(good)
    before = visible(tmp_path / "out")
    for content, message in {
        "\tid\tsentence\n0\ta\tfine\n": "no column 'sentiment'",
        header + "0\ta\tfine\t" + "9" * 5000 + "\n": "line 2: the label '999",
        header + "0\ta\tfine\t1\n1\tb\t   \t1\n": "left out 1 row without a text: line 3",
    }.items():
        bad.write_text(content)
        with pytest.raises(UserError, match=f"^{bad}.*{message}"):
            prepare(bad)
        assert visible(tmp_path / "out") == before


FACTS = """URL = "https://example.org/"
FILES = {"train": ("train.tsv", "%s"), "dev": ("dev.tsv", "0")}
TREES_URL, TREES = "", {}
COLUMNS = {"text": ["Subject", "body"], "label": ["team"]}
LABELS = {"hw": "hardware", "sw": "software"}
FOLDER = Path("data/mail")
"""


def test_a_script_for_another_task_is_a_copy_of_prepare_sst_with_other_facts(tmp_path):
    train, dev = tmp_path / "train.tsv", tmp_path / "dev.tsv"
    train.write_text('team\tsubject\tbody\nsw\tCrash\t"Save" fails\nhw\t\tIt is "hot\nsw\tHelp\t\n')
    dev.write_text("body\tsubject\tteam\nnoisy\tFan\thw\n")
    script = (REPO / "prepare_sst.py").read_text()
    changed = re.sub(r"^URL = .*?(?=\n\n\ndef )", FACTS % file_sha256(train), script, flags=re.DOTALL | re.MULTILINE)
    (tmp_path / "prepare_mail.py").write_text(changed)
    printed = succeed(tmp_path / "prepare_mail.py", "--source", tmp_path, cwd=tmp_path)
    assert "dev.tsv is not the published dev.tsv" in printed and "published train.tsv" not in printed
    meta, split = load_meta(tmp_path / "data" / "mail"), load_split(tmp_path / "data" / "mail", "train")
    assert (meta["task"], meta["label_names"], meta["labels"]) == ("mail", ["hardware", "software"], ["hw", "sw"])
    assert split.labels.tolist() == [1, 0, 1] and split.ids() == ["1", "2", "3"]
    assert meta["splits"]["train"]["label_counts"] == [1, 2]
    assert decoded(split) == ['Crash\n"Save" fails', 'It is "hot', "Help"]
    assert decoded(load_split(tmp_path / "data" / "mail", "dev")) == ["Fan\nnoisy"]


def test_a_folder_of_an_older_version_is_read(workspace):
    path = workspace / "data" / "sample" / "meta.json"
    meta = json.loads(path.read_text()) | {"detokenized": False}
    path.write_text(json.dumps(meta | {"sha256": meta_sha256(meta)}))
    assert load_meta(path.parent)["detokenized"] is False and len(load_split(path.parent, "dev")) == 240


def test_a_target_that_cannot_be_replaced_leaves_all_others(workspace):
    folder = workspace / "data" / "sample"
    (folder / "dev.labels.bin").unlink()
    (folder / "dev.labels.bin").mkdir()
    before = (folder / "train.bin").read_bytes()
    with open(folder / "train.tsv", "a") as f:
        f.write("878\tx\tone more\t1\n")
    assert "data/sample/dev.labels.bin cannot be written" in refuse(*PREPARE_SAMPLE, cwd=workspace)
    assert (folder / "train.bin").read_bytes() == before


@pytest.mark.parametrize("name", ["train.bin", "train.offsets.bin", "train.labels.bin", "train.ids.txt"])
def test_a_damaged_or_missing_file_is_refused(workspace, name):
    path = workspace / "data" / "sample" / name
    whole = path.read_bytes()
    for content in (whole[:-2], whole[:-1] + bytes([whole[-1] ^ 1]), None):
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(UserError, match=f"{name} .*prepare_own.py --name sample ...` again"):
            load_split(path.parent, "train")


def test_the_bin_files_are_mapped_or_where_that_is_impossible_read(workspace, monkeypatch):
    folder = workspace / "data" / "sample"
    mapped, maps = load_split(folder, "train"), Path("/proc/self/maps").read_text()
    assert all(str(folder / f"train{field}") in maps for field in FIELDS)

    def refuse_to_map(*_, **__):
        raise OSError(errno.ENODEV, "No such device")

    monkeypatch.setattr(np, "memmap", refuse_to_map)
    for one, other in zip(vars(mapped).values(), vars(load_split(folder, "train")).values(), strict=True):
        assert np.array_equal(one, other)


def test_long_texts_are_counted_and_keep_their_last_or_first_tokens():
    split = make_split([[1, 2, 3, 4], [5, 6, 7], [8]], [0, 0, 0])
    for keep, sequences in {"last": [[4, 9], [7, 9], [8, 9]], "first": [[1, 9], [5, 9], [8, 9]]}.items():
        cut = replace(split, prompt=(9,), keep=keep)
        assert [cut.sequence(i, 2).tolist() for i in range(3)] == sequences
        assert cut.lengths(np.array([2, 0]), 4).tolist() == [2, 4]
        assert [count_longer(cut, block_size) for block_size in (2, 4, 5)] == [2, 1, 0]
    assert long_note(1, 3, "texts", 30, "last") == "note: 1 of 3 texts is longer than 30 tokens: their last 30 are read"
    assert long_note(0, 3, "texts", 30, "last") is None


def test_a_broken_meta_json_or_one_of_another_version_is_refused(workspace):
    path = workspace / "data" / "sample" / "meta.json"
    whole, again = path.read_text(), "run `python prepare_own.py --name sample ...` again"
    other_version = whole.replace('"format_version": 2', '"format_version": 99')
    problems = dict.fromkeys(["", "[]", "[" * 100_000, whole.replace("negative", "nagative")], "is broken")
    for text, problem in (problems | {other_version: "has format version 99, not 2"}).items():
        path.write_text(text)
        with pytest.raises(UserError, match=f"meta.json {problem}: {again}"):
            load_meta(path.parent)


def test_two_prepares_at_once_are_kept_apart_and_leftovers_are_swept_up(workspace):
    folder = workspace / "data" / "sample"
    (folder / ".prepared.0123abcd.tmp").mkdir()
    (folder / ".prepared.0123abcd.tmp" / "train.bin").touch()
    (folder / ".meta.json.tmp").touch()
    with hold(folder):
        assert "data/sample is in use by another process" in refuse(*PREPARE_SAMPLE, cwd=workspace)
    succeed(*PREPARE_SAMPLE, cwd=workspace)
    assert not list(folder.glob(".*.tmp"))


def test_what_is_not_there_says_what_to_run_or_get(tmp_path):
    assert "error: data/sample/train.tsv: No such file or directory\n" in refuse(*PREPARE_SAMPLE, cwd=tmp_path)
    message = refuse("prepare_sst.py", "--source", "nowhere", cwd=tmp_path)
    assert "--source nowhere: no ids-sst-train.csv, ids-sst-dev.csv, ids-sst-test-student.csv there" in message
    for split in ("train", "dev", "test-student"):
        (tmp_path / f"ids-sst-{split}.csv").touch()
    message = refuse("prepare_sst.py", "--phrases", "--source", tmp_path, cwd=tmp_path)
    assert "no trees/train.txt there" in message
    for name, script in (("sst", "prepare_sst.py"), ("sst-phrases", "prepare_sst.py --phrases")):
        message = refuse("finetune.py", f"--data_dir=data/{name}", cwd=tmp_path)
        assert f"data/{name} was not prepared" in message and f"run `python {script}` first" in message
    assert not (tmp_path / "data").exists()
