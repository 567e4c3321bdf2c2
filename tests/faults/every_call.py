"""Lets each system call that changes files be a job's last one, or fail as on a full disk, and looks at what is left.

Started by test_faults.py with shim.c preloaded: every_call.py JOB MODE FIRST STRIDE, for each STRIDE-th of all calls.
"""

import ctypes
import gc
import json
import os
import runpy
import shutil
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPO), str(REPO / "tests")]

import matplotlib.figure  # noqa: F401, what the jobs import, so that no child has to
import sklearn.metrics  # noqa: F401
import torch
from conftest import visible
from runs import assert_same_run, timeless

from classifier import checkpoint
from classifier.answers import plots  # noqa: F401
from classifier.data.dataset import load_meta, load_split
from classifier.errors import UserError
from classifier.files import file_sha256
from classifier.gpt2 import load_gpt2

torch.set_num_threads(1)
SHIM = ctypes.CDLL(None)
ROOT = Path(os.environ["FAULT_ROOT"])
TEMPLATE = ROOT.parent / "template"  # what ROOT holds when the job begins
MESSAGES = ROOT.parent / "stderr"

PREPARE = ["prepare_own.py", "--train=train.tsv", "--dev=dev.tsv", "--name=tiny", "--overwrite"]
RUN = ["finetune.py", "--data_dir=data/tiny", "--init_from=scratch", "--n_layer=1", "--n_head=1", "--n_embd=8"]
RUN += ["--block_size=16", "--batch_size=8", "--gradient_accumulation_steps=2", "--epochs=2", "--save_interval=2"]
RUN += ["--learning_rate=0.01", "--dtype=float32"]
OUTPUTS = ["--predictions=out.csv", "--plots=plots", "--submission=submission", "--overwrite"]
EVALUATE = ["evaluate.py", "--ckpt=out/best.pt", "--dtype=float32", *OUTPUTS]
EXPORT = ["export_hf.py", "--ckpt=out/best.pt", "--out=hf", "--overwrite"]
JOBS = {"finetune": RUN, "overwrite": [*RUN, "--overwrite=True"], "resume": [*RUN, "--init_from=resume"]}
JOBS |= {"prepare": PREPARE, "evaluate": EVALUATE, "export": EXPORT}
FOLDERS = {"prepare": ["data/tiny"], "evaluate": ["", "plots", "submission"], "export": ["hf"]}  # that a job writes to


def run(words: list[str], fault: int = -1, mode: str = "", count_to: Path | None = None) -> tuple[int, str]:
    """Run a script in a child with a fault at one of its calls; return how it ended and what it said on stderr."""
    child = os.fork()
    if child == 0:
        status = 97
        try:
            for number, name in ((1, os.devnull), (2, MESSAGES)):
                os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
            os.chdir(ROOT)
            sys.argv = [str(REPO / words[0]), *words[1:]]
            SHIM.arm(ctypes.c_long(fault), ctypes.c_char(mode.encode() or b"\0"))
            try:
                runpy.run_path(sys.argv[0], run_name="__main__")
                status = 0
            except SystemExit as end:
                status = end.code or 0
            gc.collect()
            if count_to:
                count_to.write_text(str(SHIM.count()))
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), MESSAGES.read_text()


def reset() -> None:
    shutil.rmtree(ROOT, ignore_errors=True)
    shutil.copytree(TEMPLATE, ROOT)


def rows(first: int, count: int) -> str:
    words = ["a dull film", "a fine film", "no plot at all", "such lovely work"]
    return "".join(f"{i}\t{words[i % 4]} {i}\t{i % 2}\n" for i in range(first, first + count))


