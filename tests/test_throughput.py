"""The benchmark runs: at a tiny size, for its table and not for its times."""

import json
import shutil

from conftest import refuse, succeed

TINY = ["--tasks", "sample", "--n_layer", "2", "--n_head", "2", "--n_embd", "16", "--examples", "32", "--rounds", "1"]
TINY += ["--seconds", "0", "--contenders", "ours", "trainer", "trainer-best", "nanogpt"]


def test_the_throughput_benchmark_measures_and_records_every_contender(prepared_sample, tmp_path):
    shutil.copytree(prepared_sample / "data", tmp_path / "data")
    printed = succeed("bench/throughput.py", *TINY, "--out", "tiny", cwd=tmp_path)
    record = json.loads((tmp_path / "tiny.json").read_text())
    rows = {row["contender"]: row["runs"][0] for row in record["rows"]}
    assert list(rows) == ["ours", "trainer", "trainer-best", "nanogpt"]
    assert rows["ours"]["examples"] == rows["trainer-best"]["examples"] == 32  # whole steps
    assert rows["trainer"]["examples"] == 8 and rows["nanogpt"]["examples"] == 32  # one micro-batch, after a warm-up
    assert rows["trainer"]["dtype"] == rows["nanogpt"]["dtype"] == "float32"
    assert rows["nanogpt"]["padding_share"] > max(rows["ours"]["padding_share"], rows["trainer"]["padding_share"])
    assert all(run["examples_per_second"] > 0 and run["peak_memory_gb"] > 0.1 for run in rows.values())
    table = (tmp_path / "tiny.md").read_text()
    assert table.strip() in printed and table.count("\n| sample |") == 4
    assert "tiny.json exists already" in refuse("bench/throughput.py", *TINY, "--out", "tiny", cwd=tmp_path)


def test_a_contender_that_fails_does_not_lose_the_others(prepared_sample, tmp_path):
    shutil.copytree(prepared_sample / "data", tmp_path / "data")
    few = [*TINY, "--examples", "4", "--contenders", "trainer", "ours", "--out", "tiny"]  # Trainer takes 8 at a time
    assert "not in each round: trainer on sample" in refuse("bench/throughput.py", *few, cwd=tmp_path)
    record = json.loads((tmp_path / "tiny.json").read_text())
    assert [len(row["runs"]) for row in record["rows"]] == [0, 1]
    assert "this repository" in (tmp_path / "tiny.md").read_text()
