"""The benchmark runs: at a tiny size, for its table and not for its times."""

import functools
import json
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import here, refuse

from bench import contenders, throughput

TINY = ["--tasks", "sample", "--n_layer", "2", "--n_head", "2", "--n_embd", "16", "--examples", "32", "--rounds", "1"]
TINY += ["--seconds", "0", "--contenders", "ours", "trainer", "nanogpt"]


def test_every_contender_is_measured_and_recorded_but_for_one_that_fails(prepared_sample, tmp_path):
    shutil.copytree(prepared_sample / "data", tmp_path / "data")
    words = ["bench/throughput.py", *TINY, "--examples", "4", "--out", "tiny"]  # Trainer takes 8 at a time
    done = here(*words, cwd=tmp_path)
    assert done.returncode == 1 and b"not in each round: trainer on sample" in done.stderr
    record = json.loads((tmp_path / "tiny.json").read_text())
    rows = {row["contender"]: row["runs"] for row in record["rows"]}
    assert list(rows) == ["ours", "trainer", "nanogpt"] and not rows["trainer"]
    (ours,), (nanogpt,) = rows["ours"], rows["nanogpt"]
    assert ours["examples"] == nanogpt["examples"] == 4 and nanogpt["dtype"] == "float32"
    assert nanogpt["padding_share"] > ours["padding_share"]
    assert all(run["examples_per_second"] > 0 and run["peak_memory_gb"] > 0.1 for run in (ours, nanogpt))
    table = (tmp_path / "tiny.md").read_text()
    assert table.strip() in done.stdout.decode() and table.count("\n| sample |") == 2 and "this repository" in table
    assert "tiny.json exists already" in refuse(*words, cwd=tmp_path)


def test_steps_that_are_too_short_are_timed_together(prepared_sample, monkeypatch):
    monkeypatch.chdir(prepared_sample)
    monkeypatch.setattr(throughput, "product_peak", functools.cache(throughput.product_peak))  # once is enough
    monkeypatch.setattr(contenders, "whole_steps", lambda device: 3)  # a GPU's are ten
    monkeypatch.setattr(sys, "argv", ["throughput.py", *TINY, "--out=tiny"])
    arguments = throughput.parse_arguments()
    found = {name: throughput.measure("sample", name, arguments) for name in ("ours", "trainer-best", "trainer")}
    assert found["ours"]["examples"] == found["trainer-best"]["examples"] == 3 * 32
    assert found["trainer"]["examples"] == 8 and found["trainer"]["dtype"] == "float32"  # one micro-batch


def test_a_gpu_that_is_one_of_many_or_old_is_used_as_far_as_it_goes(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    assert throughput.one_gpu() == {"CUDA_VISIBLE_DEVICES": "3"}
    for capability in ((6, 1), (7, 0)):
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda capability=capability: capability)
        assert contenders.can_compile("cuda") == (capability == (7, 0)) and contenders.can_compile("cpu")


def test_memory_is_measured_on_windows_too(monkeypatch):
    psutil = pytest.importorskip("psutil")
    monkeypatch.setitem(sys.modules, "resource", None)
    of_windows = SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=3_000_000_000))
    monkeypatch.setattr(psutil, "Process", lambda: of_windows)
    assert throughput.peak_memory(torch.device("cpu")) == 3.0
