"""A run's record is true whatever happens: best.pt, log.csv and run.json say what is there, and nothing else."""

import contextlib
import csv
import json
import os
import resource
import shlex
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import REPO, here, refuse, succeed, visible
from test_finetune import RUN, read_log, same_state, workspace  # noqa: F401, a fixture

from classifier import checkpoint, distributed, predict, record
from classifier.errors import UserError
from classifier.files import file_sha256, hold
from classifier.log import COLUMNS, append_to_log
from classifier.progress import Progress
from classifier.saving import Checkpoints
from classifier.seeds import ended_run
from model import GPT, GPTConfig

SCRIPTED = {1: 0.5, 2: 0.7, 3: 0.6, 4: 0.65}  # epoch -> dev accuracy, so that it is known which is the best


@pytest.fixture
def scripted(monkeypatch):
    """Dev accuracies as SCRIPTED says. What is put into `hooks` for an epoch is called before its evaluation."""
    hooks = {}
    losses = predict.loss_and_accuracy

    def loss_and_accuracy(logits, labels):
        epoch = sys._getframe(1).f_locals["progress"].epoch
        hooks.get(epoch, lambda: None)()
        return losses(logits, labels)[0], SCRIPTED[epoch]

    monkeypatch.setattr(predict, "loss_and_accuracy", loss_and_accuracy)
    return hooks


@pytest.fixture
def full_disk(monkeypatch):
    """While it holds names of files, checkpoints of these names cannot be written."""
    names, save = set(), checkpoint.save

    def save_or_fail(path, *args, **parts):
        if path.name in names:
            raise UserError(f"cannot write {path}: No space left on device")
        save(path, *args, **parts)

    monkeypatch.setattr(checkpoint, "save", save_or_fail)
    return names


def run_of(out) -> dict:
    return json.loads((out / "run.json").read_text())


def assert_true(out, epoch: int) -> None:
    """What run.json says of best.pt is what best.pt is, and that is of this epoch."""
    best, (_, saved) = run_of(out)["best"], checkpoint.load(out / "best.pt")
    assert best["epoch"] == saved["progress"]["epoch"] == saved["progress"]["best"]["epoch"] == epoch
    assert best["accuracy"] == SCRIPTED[epoch] and best["sha256"] == file_sha256(out / "best.pt")


def weights(path) -> dict:
    return dict(checkpoint.load(path)[0].state_dict())


# -----------------------------------------------------------------------------
# best.pt


def test_what_could_not_be_written_is_written_at_the_next_chance(workspace, scripted, full_disk):  # noqa: F811
    words = [*RUN, "--epochs=3"]
    succeed(*words, "--out_dir=undisturbed", cwd=workspace)
    scripted[2] = lambda: full_disk.add("best.pt")
    scripted[3] = full_disk.clear
    done = here(*words, cwd=workspace)
    assert done.returncode == 0 and b"warning: cannot write out/best.pt" in done.stderr
    assert_true(workspace / "out", epoch=2)
    one, other = (checkpoint.load(workspace / out / "best.pt")[1] for out in ("out", "undisturbed"))
    assert same_state(one["model"], other["model"])
    for progress in (one["progress"], other["progress"]):
        progress.pop("seconds")
    assert one["progress"] == other["progress"]
    assert same_state(weights(workspace / "out" / "last.pt"), weights(workspace / "undisturbed" / "last.pt"))


def test_a_best_that_was_never_written_is_not_claimed(workspace, scripted, full_disk):  # noqa: F811
    scripted[2] = lambda: full_disk.add("best.pt")
    message = here(*RUN, "--epochs=3", cwd=workspace).stderr.decode().splitlines()[-1]
    assert "not all of it could be written" in message and "out/best.pt lacks the best weights, of epoch 2" in message
    assert_true(workspace / "out", epoch=1)
    assert run_of(workspace / "out")["unsaved"]["epoch"] == 2
    full_disk.clear()
    # epoch 4 is better than what best.pt holds, and still the loss of epoch 2 is known
    done = here(*RUN, "--epochs=4", "--init_from=resume", cwd=workspace)
    assert done.returncode == 1 and b"out/best.pt lacks the best weights, of epoch 2" in done.stderr
    assert_true(workspace / "out", epoch=4)
    assert b"best: epoch 4, dev accuracy 0.650" in done.stdout