def make_template() -> None:
    """Prepared data, a run, its files and its export, all of yesterday; and new TSV files and a new best.pt."""
    header = "id\tsentence\tsentiment\n"
    TEMPLATE.mkdir()
    (TEMPLATE / "train.tsv").write_text(header + rows(0, 40))
    (TEMPLATE / "dev.tsv").write_text(header + rows(100, 12))
    reset()
    job, before = sys.argv[1], [*RUN, "--seed=2"]
    steps = {
        "finetune": [],
        "overwrite": [before],
        "resume": [[*RUN, "--max_steps=3"]],
        "prepare": [],
        "evaluate": [before, EVALUATE, [*RUN, "--overwrite=True", "--seed=3"]],
        "export": [before, EXPORT, [*RUN, "--overwrite=True", "--seed=3"]],
    }
    for words in ([*PREPARE, "--test=dev.tsv"] if job != "prepare" else PREPARE, *steps[job]):
        assert run(words) == (0, ""), MESSAGES.read_text()
    if job == "prepare":
        (ROOT / "train.tsv").write_text(header + rows(10, 32))
    if job == "resume":  # the run before was killed between two of its files
        for name in ("best.pt", "run.json", "curves.png"):
            (ROOT / "out" / name).unlink()
    shutil.rmtree(TEMPLATE)
    shutil.copytree(ROOT, TEMPLATE)


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder, those of its folders and what is hidden left out."""
    paths = folder.iterdir() if folder.is_dir() else ()
    return {path.name: path.read_bytes() for path in paths if path.is_file() and not path.name.startswith(".")}


def look_at_prepared(old: Path, new: Path) -> None:
    """data/tiny is the old one or the new one, whole, for whoever reads it; or it is refused."""
    folder = ROOT / "data" / "tiny"
    try:
        meta = load_meta(folder)
        for split in ("train", "dev"):
            load_split(folder, split, meta)
    except UserError as error:
        assert "does not fit meta.json: run `python prepare_own.py --name tiny ...` again" in str(error)
        return
    assert contents(folder) in (contents(old / "data" / "tiny"), contents(new / "data" / "tiny"))


def look_at_outputs(old: Path, new: Path) -> None:
    """Each of evaluate.py's files is the old one or the new one."""
    for folder in FOLDERS["evaluate"]:
        now, before, after = (contents(place / folder) for place in (ROOT, old, new))
        for name in after:
            assert now[name] in (before[name], after[name]), name


def look_at_export(old: Path, new: Path) -> None:
    """The exported folder is the old one or the new one; where it stepped aside, it is whole there."""
    places = [ROOT / "hf", ROOT / ".hf.old"]
    assert contents(next(place for place in places if place.exists())) in (contents(old / "hf"), contents(new / "hf"))


def look_at_run(old: Path, new: Path) -> None:
    """Every checkpoint that is there is whole, and where run.json tells of a best.pt, it is this one."""
    out = ROOT / "out"
    for path in out.glob("*.pt"):
        checkpoint.load(path)
    facts = json.loads((out / "run.json").read_text()) if (out / "run.json").is_file() else {}
    if (out / "best.pt").is_file() and "best" in facts:
        assert facts["best"]["sha256"] == file_sha256(out / "best.pt") or sys.argv[1] == "overwrite"


LOOKS = {"prepare": look_at_prepared, "evaluate": look_at_outputs, "export": look_at_export}


def finish(job: str, new: Path) -> None:
    """Run the job again, undisturbed: all is as if nothing had happened."""
    words = JOBS[job]
    if words[0] == "finetune.py":
        out = ROOT / "out"
        last = checkpoint.load(out / "last.pt")[1] if (out / "last.pt").is_file() else None
        is_begun = last is not None and last["settings"]["seed"] == 1337  # and not yesterday's
        words = [*words, "--init_from=resume"] if is_begun else [*RUN, "--overwrite=True"]
    status, said = run(words)
    assert (status, said) == (0, ""), said
    if words[0] == "finetune.py":
        assert_same_run(out, new / "out")
        one, other = (json.loads((place / "run.json").read_text()) for place in (out, new / "out"))
        for facts in (one, other):
            facts["settings"].pop("overwrite")
            facts["settings"].pop("init_from")
            facts.pop("git")  # who works on the code meanwhile is not the run's affair
        assert timeless(one) == timeless(other)
        assert one["best"]["sha256"] == file_sha256(out / "best.pt")
        assert visible(out).keys() == {"best.pt", "last.pt", "log.csv", "run.json", "curves.png"}
    for folder in FOLDERS.get(job, []):
        assert contents(ROOT / folder) == contents(new / folder)
    if job == "export":
        load_gpt2(str(ROOT / "hf"), num_classes=2)
    assert not [path for end in ("tmp", "old") for path in ROOT.rglob(f".*.{end}")]


def main() -> None:
    job, mode, first, stride = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    make_template()
    old, new = ROOT.parent / "old", ROOT.parent / "new"
    shutil.copytree(ROOT, old)
    status, said = run(JOBS[job], count_to=ROOT.parent / "count")
    assert (status, said) == (0, ""), said
    shutil.copytree(ROOT, new)
    calls = int((ROOT.parent / "count").read_text())
    told = 0
    for fault in range(first, calls, stride):
        reset()
        status, said = run(JOBS[job], fault, mode)
        try:
            assert "Traceback" not in said, said
            if mode == "k":
                assert status in (-9, 0), (status, said)  # it may have less to do than the first time
            else:
                assert status in (0, 1) and (status == 0 or "\nerror: " in "\n" + said), (status, said)
                told += status
            LOOKS.get(job, look_at_run)(old, new)
            finish(job, new)
        except BaseException:
            print(f"{job}, mode {mode}, call {fault} of {calls}: ended with {status}: {said}", file=sys.stderr)
            raise
    faults = len(range(first, calls, stride))
    print(json.dumps({"job": job, "mode": mode, "calls": calls, "faults": faults, "told": told}))


if __name__ == "__main__":
    main()
