"""A run's record is true whatever happens: a fault stops the run, and resume puts right what it left behind."""

import contextlib
import itertools
import json
import shlex
import subprocess
import sys
import time
from functools import partial

import pytest
import torch
from conftest import REPO, refuse, succeed, unwrapped, visible
from runs import RUN, assert_same_run, read_log, same_state

import finetune
from classifier import checkpoint
from classifier.errors import UserError
from classifier.files import file_sha256, hold
from classifier.training import predict

SCRIPTED = {1: 0.5, 2: 0.7, 3: 0.6, 4: 0.65}  # epoch -> dev accuracy, so that it is known which is the best


@pytest.fixture
def scripted(monkeypatch):
    """Dev accuracies as SCRIPTED says. What is put into `hooks` for an epoch is called before its evaluation."""
    hooks = {}
    losses = predict.loss_and_accuracy

    def loss_and_accuracy(logits, labels):
        epoch = sys._getframe(2).f_locals["epoch"]
        hooks.get(epoch, lambda: None)()
        return losses(logits, labels)[0], SCRIPTED[epoch]

    monkeypatch.setattr(predict, "loss_and_accuracy", loss_and_accuracy)
    return hooks


def run_of(out) -> dict:
    return json.loads((out / "run.json").read_text())


def assert_true(out, epoch: int) -> None:
    """What run.json says of best.pt is what best.pt is, and that is of this epoch."""
    best, (_, saved) = run_of(out)["best"], checkpoint.load(out / "best.pt")
    assert best["epoch"] == saved["progress"]["epoch"] == saved["progress"]["best"]["epoch"] == epoch
    assert best["accuracy"] == SCRIPTED[epoch] and best["sha256"] == file_sha256(out / "best.pt")


def test_run_json_tells_of_the_best_pt_that_is_there(workspace, scripted):
    out, words = workspace / "out", [*RUN, "--learning_rate=2e-3"]  # not AdamW's default
    succeed(*words, "--epochs=1", cwd=workspace)
    first = (out / "best.pt").read_bytes()
    succeed(*words, "--epochs=2", "--init_from=resume", cwd=workspace)
    # a kill between last.pt and best.pt leaves an older one or none: the evaluation is repeated, and best.pt written
    optimizer = checkpoint.load(out / "last.pt")[1]["optimizer"]
    for leave in (lambda: (out / "best.pt").write_bytes(first), lambda: (out / "best.pt").unlink()):
        leave()
        printed = succeed(*words, "--epochs=2", "--init_from=resume", cwd=workspace)
        assert same_state(checkpoint.load(out / "last.pt")[1]["optimizer"], optimizer)  # written again, without a step
        assert "epoch 2: dev accuracy 0.700" in printed and "is missing" not in printed
        assert_true(out, epoch=2)
    succeed(*words, "--epochs=3", "--init_from=resume", cwd=workspace)
    # later on an older one, as from a backup, or none: the best is what is left
    saved = visible(out)
    for leave in (lambda: (out / "best.pt").write_bytes(first), lambda: (out / "best.pt").unlink()):
        (out / "last.pt").write_bytes(saved["last.pt"])
        leave()
        printed = succeed(*words, "--epochs=3", "--init_from=resume", cwd=workspace)
        assert_true(out, epoch=3)
    assert "note: out/best.pt is missing, and with it the best weights so far" in printed


def test_a_best_pt_of_another_run_is_neither_taken_nor_replaced(workspace, scripted):
    out = workspace / "out"
    succeed(*RUN, "--epochs=1", cwd=workspace)
    succeed(*RUN, "--epochs=1", "--seed=2", "--out_dir=other", cwd=workspace)
    strange = (workspace / "other" / "best.pt").read_bytes()
    (out / "best.pt").write_bytes(strange)
    before = visible(out)
    message = refuse(*RUN, "--epochs=2", "--init_from=resume", cwd=workspace)
    assert "out/best.pt is from another run than out/last.pt: move one of them elsewhere" in message
    assert visible(out) == before
    (out / "best.pt").write_bytes(strange[:-100])
    assert "out/best.pt is not a whole checkpoint" in refuse(*RUN, "--init_from=resume", "--epochs=2", cwd=workspace)


def test_last_pt_is_written_for_a_best_at_the_end_and_after_a_minute(workspace, scripted, monkeypatch):
    def step_at(epoch: int, *options: str) -> int:
        """Of last.pt, when an evaluation begins."""
        path, steps = workspace / "out" / "last.pt", []
        scripted[epoch] = lambda: steps.append(checkpoint.load(path)[1]["progress"]["step"])
        succeed(*RUN, "--epochs=4", "--overwrite=True", *options, cwd=workspace)
        assert checkpoint.load(path)[1]["progress"]["step"] == 28
        scripted.clear()
        return steps[0]

    assert step_at(4) == 14  # epoch 3 was no best
    assert step_at(4, "--save_interval=7") == 21 and step_at(4, "--save_interval=5") == 25
    ticks = itertools.count(step=30)  # the third call is a minute after the first
    monkeypatch.setattr(time, "monotonic", lambda: next(ticks))
    assert step_at(4) == 27


def test_which_evaluation_is_the_best(monkeypatch):
    monkeypatch.setattr(finetune, "eval_interval", 3)
    is_better = partial(finetune.is_better, steps_per_epoch=5)
    inside, end = {"step": 3, "accuracy": 0.9, "loss": 1.0}, {"step": 5, "accuracy": 0.5, "loss": 1.0}
    assert is_better(inside, end) and not is_better(end, inside) and is_better(end, {})
    assert is_better(end | {"loss": 0.9}, end) and not is_better(end, end)
    # one that only max_steps has caused counts until another comes
    odd = inside | {"step": 4, "accuracy": 0.95}
    assert not is_better(odd, inside) and is_better(end, odd) and is_better(odd, {})
    monkeypatch.setattr(finetune, "best_by", "macro_f1")
    assert is_better(end | {"macro_f1": 0.3}, inside | {"macro_f1": 0.2})