def test_weights_that_last_pt_has_go_to_best_pt_when_the_run_is_resumed(workspace, scripted, full_disk):  # noqa: F811
    scripted[2] = lambda: full_disk.add("best.pt")
    assert here(*RUN, "--epochs=2", cwd=workspace).returncode == 1
    assert_true(workspace / "out", epoch=1)
    full_disk.clear()
    succeed(*RUN, "--epochs=2", "--init_from=resume", cwd=workspace)
    assert_true(workspace / "out", epoch=2)
    assert same_state(weights(workspace / "out" / "best.pt"), weights(workspace / "out" / "last.pt"))
    assert "unsaved" not in run_of(workspace / "out")
    # the same where the run goes on, and its next step would change them
    scripted.clear()
    succeed(*RUN, "--epochs=3", "--out_dir=whole", cwd=workspace)
    scripted[2] = lambda: full_disk.add("best.pt")
    assert here(*RUN, "--epochs=2", "--out_dir=parts", cwd=workspace).returncode == 1
    full_disk.clear()
    succeed(*RUN, "--epochs=3", "--out_dir=parts", "--init_from=resume", cwd=workspace)
    assert_true(workspace / "parts", epoch=2)
    assert same_state(weights(workspace / "whole" / "best.pt"), weights(workspace / "parts" / "best.pt"))


def test_the_record_follows_the_best_pt_that_is_there(workspace, scripted):  # noqa: F811
    out = workspace / "out"
    succeed(*RUN, "--epochs=1", cwd=workspace)
    first, last = ((out / name).read_bytes() for name in ("best.pt", "last.pt"))
    succeed(*RUN, "--epochs=2", "--init_from=resume", cwd=workspace)
    second = (out / "best.pt").read_bytes()
    # an older one, as from a backup
    (out / "best.pt").write_bytes(first)
    printed = succeed(*RUN, "--epochs=2", "--init_from=resume", cwd=workspace)
    assert "note: out/best.pt is of epoch 1, which the record did not know" in printed
    assert_true(out, epoch=1)
    # one that a killed run wrote before its last.pt
    (out / "best.pt").write_bytes(second)
    (out / "last.pt").write_bytes(last)
    printed = succeed(*RUN, "--epochs=3", "--init_from=resume", cwd=workspace)
    assert "note: out/best.pt is of epoch 2, which the record did not know" in printed
    assert (out / "best.pt").read_bytes() == second
    assert_true(out, epoch=2)
    # none
    (out / "best.pt").unlink()
    assert "out/best.pt is missing" in here(*RUN, "--epochs=3", "--init_from=resume", cwd=workspace).stderr.decode()
    assert "best" not in run_of(out)
    succeed(*RUN, "--epochs=4", "--init_from=resume", cwd=workspace)
    assert_true(out, epoch=4)


def test_a_best_pt_of_another_run_is_neither_taken_nor_replaced(workspace, scripted):  # noqa: F811
    out = workspace / "out"
    succeed(*RUN, "--epochs=1", cwd=workspace)
    succeed(*RUN, "--epochs=1", "--seed=2", "--out_dir=other", cwd=workspace)
    for strange in (workspace / "other" / "best.pt", out / "last.pt"):
        content = strange.read_bytes()
        if strange.name == "last.pt":
            model, saved = checkpoint.load(strange)
            saved["progress"]["best"] = {}
            checkpoint.save(strange, model, **{key: saved[key] for key in ("data", "settings", "progress", "run")})
            content = strange.read_bytes()
            succeed(*RUN, "--epochs=1", "--overwrite=True", cwd=workspace)
        (out / "best.pt").write_bytes(content)
        before = visible(out)
        message = refuse(*RUN, "--epochs=2", "--init_from=resume", cwd=workspace)
        assert "out/best.pt is no best.pt of the run of out/last.pt: move one of them elsewhere" in message
        assert visible(out) == before
    (out / "best.pt").write_bytes(content[:-100])
    assert "out/best.pt is no whole checkpoint" in refuse(*RUN, "--init_from=resume", "--epochs=2", cwd=workspace)


