"""bench/seeds.py: its table says what the runs' logs and evaluate.py say."""

import json
import re
import statistics

from conftest import PREPARE_SAMPLE, refuse, succeed
from runs import RUN, read_log

IN_FLOAT32 = ["--dtype", "float32"]  # as the runs


def test_the_table_of_seeds_is_what_the_runs_have_logged(workspace):
    for job, rate in (("slow", "1e-5"), ("fast", "1e-2")):
        run = [*RUN, "--seeds=[2,10]", "--eval_interval=4", f"--learning_rate={rate}", f"--out_dir={job}"]
        succeed(*run, cwd=workspace)
    *_, first, second = succeed("bench/seeds.py", "slow", "fast", cwd=workspace).splitlines()
    for job, row in (("slow", first), ("fast", second)):
        logs = [read_log(workspace / job / f"seed-{seed}" / "log.csv") for seed in (2, 10)]
        accuracies = [[float(row["accuracy"]) for row in log if row["split"] == "dev"] for log in logs]
        cells = [cell.strip() for cell in row.split("|")[1:-1]]
        assert cells[:2] == [job, "2"]
        for cell, values in zip(cells[2:4], (map(max, accuracies), (each[-1] for each in accuracies)), strict=True):
            values = list(values)
            assert cell == f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"
        best = [f"{job}/seed-{seed}/best.pt" for seed in (2, 10)]
        assert f"dev accuracy: {cells[4]} (" in succeed("evaluate.py", *IN_FLOAT32, "--ckpt", *best, cwd=workspace)
    assert [cell.strip() for cell in first.split("|")[6:9]] == ["", "", ""]
    gain = float(re.match(r"[+-]0\.\d{3}", second.split("|")[6].strip())[0])
    means = [json.loads((workspace / job / "seeds.json").read_text())["mean"] for job in ("slow", "fast")]
    assert abs(gain - (means[1] - means[0])) < 0.0006
    other = [*IN_FLOAT32, "--ckpt", *best, "--compare", *(f"slow/seed-{seed}/best.pt" for seed in (2, 10))]
    p = re.search(r"McNemar's exact p (\S+)", succeed("evaluate.py", *other, cwd=workspace))[1]
    assert second.split("|")[8].strip() == p


def test_runs_of_another_dev_set_or_none_are_refused(workspace):
    succeed(*RUN, "--seeds=[1]", "--max_steps=1", cwd=workspace)
    assert "data has no folders seed-N" in refuse("bench/seeds.py", "out", "data", cwd=workspace)
    sample = workspace / "data" / "sample"
    split = ["--train", sample / "dev.tsv", "--dev", sample / "train.tsv", "--name", "turned"]
    succeed("prepare_own.py", *split, cwd=workspace)
    message = refuse("bench/seeds.py", "out", "--data_dir", "data/turned", cwd=workspace)
    assert "out/seed-1/best.pt was trained on 'sample' (negative, positive), but data/turned holds" in message
    dev = (sample / "dev.tsv").read_text(encoding="utf-8").splitlines(keepends=True)
    (sample / "dev.tsv").write_text("".join(dev[:-1]), encoding="utf-8")
    succeed(*PREPARE_SAMPLE, cwd=workspace)
    message = refuse("bench/seeds.py", "out", cwd=workspace)
    assert "out/seed-1/best.pt was evaluated on another dev set than data/sample's" in message
    (workspace / "out" / "seed-1").rename(workspace / "out" / "seed-1-old")
    assert "out has no folders seed-N" in refuse("bench/seeds.py", "out", cwd=workspace)


def test_a_run_that_has_not_ended_is_not_compared(workspace):
    succeed(*RUN, "--seeds=[1]", "--max_steps=1", cwd=workspace)
    run = json.loads((workspace / "out" / "seed-1" / "run.json").read_text())
    del run["ended"]
    (workspace / "out" / "seed-1" / "run.json").write_text(json.dumps(run))
    assert "out/seed-1/run.json tells of no run that has ended" in refuse("bench/seeds.py", "out", cwd=workspace)
