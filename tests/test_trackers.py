"""TensorBoard and Weights & Biases get every row of log.csv; a package that is missing is asked for."""

import csv
import json
import os
import textwrap
from types import SimpleNamespace

import pytest
from conftest import command, refuse, succeed

from classifier.errors import UserError
from classifier.trackers import open_trackers

RUN = ["finetune.py", "--data_dir=data/sample", "--init_from=scratch", "--n_layer=1", "--n_head=2", "--n_embd=16"]
RUN += ["--block_size=32", "--dtype=float32", "--gradient_accumulation_steps=4"]


def rows_of(folder) -> list[dict[str, str]]:
    with open(folder / "log.csv", newline="") as f:
        return list(csv.DictReader(f))


def test_tensorboard_has_the_log_also_after_a_resume(workspace):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    succeed(*RUN, "--tensorboard_log=True", "--max_steps=4", cwd=workspace)  # an epoch
    succeed(*RUN, "--tensorboard_log=True", "--epochs=2", "--init_from=resume", cwd=workspace)
    (folder,) = (workspace / "out" / "tensorboard").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    for tag, split in [("train/loss", "train"), ("dev/accuracy", "dev"), ("train/learning_rate", "train")]:
        rows = [row for row in rows_of(workspace / "out") if row["split"] == split]
        expected = {int(row["step"]): float(row[tag.split("/")[1]]) for row in rows}
        found = {event.step: event.value for event in events.Scalars(tag)}
        assert found == pytest.approx(expected, rel=1e-6), tag


def test_wandb_has_the_log_and_the_settings(workspace):
    # its real client wants an account or minutes: this records what it is told
    (workspace / "wandb.py").write_text(
        textwrap.dedent("""
        import json
        from types import SimpleNamespace
        errors = SimpleNamespace(Error=ConnectionError)
        names = []
        def init(**options):
            names.append(options["name"])
            if options["project"] == "offline":
                raise errors.Error("no account")
            print("wandb", json.dumps(options))
        def log(figures, step):
            if names == ["fragile"] and step > 1:
                raise errors.Error("network lost")
            print("wandb", json.dumps([step, figures]))
        """)
    )
    arguments, found = [*RUN, "--wandb_log=True"], os.environ | {"PYTHONPATH": str(workspace)}
    message = refuse(*arguments, "--wandb_project=offline", cwd=workspace, run=command, env=found)
    assert "wandb_log: Weights & Biases cannot start (no account)" in message
    printed = succeed(*arguments, "--wandb_run_name=mine", "--epochs=1", cwd=workspace, run=command, env=found)
    options, *logged = [json.loads(line[6:]) for line in printed.splitlines() if line.startswith("wandb ")]
    assert options["project"] == "finetune-gpt2" and options["name"] == "mine" and options["resume"] == "allow"
    assert options["config"]["n_embd"] == 16
    rows = rows_of(workspace / "out")
    assert [step for step, _ in logged] == [int(row["step"]) for row in rows]
    # an error on the way is reported and survived
    done = command(*arguments, "--wandb_run_name=fragile", "--epochs=1", "--out_dir=out-2", cwd=workspace, env=found)
    assert b"warning: cannot track the run: network lost; training goes on" in done.stderr and done.returncode == 1
    assert (workspace / "out-2" / "best.pt").is_file()
    for (_, figures), row in zip(logged, rows, strict=True):
        assert figures[f"{row['split']}/loss"] == float(row["loss"])


@pytest.mark.parametrize("package, setting", [("tensorboard", "tensorboard_log"), ("wandb", "wandb_log")])
def test_a_missing_package_says_how_to_install_it(workspace, monkeypatch, package, setting):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    settings = SimpleNamespace(**({"tensorboard_log": False, "wandb_log": False} | {setting: True}))
    with pytest.raises(UserError, match=f"{setting}=True needs a package .* `pip install {package}`"):
        open_trackers(settings, {"started": "now", "seed": 1}, workspace, 0)