PLAN = {
    "batch_size": 4,
    "gradient_accumulation_steps": 1,
    "token_budget": 0,
    "epochs": 9,
    "max_steps": 0,
    "block_size": 8,
}


def test_evaluations_at_the_interval_compete_with_those_at_an_epochs_end():
    progress = Progress.planned(SimpleNamespace(**PLAN, eval_interval=3), examples=20)
    assert [step for step in range(1, 12) if progress.is_regular(step)] == [3, 5, 8, 10]
    inside, end = {"step": 3, "accuracy": 0.9, "loss": 1.0}, {"step": 5, "accuracy": 0.5, "loss": 1.0}
    assert progress.is_better(inside, end) and not progress.is_better(end, inside)
    assert not progress.is_better(inside | {"step": 4}, end) and progress.is_better(end, inside | {"step": 4})


def test_the_only_evaluation_inside_an_epoch_counts_until_another_comes():
    progress = Progress.planned(SimpleNamespace(**PLAN, eval_interval=0), examples=20)
    inside, later, end, worse = (
        {"step": step, "accuracy": accuracy, "loss": 1.0}
        for step, accuracy in ((3, 0.9), (4, 0.1), (5, 0.5), (10, 0.4))
    )
    assert progress.is_better(inside, {}) and progress.is_better(end, inside) and progress.is_better(later, inside)
    assert not progress.is_better(inside, inside) and not progress.is_better({}, {}) and not progress.is_better({}, end)
    assert (
        not progress.is_better(worse, end) and not progress.is_better(later, end) and not progress.is_better(end, end)
    )
    assert progress.is_better(end | {"step": 15, "loss": 0.9}, end)


def test_of_several_processes_only_the_first_keeps_what_could_not_be_written(monkeypatch):
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    progress = Progress(examples=20, step_size=4, epochs=1, max_steps=0, token_budget=8, step=5)
    model = GPT(GPTConfig(2, 8, 50, 1, 2, 8))
    checkpoints = Checkpoints(None, progress, model, None, None)
    checkpoints.offer_best(progress.evaluation(loss=0.7, accuracy=0.5))
    checkpoints.save()
    assert checkpoints.waiting[0] is model and progress.unsaved == {}


def test_a_run_that_replaces_another_leaves_nothing_of_it(workspace, monkeypatch):  # noqa: F811
    succeed(*RUN, "--epochs=1", cwd=workspace)
    # its own checkpoints cannot be written: those of the run before must not pass for them
    monkeypatch.setattr(checkpoint, "save", lambda *_, **__: (_ for _ in ()).throw(UserError("a full disk")))
    assert here(*RUN, "--epochs=1", "--seed=2", "--overwrite=True", cwd=workspace).returncode == 1
    assert visible(workspace / "out").keys() == {"log.csv", "run.json", "curves.png"}
    assert "best" not in run_of(workspace / "out") and run_of(workspace / "out")["seed"] == 2


# -----------------------------------------------------------------------------
# the folder


@pytest.mark.parametrize("is_held", [True, False])
def test_a_run_whose_folder_another_has_taken_saves_beside_it_and_ends(workspace, scripted, is_held):  # noqa: F811
    out = workspace / "out"
    succeed(*RUN, "--epochs=1", "--seed=2", "--out_dir=other", cwd=workspace)
    with contextlib.ExitStack() as stack:

        def take():
            out.rename(workspace / "gone")
            (workspace / "other").rename(out)
            if is_held:
                (out / "best.pt").unlink()
                (out / "last.pt").unlink()
                stack.enter_context(hold(out))
            taken.update(visible(out))

        scripted[2], taken = take, {}
        # it is told to overwrite what was there when it began, and nothing else
        done = here(*RUN, "--epochs=4", "--overwrite=True", cwd=workspace)
        assert done.returncode == 1 and done.stderr.count(b"\n") == 1, done.stderr
        assert b"out was removed, and another run has its place. Stopped after 14 steps" in done.stderr
        assert visible(out) == taken
    scripted.clear()
    (beside,) = workspace.glob("out-*")
    assert f"--out_dir={beside.name}".encode() in done.stderr
    succeed(*RUN, "--epochs=4", "--init_from=resume", f"--out_dir={beside.name}", cwd=workspace)
    succeed(*RUN, "--epochs=4", "--out_dir=whole", cwd=workspace)
    assert same_state(weights(workspace / "whole" / "last.pt"), weights(beside / "last.pt"))
    assert_true(beside, epoch=2)


