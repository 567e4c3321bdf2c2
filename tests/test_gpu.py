"""What holds on a GPU, for `make gpu`, at GPT-2 small's size. `make test` runs the same on a CPU, small, where it can.

Everything random is drawn on the CPU, so that a failure on a GPU can be compared with the CPU's numbers.
"""

import copy
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPO, command, padded_batch, random_split, succeed, transformers_model
from runs import run_patched
from torch.nn import functional as F

from classifier import checkpoint
from classifier.device import choose_dtype, compile_blocks, tune
from classifier.gpt2 import load_gpt2
from classifier.training.batches import Step, Texts, collate, free_memory, token_budget_for
from classifier.training.predict import predict
from finetune import accumulate_gradient, optimizer_groups
from model import GPT, Batch, GPTConfig, casting

ON_GPU = os.environ.get("TEST_ON") == "cuda"  # as `make gpu` says
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
# GPT-2 small, or a twentieth of its width
SHAPE = {"n_layer": 12, "n_head": 12, "n_embd": 768} if ON_GPU else {"n_layer": 2, "n_head": 4, "n_embd": 48}
VOCABULARY = 50257 if ON_GPU else 211
needs_gpu = pytest.mark.skipif(not ON_GPU, reason="about CUDA itself: `make gpu`, where there is a GPU")
half = [torch.bfloat16, pytest.param(torch.float16, marks=needs_gpu)]
if ON_GPU:  # fast and exact where a test does not say otherwise
    tune(DEVICE, torch.bfloat16)


@pytest.fixture(autouse=True)
def memory_of_its_own():
    """Each test begins with what the one before has left free."""
    if ON_GPU:
        torch.cuda.empty_cache()


def scaler(dtype: torch.dtype = torch.float32) -> torch.amp.GradScaler:
    return torch.amp.GradScaler(DEVICE.type, enabled=dtype == torch.float16)


def small_gpt2(dropout: float = 0.0) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(5, 64, VOCABULARY, **SHAPE, dropout=dropout)).to(DEVICE)


def sentences(model: GPT, examples: int = 200, is_compiled: bool = False) -> Texts:
    """As long as SST's, and a few longer ones."""
    return Texts(random_split(examples, 64, VOCABULARY, 5), model, is_compiled)


def gradient_of(model: GPT, step: Step, dtype: torch.dtype) -> torch.Tensor:
    """The gradient of a step by all parameters, on the CPU."""
    model.zero_grad(set_to_none=False)
    accumulate_gradient(model, scaler(), step, dtype)
    return torch.cat([p.grad.flatten() for p in model.parameters()]).cpu()


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


# -----------------------------------------------------------------------------
# the same numbers as transformers


@pytest.mark.parametrize("dtype, most", [(torch.float32, 2e-5), (torch.bfloat16, 0.03), (torch.float16, 0.004)])
def test_logits_and_gradients_are_those_of_transformers(dtype, most, tmp_path):
    if dtype == torch.float16 and not ON_GPU:
        pytest.skip("float16 is for GPUs: `make gpu`")
    sizes = {"vocab_size": VOCABULARY, "n_positions": 64} | SHAPE
    theirs = transformers_model("GPT2ForSequenceClassification", tmp_path / "gpt2", **sizes).to(DEVICE)
    tokens, lengths, mask = (
        part.to(DEVICE) for part in padded_batch([64, 40, 23, 23, 7, 1], VOCABULARY, VOCABULARY - 1)
    )
    labels = torch.tensor([0, 1, 2, 3, 4, 0], device=DEVICE)
    logits = theirs(tokens, attention_mask=mask).logits
    F.cross_entropy(logits, labels).backward()

    ours = load_gpt2(str(tmp_path / "gpt2"), num_classes=5, dropout=0.0, block_size=64).to(DEVICE)
    with torch.no_grad():
        ours.head.weight.copy_(theirs.score.weight)
    with casting(ours, dtype):
        our_logits = ours(Batch.from_padded(tokens, lengths))
        F.cross_entropy(our_logits, labels).backward()
    assert distance(our_logits, logits) <= most and our_logits.dtype == torch.float32
    their_gradient = {name.removeprefix("transformer."): p.grad for name, p in theirs.named_parameters()}
    for name, gradient in their_gradient.items():
        is_conv1d = name.startswith("h.") and gradient.dim() == 2  # whose weights are stored the other way round
        mine = ours.get_parameter(name.replace("score", "head")).grad
        assert distance(mine, gradient.T if is_conv1d else gradient) <= 10 * most, name


