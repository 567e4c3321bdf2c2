"""bench/seeds.py: its table says what the runs' logs and evaluate.py say."""

import json
import re
import shutil
import statistics

from conftest import PREPARE_SAMPLE, refuse, succeed
from runs import read_log
from test_evaluate import TRAIN

IN_FLOAT32 = ["--dtype", "float32"]  # as the runs
SEEDS = (2, 10)


def train(folder, job: str, *options: str) -> None:
    """Run a job with each of SEEDS."""
    for seed in SEEDS:
        succeed(*TRAIN, "--batch_size=16", f"--seed={seed}", f"--out_dir={job}/seed-{seed}", *options, cwd=folder)


def test_the_table_of_seeds_is_what_the_runs_have_logged(workspace):
    train(workspace, "slow", "--max_steps=4", "--eval_interval=2", "--learning_rate=1e-5")
    train(workspace, "fast", "--max_steps=8", "--eval_interval=4", "--learning_rate=1e-2")
    printed = succeed("bench/seeds.py", "slow", "fast", cwd=workspace)
    *_, first, second = printed.splitlines()
    means = []
    for job, row in (("slow", first), ("fast", second)):
        logs = [read_log(workspace / job / f"seed-{seed}" / "log.csv") for seed in SEEDS]
        accuracies = [[float(row["accuracy"]) for row in log if row["split"] == "dev"] for log in logs]
        cells = [cell.strip() for cell in row.split("|")[1:-1]]
        assert cells[:2] == [job, "2"]
        best_and_last = [max(each) for each in accuracies], [each[-1] for each in accuracies]
        for cell, values in zip(cells[2:4], best_and_last, strict=True):
            assert cell == f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"
        means.append(statistics.mean(best_and_last[0]))
        deviation = statistics.stdev(best_and_last[0])
        assert f"mean {means[-1]:.4f}, standard deviation {deviation:.4f}; best: {job}/seed-" in printed
        best = [f"{job}/seed-{seed}/best.pt" for seed in SEEDS]
        assert f"dev accuracy: {cells[4]} (" in succeed("evaluate.py", *IN_FLOAT32, "--ckpt", *best, cwd=workspace)
    assert [cell.strip() for cell in first.split("|")[6:9]] == ["", "", ""]
    gain = float(re.match(r"[+-]0\.\d{3}", second.split("|")[6].strip())[0])
    assert abs(gain - (means[1] - means[0])) < 0.0006
    other = [*IN_FLOAT32, "--ckpt", *best, "--compare", *(f"slow/seed-{seed}/best.pt" for seed in SEEDS)]
    p = re.search(r"McNemar's exact p (\S+)", succeed("evaluate.py", *other, cwd=workspace))[1]
    assert second.split("|")[8].strip() == p


def test_runs_of_another_dev_set_or_none_or_that_have_not_ended_are_refused(workspace):
    train(workspace, "out", "--max_steps=1")
    assert "data has no folders seed-N" in refuse("bench/seeds.py", "out", "data", cwd=workspace)
    # runs that are no runs of one job have no mean
    for option, unlike in {"--patience=1": "patience was 0 and is now 1", "--dropout=0.1": "dropout was "}.items():
        words = ["--batch_size=16", "--max_steps=1", "--seed=3", "--out_dir=out/seed-3", "--overwrite=True"]
        succeed(*TRAIN, *words, option, cwd=workspace)
        message = refuse("bench/seeds.py", "out", cwd=workspace)
        assert f"out/seed-3 and out/seed-2 cannot have one mean: {unlike}" in message
    shutil.rmtree(workspace / "out" / "seed-3")
    shutil.copytree(workspace / "out" / "seed-2", workspace / "out" / "seed-4")  # the same run twice
    assert "out/seed-4 is a run with seed 2: rename it" in refuse("bench/seeds.py", "out", cwd=workspace)
    shutil.rmtree(workspace / "out" / "seed-4")
    sample = workspace / "data" / "sample"
    dev = (sample / "dev.tsv").read_text(encoding="utf-8").splitlines(keepends=True)
    (sample / "dev.tsv").write_text("".join(dev[:-1]), encoding="utf-8")
    succeed(*PREPARE_SAMPLE, cwd=workspace)
    for option in ([], ["--data_dir=data/sample"]):
        message = refuse("bench/seeds.py", "out", *option, cwd=workspace)
        assert "out/seed-2 was evaluated on another dev set than data/sample's" in message
    run = json.loads((workspace / "out" / "seed-10" / "run.json").read_text())
    del run["ended"]
    (workspace / "out" / "seed-10" / "run.json").write_text(json.dumps(run))
    assert "out/seed-10/run.json is no record of a run that has ended" in refuse("bench/seeds.py", "out", cwd=workspace)