def test_a_removed_folder_takes_its_best_with_it(workspace, scripted):  # noqa: F811
    scripted[3] = lambda: (workspace / "out").rename(workspace / "gone")
    printed = succeed(*RUN, "--epochs=4", cwd=workspace)
    assert "note: out was removed, and with it the best weights up to here" in printed
    assert_true(workspace / "out", epoch=4)
    assert [row["step"] for row in read_log(workspace / "out" / "log.csv")] == ["21", *map(str, range(22, 29)), "28"]
    # at the very end nothing follows that could take its place
    scripted[3] = lambda: None
    scripted[4] = lambda: (workspace / "again").rename(workspace / "gone2")
    done = here(*RUN, "--epochs=4", "--out_dir=again", cwd=workspace)
    assert done.returncode == 0, done.stderr
    assert_true(workspace / "again", epoch=4)


# -----------------------------------------------------------------------------
# the end


def test_a_run_killed_before_its_last_words_is_completed_by_resuming(workspace, scripted):  # noqa: F811
    out = workspace / "out"
    succeed(*RUN, cwd=workspace)
    whole, log = run_of(out), (out / "log.csv").read_bytes()
    unfinished = {key: value for key, value in whole.items() if key not in ("best", "ended")}
    (out / "run.json").write_text(json.dumps(unfinished))
    (out / "curves.png").unlink()
    printed = succeed(*RUN, "--init_from=resume", cwd=workspace)
    assert "best: epoch 2, dev accuracy 0.700" in printed
    completed = run_of(out)
    assert completed.pop("ended") >= whole.pop("ended") and completed == whole
    assert (out / "curves.png").is_file() and (out / "log.csv").read_bytes() == log
    before = visible(out)
    succeed(*RUN, "--init_from=resume", cwd=workspace)  # once more: nothing to complete, nothing changed
    assert visible(out) == before


DAMAGES = {
    "best missing": lambda run: run.pop("best"),
    "best null": lambda run: run.update(best=None),
    "best a string": lambda run: run.update(best="0.9"),
    "accuracy NaN": lambda run: run["best"].update(accuracy=float("nan")),
    "accuracy over one": lambda run: run["best"].update(accuracy=1.5),
    "of another best.pt": lambda run: run["best"].update(accuracy=0.9, sha256="0" * 64),
    "never ended": lambda run: run.pop("ended"),
}


def test_seeds_takes_no_word_for_it(workspace, scripted):  # noqa: F811
    succeed(*RUN, "--epochs=1", "--seed=3", "--out_dir=out/seed-3", cwd=workspace)
    path = workspace / "out" / "seed-3" / "run.json"
    whole = json.loads(path.read_text())
    assert ended_run(path.parent) == whole
    for damage, spoil in DAMAGES.items():
        spoilt = json.loads(json.dumps(whole))
        spoil(spoilt)
        path.write_text(json.dumps(spoilt))
        with pytest.raises(UserError):
            ended_run(path.parent)
            raise AssertionError(damage)
    # the run is complete, and so is its record when it is resumed
    printed = succeed(*RUN, "--seeds=[3]", "--epochs=1", cwd=workspace)
    assert printed.splitlines()[-1].startswith("mean 0.5000")
    assert run_of(path.parent)["best"] == whole["best"]
    os.remove(path)
    os.mkfifo(path)  # reading it would wait for ever
    assert here(*RUN, "--seeds=[3]", "--epochs=1", cwd=workspace).returncode == 1