# -----------------------------------------------------------------------------
# a step is a step, however it is computed


@pytest.mark.parametrize("is_padded", [False, True])
def test_one_step_is_the_same_in_one_micro_batch_and_in_many(is_padded):
    model = small_gpt2()
    texts, gradients = sentences(model, is_compiled=is_padded), []
    for budget in (10**6, 400):
        step = collate(texts, np.arange(200), budget)
        gradients.append((len(step.micro_batches), gradient_of(model, step, torch.float32)))
    (few, whole), (many, parts) = gradients
    assert few <= 4 and many > 15 and distance(parts, whole) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, *half])
def test_recomputed_activations_have_the_same_masks(dtype):
    model, gradients = small_gpt2(dropout=0.2), []
    step = collate(sentences(model), np.arange(200), 4000)
    for model.activation_checkpointing, seed in ((False, 1), (True, 1), (True, 2)):
        torch.manual_seed(seed)
        gradients.append(gradient_of(model, step, dtype))
    assert distance(gradients[1], gradients[0]) < (1e-5 if dtype == torch.float32 else 0.01)
    assert distance(gradients[2], gradients[0]) > 0.1  # other masks would be seen


@pytest.mark.parametrize("dtype", [torch.float32, *half])
def test_a_split_is_predicted_alike_in_float32_and_below(dtype):
    model = small_gpt2()
    texts = sentences(model)
    exact = predict(model, texts, torch.float32)
    assert distance(predict(model, texts, dtype), exact) < (1e-6 if dtype == torch.float32 else 0.03)
    on_cpu = copy.deepcopy(model).cpu()
    assert distance(predict(on_cpu, Texts(texts.split, on_cpu), torch.float32), exact) < 1e-4


@needs_gpu
def test_compiled_blocks_compute_the_same():
    model = small_gpt2()
    texts = sentences(model)
    step = collate(texts, np.arange(200), 4000)
    eager, logits = gradient_of(model, step, torch.bfloat16), predict(model, texts, torch.bfloat16)
    compile_blocks(model)
    assert distance(gradient_of(model, step, torch.bfloat16), eager) < 0.02
    assert distance(predict(model, texts, torch.bfloat16), logits) < 0.02


# -----------------------------------------------------------------------------
# the device's time and memory


@needs_gpu
def test_nobody_waits_for_the_device_inside_a_step():
    model = small_gpt2(dropout=0.1)
    texts = sentences(model)
    accumulate_gradient(model, scaler(), collate(texts, np.arange(200), 2000), torch.bfloat16)  # what is done once
    torch.cuda.set_sync_debug_mode("error")
    try:
        step = collate(texts, np.arange(200), 2000)
        accumulate_gradient(model, scaler(), step, torch.bfloat16)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
