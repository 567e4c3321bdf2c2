"""Broken files and odd options: read as they were or refused in a line, and nothing is changed. See make torture."""

import json
import os
import random
import shlex
import shutil
import signal
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import REPO, here, succeed, transformers_model, unwrapped
from runs import RUN, same_state
from test_formats import WRITERS, parquet

import prepare_sst
from classifier import checkpoint
from classifier.data.dataset import FIELDS, load_split
from classifier.data.own import choose_columns, name_classes, number_labels, read_course_file, read_examples
from classifier.data.rows import read_table
from classifier.errors import UserError
from classifier.files import file_sha256
from classifier.gpt2 import load_gpt2
from classifier.settings import read_settings
from classifier.training.curves import draw_curves
from classifier.training.record import COLUMNS, open_log

sys.path.append(str(REPO / "bench"))
from seeds import ended_run  # noqa: E402

INPUTS = 600 if "TORTURE" in os.environ else 60  # of each kind
SECONDS = 60  # an input that takes longer hangs
OWN = [name for name in WRITERS if name != "m.parquet"]


@pytest.fixture
def chance():
    """A source of chance; and an alarm for what hangs."""

    def ring(*_) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, ring)
    yield random.Random(0)
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Content with bits flipped, cut short, a piece doubled, or bytes put in."""
    content = bytearray(content)
    place = chance.randrange(len(content))
    kind = chance.randrange(4)
    if kind == 0:
        for _ in range(chance.choice([1, 1, 1, 5])):
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    elif kind == 1:
        del content[place:]
    elif kind == 2:
        content[place:place] = content[place : place + chance.randrange(1, 100)]
    else:
        content[place:place] = chance.randbytes(chance.randrange(1, 20))
    return bytes(content)


ODD = [None, True, -1, 0, 10**400, 1e308, float("nan"), float("-inf"), "", "\ud800", "x" * 5000, [], {}, [[]], {"a": 1}]


def misstated(content: bytes, chance: random.Random) -> bytes:
    """JSON in which one value somewhere is missing or another one."""
    whole = json.loads(content)
    place = whole
    while True:
        key = chance.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if not isinstance(place[key], dict | list) or not place[key] or chance.random() < 0.2:
            break
        place = place[key]
    if chance.random() < 0.3:
        del place[key]
    else:
        place[key] = chance.choice(ODD)
    return json.dumps(whole).encode("utf-8", "surrogatepass")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, but for the locks that processes leave there."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def read_data(folder: Path) -> None:
    split, expected = load_split(folder / "data" / "sample", "dev"), read_data.expected
    assert all(np.array_equal(getattr(split, name), array) for name, array in expected.items())


def read_checkpoint(folder: Path) -> None:
    assert same_state(checkpoint.load(folder / "out" / "last.pt")[1], read_checkpoint.expected)


def read_tsv(folder: Path) -> None:
    """Text may become other text; what must not be is a crash, or another shape."""
    found = read_course_file(folder / "data" / "sample" / "dev.tsv", prepare_sst.COLUMNS, ["0", "1"])
    assert all(map(str.strip, found.texts)) and set(found.labels.tolist()) <= {0, 1}


def read_own(folder: Path, names: list[str] = OWN) -> None:
    """The same, of whatever format, with the columns and classes that are found in it."""
    for name in names:
        table = read_table(folder / name)
        found, _ = read_examples([table], choose_columns(table, {})[0])
        labels, _ = name_classes(found, [])
        assert all(text.strip() and text.encode() for text in found.texts)
        assert len(number_labels(found, labels).labels) == len(found.ids) == len(found.places)


def read_weights(folder: Path) -> None:
    """They have no checksums: other numbers are taken, if they are numbers."""
    assert all(tensor.isfinite().all() for tensor in load_gpt2(str(folder / "weights")).state_dict().values())


def read_record(folder: Path) -> None:
    run = ended_run(folder / "out")
    assert run["ended"] and run["best"]["sha256"] == file_sha256(folder / "out" / "best.pt")


def read_log(folder: Path) -> None:
    copy, log = folder / "copy", folder / "out" / "log.csv"
    copy.mkdir()
    shutil.copy(log, copy)
    open_log(copy, {}, step=10).close()  # as a resumed run does
    kept = (copy / "log.csv").read_text().split("\n")[:-1]  # other line ends are part of a cell
    assert kept[0] == ",".join(COLUMNS) and all(row.count(",") == kept[0].count(",") for row in kept)
    shutil.rmtree(copy)
    try:
        draw_curves(folder / "curves.svg", log, best_step=10, reference_accuracy=0.5)
    finally:
        (folder / "curves.svg").unlink(missing_ok=True)


def read_config(folder: Path) -> None:
    read_settings(str(REPO / "finetune.py"), [str(folder / "config.py")])


KINDS = {  # what reads the files, and which files
    "data": (read_data, ["data/sample/meta.json", *(f"data/sample/dev{field}" for field in FIELDS)]),
    "checkpoint": (read_checkpoint, ["out/last.pt"]),
    "tsv": (read_tsv, ["data/sample/dev.tsv"]),
    "own": (read_own, OWN),
    "parquet": (partial(read_own, names=["m.parquet"]), ["m.parquet"]),
    "config": (read_config, ["config.py"]),
    "weights": (read_weights, ["weights/model.safetensors", "weights/config.json"]),
    "run.json": (read_record, ["out/run.json"]),
    "log.csv": (read_log, ["out/log.csv"]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_read_as_it_was_or_refused(workspace, kind, chance):
    read, names = KINDS[kind]
    (workspace / "config.py").write_bytes((REPO / "config" / "finetune_sst_prompt.py").read_bytes())
    if kind in ("checkpoint", "run.json", "log.csv"):
        succeed(*RUN, "--max_steps=10", cwd=workspace)
        read_checkpoint.expected = checkpoint.load(workspace / "out" / "last.pt")[1]
    if kind in ("own", "parquet"):
        rows = [{"ID": i, "Text": f"{i} é, 😀", "Label": i % 2} for i in range(8)]
        for name in names:
            (workspace / name).write_bytes(WRITERS.get(name, parquet)(rows))
        names = [*names, "fast.txt"] if kind == "own" else names
        (workspace / "fast.txt").write_text("".join(f"__label__{row['Label']} {row['Text']}\n" for row in rows))
    if kind == "weights":
        sizes = {"vocab_size": 50, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2}
        transformers_model("GPT2Model", workspace / "weights", **sizes)
    split = load_split(workspace / "data" / "sample", "dev")
    read_data.expected = {name: np.array(getattr(split, name)) for name in ("tokens", "offsets", "labels")}
    read(workspace)  # whole, it is taken
    refused = 0
    for _ in range(INPUTS):
        path = workspace / chance.choice(names)
        whole = path.read_bytes()
        spoil = misstated if path.suffix == ".json" and chance.random() < 0.7 else damaged
        path.write_bytes(spoil(whole, chance))
        before = contents(workspace)
        signal.alarm(SECONDS)
        try:
            read(workspace)
        except UserError as error:
            refused += 1
            assert len(str(error)) < 1000 and str(error).isprintable()
        assert contents(workspace) == before
        path.write_bytes(whole)
    assert refused > 10


VALUES = ["", "0", "-1", "1e999", "nan", "9" * 400, "a" * 300, "a/b", "\x1b[31m", "\udcff", "[", "{}", "[1,'a']"]
VALUES += ["out", "out/best.pt", "out/run.json", "data", "data/sample", "missing", "/dev/null", ".", "dev", "cpu"]
VALUES += ["None", "float32"]
COMMANDS = [  # each works as it stands
    "finetune.py config.py --init_from=resume --data_dir=data/sample --out_dir=out",
    "evaluate.py --ckpt out/best.pt --predictions p.csv --device cpu",
    "evaluate.py --ckpt out/best.pt --text lovely --dtype float32",
    "export_hf.py --ckpt out/best.pt --out hf",
    "prepare_own.py --train data/sample/train.tsv --name q --dev_share 0.2 --seed 3 --labels negative positive",
]
OPTIONS = (
    "--overwrite --split --compare --errors --plots --submission --info --help --ckpt --epochs --prompt --x "
    "--explain --calibrate"
)


def test_odd_options_are_taken_or_refused_and_nothing_is_changed(workspace, chance):
    options = ["--batch_size=16", "--gradient_accumulation_steps=4", "--max_steps=2", "--device=cpu", "--dtype=float32"]
    shape = ["--init_from=scratch", "--n_layer=1", "--n_head=2", "--n_embd=8", "--data_dir=data/sample"]
    succeed("finetune.py", *options, *shape, cwd=workspace)
    settings = (word[2:].partition("=") for word in options + shape if not word.startswith("--init_from"))
    text = "".join(f"{name} = {value if value.isdigit() else repr(value)}\n" for name, _, value in settings)
    (workspace / "config.py").write_text(text)
    before, statuses = contents(workspace), set()
    for _ in range(INPUTS):
        words = shlex.split(chance.choice(COMMANDS))
        for _ in range(chance.randrange(1, 3)):
            place, value = chance.randrange(1, len(words)), chance.choice(VALUES)
            if chance.random() < 0.5:
                name, equals, _ = words[place].partition("=")
                words[place] = name + equals + value if equals else value
            elif chance.random() < 0.5:
                words[place:place] = [chance.choice(OPTIONS.split()), value]
            else:
                del words[place]
        words = [word for word in words if word != "--overwrite"]
        signal.alarm(SECONDS)
        done = here(*words, cwd=workspace)
        message = unwrapped(done.stderr.decode("utf-8", "replace"))
        assert done.returncode in (0, 1) and "Traceback" not in message, (words, message)
        assert done.returncode == 0 or message.count("\n") == 1, (words, message)
        now = contents(workspace)
        changed = {name for name in before if now.get(name) != before[name]}
        assert changed <= {"out/run.json", "out/log.csv", "out/last.pt", "out/curves.png"}, (words, changed)
        assert not changed or words[0] == "finetune.py"  # a resumed run, which goes on
        statuses.add(done.returncode)
        for name in now.keys() - before.keys():
            (workspace / name).unlink()
        for name in changed:
            (workspace / name).write_bytes(before[name])
    assert statuses == {0, 1}