@pytest.mark.parametrize("redirection, reason", [("> /dev/full", "No space left on device"), ("| head -1", "Broken")])
def test_output_that_cannot_be_printed_ends_no_training(workspace, redirection, reason):  # noqa: F811
    words = shlex.join([sys.executable, "-u", str(REPO / RUN[0]), *RUN[1:]])
    script = f"set -o pipefail; {words} {redirection}"
    done = subprocess.run(["bash", "-c", script], cwd=workspace, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: all is done, but not all of it could be printed: {reason}"), done.stderr
    assert done.stderr.count("\n") == 1
    assert checkpoint.load(workspace / "out" / "last.pt")[1]["progress"]["step"] == 14
    assert "ended" in run_of(workspace / "out")


def test_an_error_that_cannot_be_told_has_its_exit_status(workspace):  # noqa: F811
    words = shlex.join([sys.executable, str(REPO / RUN[0]), *RUN[1:], "--n_head=3"])
    assert subprocess.run(["bash", "-c", f"{words} > /dev/full 2> /dev/full"], cwd=workspace).returncode == 1


def test_a_run_in_float16_that_takes_no_step_says_so_and_fails(workspace, monkeypatch):  # noqa: F811
    scaler = torch.amp.GradScaler  # in which every gradient overflows
    hopeless = lambda device, enabled: scaler(device, init_scale=3e38, backoff_factor=1 - 1e-9)  # noqa: E731
    monkeypatch.setattr(torch.amp, "GradScaler", hopeless)
    done = here(*RUN, "--epochs=4", cwd=workspace)
    lines = done.stderr.decode().splitlines()
    warning = "warning: 20 of the last 20 steps were skipped: the gradient is not finite in float16"
    assert done.returncode == 1 and len(lines) == 2, lines
    assert lines[0].startswith(warning) and lines[1].startswith("error: no step was taken")
    assert b"skipped: 28 of 28 steps" in done.stdout
    progress = checkpoint.load(workspace / "out" / "last.pt")[1]["progress"]
    assert progress["skipped"] == progress["step"] == 28


# -----------------------------------------------------------------------------
# log.csv


def test_a_row_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(",".join(COLUMNS) + "\n")
    rows = [{"step": step, "epoch": 0.5, "split": "train", "loss": 1 / 3} for step in (1, 2)]
    append_to_log(path, rows[:1])
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, limits[1]))
    try:
        with pytest.raises(OSError):
            append_to_log(path, rows[1:])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    append_to_log(path, rows[1:])
    with open(path, newline="") as f:
        assert [(row["step"], float(row["loss"])) for row in csv.DictReader(f)] == [("1", 1 / 3), ("2", 1 / 3)]


def test_rows_that_could_not_be_written_come_later(workspace, monkeypatch, scripted):  # noqa: F811
    """Also on resume, when the rows of steps that are taken again have yet to be cut off: a full disk is no refusal."""
    succeed(*RUN, "--epochs=3", "--out_dir=whole", cwd=workspace)
    succeed(*RUN, "--epochs=1", cwd=workspace)
    with open(workspace / "out" / "log.csv", "a") as f:
        f.write("8,1.14,train,0.7,,0.001,0.1,99.0,9.0\n9,1.2")
    append, begin, calls = record.append_to_log, record.begin_log, []

    def fails_at_first(function):
        def write(*args):
            calls.append(function)
            if len(calls) < 10:
                raise OSError(28, "No space left on device")
            function(*args)

        return write

    monkeypatch.setattr(record, "append_to_log", fails_at_first(append))
    monkeypatch.setattr(record, "begin_log", fails_at_first(begin))
    done = here(*RUN, "--epochs=3", "--init_from=resume", cwd=workspace)
    assert done.returncode == 0 and done.stderr.count(b"warning: ") == 1, done.stderr
    logs = [
        [
            {key: row[key] for key in ("step", "split", "loss", "grad_norm")}
            for row in read_log(workspace / out / "log.csv")
        ]
        for out in ("out", "whole")
    ]
    assert logs[0] == logs[1]


def test_a_pipe_in_the_place_of_the_log_is_not_waited_for(workspace):  # noqa: F811
    (workspace / "out").mkdir()
    os.mkfifo(workspace / "out" / "log.csv")
    done = here(*RUN, "--max_steps=2", cwd=workspace)
    assert (
        done.returncode == 1
        and b"out/log.csv cannot be written: it is there already and no regular file" in done.stderr
    )
    done = here(*RUN, "--max_steps=3", "--init_from=resume", cwd=workspace)
    assert done.returncode == 1 and checkpoint.load(workspace / "out" / "last.pt")[1]["progress"]["step"] == 3
