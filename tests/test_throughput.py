"""The benchmark runs: at a tiny size, for its table and not for its times."""

import functools
import json
import shutil
import sys

from conftest import refuse, succeed

from bench import contenders, throughput

TINY = ["--tasks", "sample", "--n_layer", "2", "--n_head", "2", "--n_embd", "16", "--examples", "32", "--rounds", "1"]
TINY += ["--seconds", "0", "--contenders", "ours", "trainer", "nanogpt"]


def test_the_throughput_benchmark_measures_and_records_every_contender(prepared_sample, tmp_path):
    shutil.copytree(prepared_sample / "data", tmp_path / "data")
    printed = succeed("bench/throughput.py", *TINY, "--out", "tiny", cwd=tmp_path)
    record = json.loads((tmp_path / "tiny.json").read_text())
    rows = {row["contender"]: row["runs"][0] for row in record["rows"]}
    assert list(rows) == ["ours", "trainer", "nanogpt"]
    # whole steps; or one micro-batch, after a warm-up
    assert {name: row["examples"] for name, row in rows.items()} == {"ours": 32, "trainer": 8, "nanogpt": 32}
    assert rows["trainer"]["dtype"] == rows["nanogpt"]["dtype"] == "float32"
    assert rows["nanogpt"]["padding_share"] > max(rows["ours"]["padding_share"], rows["trainer"]["padding_share"])
    assert all(run["examples_per_second"] > 0 and run["peak_memory_gb"] > 0.1 for run in rows.values())
    table = (tmp_path / "tiny.md").read_text()
    assert table.strip() in printed and table.count("\n| sample |") == 3
    assert "tiny.json exists already" in refuse("bench/throughput.py", *TINY, "--out", "tiny", cwd=tmp_path)


def test_a_contender_that_fails_does_not_lose_the_others(prepared_sample, tmp_path):
    shutil.copytree(prepared_sample / "data", tmp_path / "data")
    few = [*TINY, "--examples", "4", "--contenders", "trainer", "ours", "--out", "tiny"]  # Trainer takes 8 at a time
    assert "not in each round: trainer on sample" in refuse("bench/throughput.py", *few, cwd=tmp_path)
    record = json.loads((tmp_path / "tiny.json").read_text())
    assert [len(row["runs"]) for row in record["rows"]] == [0, 1]
    assert "this repository" in (tmp_path / "tiny.md").read_text()


def test_steps_that_are_too_short_are_timed_together(prepared_sample, monkeypatch):
    monkeypatch.chdir(prepared_sample)
    monkeypatch.setattr(throughput, "product_peak", functools.cache(throughput.product_peak))  # once, not twice
    monkeypatch.setattr(contenders, "whole_steps", lambda device: 3)  # a GPU's are ten
    monkeypatch.setattr(sys, "argv", ["throughput.py", *TINY, "--out=tiny"])
    for name in ("ours", "trainer-best"):
        assert throughput.measure("sample", name, throughput.parse_arguments())["examples"] == 3 * 32, name


def test_a_gpu_that_is_one_of_many_or_old_is_used_as_far_as_it_goes(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    assert throughput.one_gpu() == {"CUDA_VISIBLE_DEVICES": "3"}
    for capability in ((6, 1), (7, 0)):
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda capability=capability: capability)
        assert contenders.can_compile("cuda") == (capability == (7, 0)) and contenders.can_compile("cpu")