def test_a_run_without_a_better_evaluation_ends_when_its_patience_does(workspace, scripted):
    SCRIPTED.update({5: 0.71, 6: 0.7})
    words = [*RUN, "--epochs=6"]
    succeed(*words, "--out_dir=whole", cwd=workspace)
    for more in ([], ["--init_from=resume"]):  # resumed, it evaluates again and comes to the same end
        printed = succeed(*words, "--patience=2", *more, cwd=workspace)
        assert "patience=2: no better evaluation for so long, so the run ends" in printed and "epoch 4:" in printed
        assert "larger patience" in printed and "epochs or max_steps" not in printed and "step 29" not in printed
        assert_true(workspace / "out", epoch=2)
    succeed(*words, "--patience=3", "--init_from=resume", cwd=workspace)  # and then epoch 5 is better
    assert_true(workspace / "out", epoch=5)
    assert_same_run(workspace / "out", workspace / "whole")


def test_the_best_may_be_chosen_by_macro_f1(workspace):
    succeed(*RUN, "--best_by=macro_f1", "--epochs=3", cwd=workspace)
    out = workspace / "out"
    best = run_of(out)["best"]
    assert best["macro_f1"] == max(float(row["macro_f1"]) for row in read_log(out / "log.csv") if row["split"] == "dev")
    evaluated = succeed("evaluate.py", "--dtype", "float32", "--ckpt", out / "best.pt", cwd=workspace)
    assert f"macro-F1 {best['macro_f1']:.4f}" in evaluated


def test_a_run_that_replaces_another_leaves_nothing_of_it(workspace, monkeypatch):
    save, no_space = checkpoint.save, "last.pt"

    def save_or_fail(path, *args, **parts):
        if path.name == no_space:
            raise UserError(f"cannot write {path}: No space left on device")
        save(path, *args, **parts)

    succeed(*RUN, "--epochs=1", cwd=workspace)
    monkeypatch.setattr(
        checkpoint, "save", save_or_fail
    )  # its own cannot be written: those of the run before must not pass for it
    message = refuse(*RUN, "--epochs=1", "--seed=2", "--overwrite=True", cwd=workspace)
    assert "stopped after 7 steps: no last.pt was written yet" in message
    assert visible(workspace / "out").keys() == {"log.csv", "run.json"}
    assert "best" not in run_of(workspace / "out") and run_of(workspace / "out")["seed"] == 2
    no_space = "best.pt"
    message = refuse(*RUN, "--epochs=1", "--seed=2", cwd=workspace)
    assert "cannot write out/best.pt: No space left on device; stopped after 7 steps: to resume from out/" in message


def test_a_run_whose_folder_was_replaced_stops_and_writes_nothing_more(workspace, scripted):
    out, taken = workspace / "out", {}
    succeed(*RUN, "--epochs=1", "--seed=2", "--out_dir=other", cwd=workspace)
    with contextlib.ExitStack() as stack:

        def take():
            out.rename(workspace / "gone")
            (workspace / "other").rename(out)
            stack.enter_context(hold(out))
            taken.update(visible(out))

        scripted[2] = take
        # it is told to overwrite what was there when it began, and nothing else
        message = refuse(*RUN, "--epochs=4", "--overwrite=True", cwd=workspace)
        assert "out was removed or replaced, so the run has stopped" in message
        assert visible(out) == taken
    # what it had written goes on from where it is now
    scripted.clear()
    succeed(*RUN, "--epochs=2", "--init_from=resume", "--out_dir=gone", cwd=workspace)
    assert_true(workspace / "gone", epoch=2)


def test_output_that_cannot_be_printed_stops_the_run(workspace):
    succeed(*RUN, "--out_dir=undisturbed", cwd=workspace)
    words = shlex.join([sys.executable, "-u", str(REPO / RUN[0]), *RUN[1:], "--overwrite=True"])
    broken = {"> /dev/full": "error: No space left on device", "| head -9": "error: Broken pipe (finetune.py, line "}
    for redirection, message in broken.items():
        script = f"set -o pipefail; {words} {redirection}"
        done = subprocess.run(["bash", "-c", script], cwd=workspace, capture_output=True, text=True)
        said = unwrapped(done.stderr)
        assert done.returncode == 1 and said.startswith(message) and said.count("\n") == 1, said
        is_begun = (workspace / "out" / "last.pt").is_file()
        succeed(*RUN, "--init_from=resume" if is_begun else "--overwrite=True", cwd=workspace)
        assert_same_run(workspace / "out", workspace / "undisturbed")


def test_a_run_in_float16_that_takes_no_step_stops(workspace, monkeypatch):
    scaler = torch.amp.GradScaler  # in which every gradient overflows
    hopeless = lambda device, enabled, **_: scaler(device, init_scale=3e38, backoff_factor=1 - 1e-9)  # noqa: E731
    monkeypatch.setattr(torch.amp, "GradScaler", hopeless)
    message = refuse(*RUN, "--epochs=4", cwd=workspace)  # 28 steps
    assert "no gradient of 20 steps was finite in float16: try dtype=float32" in message
    assert "no gradient of 7 steps was finite" in refuse(*RUN, "--epochs=1", "--overwrite=True", cwd=workspace)
