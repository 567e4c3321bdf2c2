"""How large micro-batches may be, and what they are cut to where memory does not do."""

from unittest import mock

import numpy as np
import pytest
import torch
from conftest import random_split
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from classifier.batches import MICRO_BATCH_COST, Texts, collate
from classifier.budget import activation_bytes, measured_cost, micro_batch_cost, token_budget_for
from classifier.errors import UserError
from classifier.predict import predict
from finetune import accumulate_gradient
from model import GPT, Batch, GPTConfig, casting

GB = 10**9


def gpt2() -> GPT:
    """GPT-2 small, without its numbers."""
    with torch.device("meta"):
        return GPT(GPTConfig(num_classes=5, block_size=64))


def kept_for_backward(dtype: torch.dtype, recomputes: bool, n_layer: int) -> int:
    """The bytes a forward pass keeps a token, in torch's own operators as on a GPU, without dropout."""
    model = GPT(GPTConfig(5, 64, 503, n_layer, 4, 128))
    model.activation_checkpointing = recomputes
    kept = {}
    with casting(model, dtype), mock.patch("classifier.cpu._is_by_hand", lambda x: False):
        weights = [*model.parameters(), *(w for layer in model.modules() for w in getattr(layer, "cast", None) or ())]
        weights = {weight.untyped_storage().data_ptr() for weight in weights}

        def keep(tensor):
            if tensor.untyped_storage().data_ptr() not in weights:
                kept[tensor.untyped_storage().data_ptr()] = tensor  # which keeps its address from another
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            batch = Batch.from_padded(torch.zeros(8, 32, dtype=torch.int64), torch.full((8,), 32))
            F.cross_entropy(model(batch), torch.zeros(8, dtype=torch.int64))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / (8 * 32)


@pytest.mark.parametrize("recomputes", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_memory_of_activations_is_what_a_forward_pass_keeps(dtype, recomputes):
    measured = (kept_for_backward(dtype, recomputes, 7) - kept_for_backward(dtype, recomputes, 3)) / 4  # of one block
    models = [GPT(GPTConfig(5, 64, 503, n_layer, 4, 128)) for n_layer in (7, 3)]
    for model in models:
        model.activation_checkpointing = recomputes
    formula = (activation_bytes(models[0], dtype) - activation_bytes(models[1], dtype)) / 4
    masks = 0 if recomputes else 2 * 128
    assert formula - masks == pytest.approx(measured, rel=0.01)


@pytest.mark.parametrize(
    "free, dtype, tokens",
    [
        (78 * 2**30, torch.bfloat16, 65536),
        (22 * 2**30, torch.bfloat16, 32768),
        (15 * 2**30, torch.float16, 16384),
        (7 * 2**30, torch.float32, 4096),  # a GTX 1080 whose weights are loaded: what its configuration took
        (2 * GB, torch.bfloat16, 256),
        (0, torch.float32, 256),
    ],
)
def test_a_gpus_free_memory_gives_the_token_budget(free, dtype, tokens):
    assert token_budget_for(gpt2(), dtype, free) == tokens


def test_what_is_not_trained_or_not_kept_leaves_room():
    model = gpt2()
    budget = token_budget_for(model, torch.float32, 4 * GB)
    model.activation_checkpointing = True
    assert token_budget_for(model, torch.float32, 4 * GB) >= 4 * budget
    model.activation_checkpointing = False
    model.requires_grad_(False)
    assert token_budget_for(model, torch.float32, 4 * GB) >= 2 * budget


@given(st.floats(1e-4, 1e-2), st.integers(64, 2048), st.floats(1e-7, 1e-4), st.integers(12, 16))
def test_what_a_micro_batch_costs_is_seen_through_the_time_of_its_launches(launches, cost, per_token, log2_most):
    most = 2**log2_most
    found = micro_batch_cost(lambda tokens: max(launches, (cost + tokens) * per_token), most)
    # the device is busy from some size on, below half the largest
    if launches <= (cost + most // 4) * per_token and cost <= most // 8:
        assert found == pytest.approx(cost, abs=1) or found > cost  # more where one of the two sizes was still bound
    assert micro_batch_cost(lambda tokens: launches, most) == 2048
    assert micro_batch_cost(lambda tokens: (cost + max(tokens, 1024)) * per_token, 2**20) == pytest.approx(cost, abs=1)


def test_the_cost_is_measured_with_real_steps_and_not_where_memory_runs_out():
    texts = Texts(random_split(60, 40, 97, 5), GPT(GPTConfig(5, 24, 97, 2, 2, 16)), is_compiled=True)
    sizes = []
    with mock.patch("torch.cuda.synchronize"):
        cost = measured_cost(lambda step: sizes.append(len(step.micro_batches[0][0].tokens)), texts, 10**6)
        assert cost in range(64, 2049) and set(sizes) == {max(sizes)}  # fewer texts than fill 1,024 tokens: one size

        def out_of_memory(step):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

        assert measured_cost(out_of_memory, texts, 10**6) == MICRO_BATCH_COST


@pytest.mark.parametrize("is_compiled", [False, True])  # packed as on a CPU, padded as on a GPU
def test_an_evaluation_that_does_not_fit_is_cut_until_it_does(is_compiled, monkeypatch):
    torch.manual_seed(0)
    model = GPT(GPTConfig(5, 24, 97, 2, 2, 16))
    texts = Texts(random_split(60, 40, 97, 5), model, is_compiled)
    expected, forward, tried = predict(model, texts, torch.float32), model.forward, []

    def limited(batch, most):
        tried.append(len(batch.tokens))
        if len(batch.tokens) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(batch)

    monkeypatch.setattr(model, "forward", lambda batch: limited(batch, 100))
    counts = []
    torch.testing.assert_close(predict(model, texts, torch.float32, counts.append), expected)
    assert sum(counts) == 60 and len(counts) > 5 and max(tried) > 100

    monkeypatch.setattr(model, "forward", lambda batch: limited(batch, 20))
    with pytest.raises(UserError, match="out of memory with a single text of 24 tokens"):
        predict(model, texts, torch.float32)


def test_a_step_of_any_cost_is_cut_into_every_example_once():
    texts = Texts(random_split(60, 40, 97, 5), GPT(GPTConfig(5, 24, 97, 1, 2, 16)), is_compiled=True)
    counts = []
    for texts.micro_batch_cost in (0, 192, 2048):
        cut = texts.cut(np.arange(60), 10**6)
        assert sorted(np.concatenate(cut).tolist()) == list(range(60))
        counts.append(len(cut))
    assert counts[0] > counts[1] >= counts[2] == 1


def test_the_gradient_is_that_of_the_step_whatever_a_micro_batch_costs():
    torch.manual_seed(0)
    model, scaler = GPT(GPTConfig(5, 24, 97, 2, 2, 16)).double(), torch.amp.GradScaler("cpu", enabled=False)
    texts, gradients = Texts(random_split(60, 40, 97, 5), model, is_compiled=True), []
    for texts.micro_batch_cost in (0, 2048):
        model.zero_grad()
        accumulate_gradient(model, scaler, collate(texts, np.arange(60), 10**6), torch.float32)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(*gradients, atol=1e-12, rtol=0)
