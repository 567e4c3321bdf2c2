"""The real job at full size: a 124M GPT-2 from disk, the SST settings with smaller steps, the real data."""

import math

import pytest
from conftest import REPO, succeed
from runs import read_log

STEPS = 2  # of 32 sentences instead of 2,048, which would take minutes
DEV = 50  # sentences of 1,101, each of which is evaluated twice


def test_two_steps_of_the_sst_job_and_their_evaluation(tsv_dir, tmp_path):
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config()).save_pretrained(tmp_path / "gpt2")
    (tmp_path / "tsv").mkdir()
    for path in tsv_dir.glob("ids-sst-*.csv"):
        lines = path.read_bytes().splitlines(keepends=True)
        (tmp_path / "tsv" / path.name).write_bytes(b"".join(lines[: 1 + DEV] if "dev" in path.name else lines))
    succeed("prepare_sst.py", "--source", "tsv", cwd=tmp_path)
    options = ["--batch_size=32", "--gradient_accumulation_steps=1", f"--max_steps={STEPS}"]
    printed = succeed("finetune.py", REPO / "config" / "finetune_sst.py", *options, cwd=tmp_path)
    assert "model: 123,706,373 parameters" in printed  # 1,024 positions are cut to the 64 in use
    *train, dev = read_log(tmp_path / "out" / "log.csv")
    losses = [float(row["loss"]) for row in train]
    assert len(losses) == STEPS and losses[0] == pytest.approx(math.log(5), abs=0.2) and math.isfinite(losses[-1])
    evaluated = succeed("evaluate.py", "--ckpt", "out/best.pt", cwd=tmp_path)
    assert evaluated.splitlines()[-1].startswith(f"dev accuracy: {float(dev['accuracy']):.3f} (95%")
    (tmp_path / "out" / "last.pt").unlink()  # 1.5 GB that pytest would keep
