"""TensorBoard and Weights & Biases get every row of log.csv."""

import json
import sys

import pytest
from conftest import here, refuse, succeed
from runs import RUN, read_log


def test_tensorboard_has_the_log(workspace):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    succeed(*RUN, "--tensorboard_log=True", "--epochs=2", cwd=workspace)
    (folder,) = (workspace / "out" / "tensorboard").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    for tag, split in [("train/loss", "train"), ("dev/accuracy", "dev"), ("train/learning_rate", "train")]:
        rows = [row for row in read_log(workspace / "out" / "log.csv") if row["split"] == split]
        expected = {int(row["step"]): float(row[tag.split("/")[1]]) for row in rows}
        found = {event.step: event.value for event in events.Scalars(tag)}
        assert found == pytest.approx(expected, rel=1e-6), tag


WANDB = """
import json
names = []
def init(**options):
    names.append(options["name"])
    if options["project"] == "offline":
        raise ConnectionError("no account")
    print("wandb", json.dumps(options))
def log(figures, step):
    if names[-1] == "fragile" and step > 1:
        raise ConnectionError("network lost")
    print("wandb", json.dumps([step, figures]))
"""


def test_wandb_has_the_log_and_the_settings(workspace, monkeypatch):
    # its real client wants an account or minutes: this records what it is told
    (workspace / "wandb.py").write_text(WANDB)
    monkeypatch.syspath_prepend(workspace)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    arguments = [*RUN, "--wandb_log=True"]
    message = refuse(*arguments, "--wandb_project=offline", cwd=workspace)
    assert "wandb_log: cannot start (no account)" in message
    printed = succeed(*arguments, "--wandb_run_name=mine", "--epochs=1", cwd=workspace)
    options, *logged = [json.loads(line[6:]) for line in printed.splitlines() if line.startswith("wandb ")]
    assert options["project"] == "finetune-gpt2" and options["name"] == "mine"
    assert options["config"]["n_embd"] == 16
    rows = read_log(workspace / "out" / "log.csv")
    assert [step for step, _ in logged] == [int(row["step"]) for row in rows]
    for (_, figures), row in zip(logged, rows, strict=True):
        assert figures[f"{row['split']}/loss"] == float(row["loss"])
    # a failure on the way is told once, and changes nothing
    done = here(*arguments, "--wandb_run_name=fragile", "--epochs=1", "--out_dir=out-2", cwd=workspace)
    assert done.returncode == 0 and (workspace / "out-2" / "best.pt").is_file(), done.stderr
    assert done.stderr.count(b"warning: a tracker failed and is left out from here on: network lost") == 1