@pytest.mark.parametrize("recomputes", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_fills_the_free_memory_fits_into_it(dtype, recomputes, monkeypatch):
    monkeypatch.setattr("classifier.training.batches.FLOOR", 10**6)  # micro-batches as full as they get
    model = small_gpt2(dropout=0.1)
    model.activation_checkpointing = recomputes
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    limit = torch.cuda.memory_allocated() + 6 * 10**9
    torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total))
    try:
        budget = token_budget_for(model, dtype, min(6 * 10**9, free_memory()))
        texts = Texts(random_split(2 * budget // 60, 64, VOCABULARY, 5), model)
        optimizer = torch.optim.AdamW(optimizer_groups(model, 0.1), fused=True)
        accumulate_gradient(model, scaler(), collate(texts, np.arange(len(texts)), budget), dtype)
        optimizer.step()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@needs_gpu
@pytest.mark.parametrize("block_size, batch_size", [(64, 64), (512, 8)])  # config/finetune_sst.py, finetune_cfimdb.py
def test_both_tasks_train_in_float32_within_8_gb(block_size, batch_size):
    torch.cuda.reset_peak_memory_stats()
    model = GPT(GPTConfig(5, block_size, dropout=0.2)).to(DEVICE)
    optimizer = torch.optim.AdamW(optimizer_groups(model, 0.1), fused=True)
    texts = Texts(random_split(300, block_size, VOCABULARY, 5), model)
    for _ in range(2):
        accumulate_gradient(model, scaler(), collate(texts, np.arange(300), block_size * batch_size), torch.float32)
        optimizer.step()
    assert torch.cuda.max_memory_reserved() <= 8e9


# -----------------------------------------------------------------------------
# whole runs

RUN = ["finetune.py", "--data_dir=data/sample", "--init_from=scratch", f"--device={DEVICE.type}", "--block_size=64"]
RUN += ["--n_layer=2", "--n_head=2", "--n_embd=32", "--dropout=0.2", "--batch_size=32"]
RUN += ["--gradient_accumulation_steps=2"]


def losses_of(out: Path) -> np.ndarray:
    return np.genfromtxt(out / "log.csv", delimiter=",", names=True)["loss"]


@needs_gpu
def test_a_deterministic_run_says_where_it_runs_and_is_resumed_to_the_same_bits(workspace):
    run = [*RUN, "--deterministic=True", "--epochs=2"]
    printed = succeed(*run, "--out_dir=whole", "--device=auto", cwd=workspace, run=command)
    device, dtype = printed.splitlines()[:2]
    assert device.startswith(f"device: {DEVICE.type} (")
    assert dtype.startswith(f"dtype: {str(choose_dtype('auto', DEVICE)[0]).removeprefix('torch.')} (")
    succeed(*run, "--out_dir=parts", "--max_steps=7", cwd=workspace, run=command)
    succeed(*run, "--out_dir=parts", "--init_from=resume", cwd=workspace, run=command)
    whole, parts = (checkpoint.load(workspace / out / "last.pt")[0].state_dict() for out in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@needs_gpu
def test_memory_that_runs_out_halves_the_micro_batches_of_the_same_step(workspace):
    options = ["--n_layer=6", "--n_head=8", "--n_embd=512", "--batch_size=512", "--gradient_accumulation_steps=1"]
    words = [*RUN, *options, "--dropout=0.0", "--max_steps=2", "--dtype=float32", "--token_budget=65536"]
    succeed(*words, "--out_dir=roomy", cwd=workspace, run=command)
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    little = f"torch.cuda.set_per_process_memory_fraction({1e9 / total})"
    done = run_patched(little, *words, "--out_dir=tight", cwd=workspace)
    assert done.returncode == 0 and "out of memory: the step is taken again" in done.stdout, done.stderr
    np.testing.assert_allclose(losses_of(workspace / "tight"), losses_of(workspace / "roomy"), rtol=1e-4)


@needs_gpu
def test_two_processes_train_as_one_or_say_that_there_is_one_gpu(workspace):
    words = [*RUN, "--dropout=0.0", "--max_steps=3", "--dtype=float32", "--out_dir=two"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run([*torchrun, str(REPO / words[0]), *words[1:]], cwd=workspace, capture_output=True, text=True)
    if torch.cuda.device_count() == 1:
        assert done.returncode and "process 1 of this machine has no GPU, there are 1" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    succeed(*words[:-1], "--out_dir=one", cwd=workspace, run=command)
    np.testing.assert_allclose(losses_of(workspace / "two"), losses_of(workspace / "one"), rtol=1e-4)
