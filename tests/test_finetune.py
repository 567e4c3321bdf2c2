"""The training loop: the exact gradient however a step is cut, transformers' losses, and the real command."""

import ast
import dataclasses
import math
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import (
    PREPARE_SAMPLE,
    REPO,
    command,
    here,
    make_split,
    random_split,
    refuse,
    succeed,
    tiny_model_and_split,
    transformers_model,
    unwrapped,
    visible,
)
from runs import RUN, TINY, assert_same_run, read_log, same_state
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import finetune
from classifier import checkpoint
from classifier.device import choose_dtype, compile_blocks
from classifier.errors import UserError, is_out_of_memory
from classifier.gpt2 import load_gpt2
from classifier.settings import read_settings
from classifier.training.batches import Features, Texts, balanced_weights, collate
from classifier.training.predict import predict
from classifier.training.start import freeze_all_but_last
from finetune import accumulate_gradient, learning_rate_at, optimizer_groups, update
from model import GPT, Batch, GPTConfig, Linear

NO_SCALER = torch.amp.GradScaler("cpu", enabled=False)


# -----------------------------------------------------------------------------
# the mathematics of a step


def gradient_at_once(model, split, indices, class_weights=None) -> tuple[torch.Tensor, float]:
    """Of all examples as a user of the model alone would make one batch of them, by another road than Texts."""
    sequences = [torch.from_numpy(split.sequence(i, model.config.block_size).astype(np.int64)) for i in indices]
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    batch = Batch.from_padded(torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True), lengths)
    loss = F.cross_entropy(model(batch), torch.from_numpy(split.labels[indices].astype(np.int64)), class_weights)
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()]), loss.item()


def gradient(model, split, indices, token_budget, is_compiled=False, class_weights=None) -> tuple[torch.Tensor, float]:
    model.zero_grad()
    step = collate(Texts(split, model, is_compiled), indices, token_budget)
    loss = accumulate_gradient(model, NO_SCALER, step, torch.float32, class_weights)
    return torch.cat([p.grad.flatten() for p in model.parameters()]), loss.item()


def test_the_gradient_does_not_depend_on_how_the_step_is_cut():
    model, split = tiny_model_and_split()
    model.double()
    indices = np.random.default_rng(0).permutation(60)[:51]
    expected, loss = gradient_at_once(model, split, indices)
    assert expected.norm() > 0.1
    for token_budget in (24, 25, 100, 333, 10**6):
        for is_compiled in (False, True):  # packed as on a CPU, padded as on a GPU
            cut, cut_loss = gradient(model, split, indices, token_budget, is_compiled)
            assert (cut - expected).abs().max() < 1e-12, token_budget
            assert cut_loss == pytest.approx(loss)


def test_in_bfloat16_weights_are_cast_once_and_the_gradient_is_the_sum_of_its_parts():
    model, split = tiny_model_and_split()
    indices, texts = np.arange(60), Texts(split, model)
    loss = accumulate_gradient(model, NO_SCALER, collate(texts, indices, 100), torch.bfloat16)
    once = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    total = 0.0
    micro_batches = texts.cut(indices, 100)
    assert len(micro_batches) > 10
    for micro_batch in micro_batches:
        with torch.autocast("cpu", torch.bfloat16):
            features = model.features(texts.batch(micro_batch))
        logits = model.head(features)
        part = F.cross_entropy(logits, torch.from_numpy(split.labels[micro_batch].astype(np.int64)), reduction="sum")
        (part / 60).backward()
        total += part.item() / 60
    assert loss.item() == pytest.approx(total, rel=1e-6)
    for name, parameter in model.named_parameters():
        assert (once[name] - parameter.grad).norm() <= 1e-6 * parameter.grad.norm(), name


def test_balanced_classes_weigh_the_mean_of_the_whole_step_however_it_is_cut():
    model, split = tiny_model_and_split()
    split.labels[:40] = 3  # most of them
    weights = balanced_weights(split.labels, 5)
    expected_weights = compute_class_weight("balanced", classes=np.arange(5), y=split.labels)
    np.testing.assert_allclose(weights, expected_weights, rtol=1e-12)
    indices = np.random.default_rng(0).permutation(60)[:51]
    expected, loss = gradient_at_once(model, split, indices, torch.from_numpy(expected_weights).float())
    for token_budget in (24, 100, 10**6):
        for is_compiled in (False, True):
            cut, cut_loss = gradient(model, split, indices, token_budget, is_compiled, weights)
            assert cut_loss == pytest.approx(loss, rel=1e-5)
            assert (cut - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("recomputes, trained_blocks", [(False, -1), (True, 1)])
def test_each_weight_is_cast_once_a_step_however_often_it_is_used(recomputes, trained_blocks):
    class Casts(TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            if operator is torch.ops.aten._to_copy.default and kwargs["dtype"] == torch.bfloat16:
                cast.append(args[0].data_ptr())
            return operator(*args, **(kwargs or {}))

    cast = []
    model, split = tiny_model_and_split(n_layer=3, dropout=0.2)
    model.activation_checkpointing = recomputes
    freeze_all_but_last(model, trained_blocks)
    step = collate(Texts(split, model), np.arange(60), 300)
    assert len(step.micro_batches) > 3
    with Casts():
        accumulate_gradient(model, NO_SCALER, step, torch.bfloat16)
    weights = {p.data_ptr() for layer in model.modules() if isinstance(layer, Linear) for p in layer.parameters()}
    assert len(weights) == 3 * 4 * 2 and sorted(pointer for pointer in cast if pointer in weights) == sorted(weights)
    assert all(layer.cast is None for layer in model.modules() if isinstance(layer, Linear))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activation_checkpointing_changes_no_bit_of_the_gradient(dtype):
    model, split = tiny_model_and_split(n_layer=3, dropout=0.2)
    results = []
    for model.activation_checkpointing in (False, True):
        calls = []
        hook = model.h[1].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        model.zero_grad()
        torch.manual_seed(1)
        loss = accumulate_gradient(model, NO_SCALER, collate(Texts(split, model), np.arange(60), 300), dtype)
        results.append((loss, [p.grad.clone() for p in model.parameters()], len(calls)))
        hook.remove()
    (loss, gradient, calls), (same_loss, same_gradient, twice) = results
    assert twice == 2 * calls  # it really computes them again
    assert torch.equal(loss, same_loss) and all(map(torch.equal, gradient, same_gradient))


def test_compiled_blocks_give_the_same_gradient(monkeypatch):
    # traced as always, but without the minute that the C++ compiler would take
    compile = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda *args, **options: compile(*args, **options, backend=backend))
    backend = "aot_eager"
    torch.manual_seed(0)
    model = GPT(GPTConfig(5, 24, 97, 2, 2, 16))
    random = np.random.default_rng(0)
    split = make_split([random.integers(97, size=4 + i // 4).tolist() for i in range(60)], [i % 5 for i in range(60)])
    eager, _ = gradient(model, split, np.arange(60), 100)
    compile_blocks(model)
    compiled, _ = gradient(model, split, np.arange(60), 100, is_compiled=True)
    assert (compiled - eager).norm() <= 1e-5 * eager.norm()
    predict(model, Texts(split, model, is_compiled=True), torch.float32)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    gradient(model, split, np.arange(37), 150, is_compiled=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs == 4  # for any number and length


def test_a_machine_that_cannot_compile_is_told_in_one_line(workspace, monkeypatch):
    def backend(*_):
        raise RuntimeError("no compiler here\nand a page of details")

    compile = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda *args, **options: compile(*args, **options, backend=backend))
    message = refuse(*RUN, "--compile=True", cwd=workspace)
    assert message.startswith("error: torch.compile does not work on this machine (")
    assert "no compiler here" in message and "leave out --compile=True" in message
    assert not (workspace / "out" / "log.csv").exists()


@pytest.mark.parametrize("grad_clip", [0.0, 0.5])
def test_ten_steps_give_the_losses_of_a_plain_loop_around_transformers(tmp_path, grad_clip):
    theirs = transformers_model("GPT2ForSequenceClassification", tmp_path).train()
    ours = load_gpt2(str(tmp_path), num_classes=5)
    split = random_split(240, 40, 210, 5)
    optimizer = torch.optim.AdamW(optimizer_groups(ours, 0.1), lr=1e-3, betas=(0.9, 0.95), fused=True)
    # transformers' head has no bias; ours stays as it starts, at zero
    ours.head.bias.requires_grad_(False)
    matrices = [p for p in theirs.parameters() if p.dim() >= 2]
    vectors = [p for p in theirs.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    plain = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))
    our_losses, their_losses = [], []
    for step in range(10):
        indices = np.arange(step * 24, step * 24 + 24)
        loss = accumulate_gradient(ours, NO_SCALER, collate(Texts(split, ours), indices, 160), torch.float32)
        our_losses.append(update(ours, optimizer, NO_SCALER, loss, grad_clip)[0])

        sequences = [torch.from_numpy(split.sequence(i, 40).astype(np.int64)) for i in indices]
        tokens = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
        mask = torch.arange(tokens.shape[1]) < torch.tensor([[len(sequence)] for sequence in sequences])
        labels = torch.from_numpy(split.labels[indices].astype(np.int64))
        loss = theirs(tokens.masked_fill(~mask, 210), attention_mask=mask.long(), labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), grad_clip or math.inf)
        plain.step()
        plain.zero_grad()
        their_losses.append(loss.item())
    assert max(their_losses) - min(their_losses) > 0.05  # the model moved
    np.testing.assert_allclose(our_losses, their_losses, rtol=0, atol=1e-4)


def test_learning_rate_warms_up_and_follows_half_a_cosine(monkeypatch):
    for name, value in {"learning_rate": 1.0, "warmup_steps": 4, "lr_schedule": "cosine", "min_lr": 0.2}.items():
        monkeypatch.setattr(finetune, name, value)
    rates = [learning_rate_at(step, 24) for step in range(25)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[14] == pytest.approx(0.6) and rates[24] == pytest.approx(0.2)
    assert all(a > b for a, b in zip(rates[4:], rates[5:], strict=False))
    monkeypatch.setattr(finetune, "lr_schedule", "constant")
    assert learning_rate_at(20, 24) == 1.0


def test_a_loss_that_is_not_finite_stops_before_the_step():
    model = GPT(GPTConfig(2, 8, 50, 1, 2, 8))
    with torch.no_grad():
        model.head.weight[0, 0] = math.inf
    before = model.wte.weight.clone()
    optimizer = torch.optim.AdamW(optimizer_groups(model, 0.1))
    texts = Texts(make_split([[1, 2]], [0]), model)
    loss = accumulate_gradient(model, NO_SCALER, collate(texts, np.array([0]), 32), torch.float32)
    with pytest.raises(UserError, match="the step was not taken"):
        update(model, optimizer, NO_SCALER, loss, 1.0)
    assert torch.equal(model.wte.weight, before)


# -----------------------------------------------------------------------------
# the command


def test_a_run_trains_evaluates_and_saves(workspace):
    done = command(*RUN, cwd=workspace)
    assert done.returncode == 0 and done.stderr == b""  # without a terminal the progress is told in plain lines
    printed = done.stdout.decode()
    assert "step 1/14: loss 0." in printed
    rows = read_log(workspace / "out" / "log.csv")
    train = [row for row in rows if row["split"] == "train"]
    dev = [row for row in rows if row["split"] == "dev"]
    assert [int(row["step"]) for row in train] == list(range(1, 15))  # 878 examples by 128: 7 steps an epoch, 2 epochs
    assert [(int(row["step"]), float(row["epoch"])) for row in dev] == [(7, 1.0), (14, 2.0)]
    assert float(train[0]["loss"]) == pytest.approx(math.log(2), abs=0.1)
    best = max(dev, key=lambda row: (float(row["accuracy"]), -float(row["loss"])))
    model, saved = checkpoint.load(workspace / "out" / "best.pt")
    assert saved["progress"]["best"]["accuracy"] == float(best["accuracy"])
    assert saved["progress"]["step"] == int(best["step"])
    assert saved["settings"]["n_embd"] == 16 and model.config == GPTConfig(2, 32, 50257, 2, 2, 16, 0.2)
    assert f"best: epoch {float(best['epoch']):.4g}: dev accuracy {float(best['accuracy']):.3f}" in printed
    assert "dtype: float32 (as asked)" in printed and "wall time" in printed

    evaluated = succeed("evaluate.py", "--ckpt", "out/best.pt", "--dtype", "float32", cwd=workspace)
    assert evaluated.splitlines()[-1].startswith(f"dev accuracy: {float(best['accuracy']):.3f} (95%")


def test_the_demo_beats_the_majority_class_beyond_chance(workspace):
    succeed("finetune.py", REPO / "config" / "finetune_sample.py", cwd=workspace)
    printed = succeed("evaluate.py", "--ckpt", "out-sample/best.pt", cwd=workspace)
    low = re.search(r"^dev accuracy: \S+ \(95% Wilson interval (\S+) to", printed, re.MULTILINE)[1]
    assert float(low) > 0.5


def test_what_is_no_better_than_chance_is_told(workspace):
    hopeless = [*RUN, "--gradient_accumulation_steps=32", "--warmup_steps=9", "--overwrite=True"]
    printed = unwrapped(succeed(*hopeless, "--learning_rate=1e-30", "--max_steps=1", cwd=workspace))
    problems = "learning_rate=1e-30 is for pretrained weights; the warm-up, warmup_steps=9, ends after the last step; "
    assert f"note: 1 step in all; {problems}so few steps teach random weights little: try --learning_rate" in printed
    model, saved = checkpoint.load(workspace / "out" / "best.pt")
    accuracy = saved["progress"]["best"]["accuracy"]
    assert f"dev accuracy {accuracy:.3f}, loss 0.69" in printed and "; always 'negative' 0.500\n" in printed
    assert ("no better than always answering 'negative'" in printed) == (accuracy <= 0.5)
    flags = re.search(r"try (--learning_rate.*)", printed)[1].split()
    printed = succeed(*hopeless, *flags, "--epochs=2", "--n_embd=64", cwd=workspace)
    assert "steps in all" not in printed and "no better than" not in printed


def test_the_first_column_of_a_long_text_is_cut_unless_the_first_tokens_are_kept(tmp_path):
    rows = [f"{'good' if i % 2 else 'bad'} {i},{'many words that say nothing at all ' * 5},{i % 2}" for i in range(80)]
    (tmp_path / "titles.csv").write_text("title,body,label\n" + "\n".join(rows))
    prepare = ["prepare_own.py", "--train", "titles.csv", "--text_column", "title", "body", "--name", "titles"]
    succeed(*prepare, cwd=tmp_path)
    run = ["finetune.py", "--data_dir=data/titles", *TINY, "--init_from=scratch", "--learning_rate=1e-2"]
    run += ["--gradient_accumulation_steps=1", "--batch_size=8", "--epochs=6", "--dropout=0"]
    last = unwrapped(succeed(*run, cwd=tmp_path))
    assert "72 of 72 train texts are longer than 32 tokens: their last 32 are read, and 'title', the first" in last
    assert "column, is cut first (--keep=first reads the first ones)" in last
    assert "no better than always answering" in last
    first = succeed(*run, "--keep=first", "--overwrite=True", cwd=tmp_path)
    assert "best: epoch" in first and "dev accuracy 1.000" in first and "is cut first" not in first
    evaluate = ["evaluate.py", "--ckpt=out/best.pt", "--text"]
    for title in ("good", "bad"):
        row = succeed(*evaluate, f"{title} 3", "many words that say nothing at all " * 5, cwd=tmp_path).splitlines()[-1]
        assert row.startswith(str(int(title == "good")))


def test_a_resumed_run_ends_with_the_same_bits(workspace):
    run = [*RUN, "--eval_interval=3"]
    succeed(*run, "--out_dir=whole", cwd=workspace)
    evaluated = [int(row["step"]) for row in read_log(workspace / "whole" / "log.csv") if row["split"] == "dev"]
    assert evaluated == [3, 6, 7, 10, 13, 14]
    succeed(*run, "--out_dir=parts", "--max_steps=5", cwd=workspace)  # in the middle of an epoch
    run += ["--out_dir=parts", "--init_from=resume", "--data_dir=./data/sample/"]
    for stop in (6, 7, 8, 0):  # at an evaluation inside it, at its end, after that, and the end of the run
        succeed(*run, f"--max_steps={stop}", cwd=workspace)
    assert_same_run(workspace / "parts", workspace / "whole")


def test_resuming_refuses_what_would_be_another_run(workspace):
    resume, path = [*RUN, "--init_from=resume"], workspace / "out" / "last.pt"
    assert "there is no out/last.pt to resume: leave out --init_from=resume" in refuse(*resume, cwd=workspace)
    succeed(*RUN, "--max_steps=1", cwd=workspace)
    content = torch.load(path, weights_only=True)
    for name in ("eval_interval", "patience"):  # as if the run had begun before there were these settings
        del content["settings"][name], content["run"]["settings"][name]
    torch.save(content, path)
    message = refuse(*resume, "--dropout=0.1", "--weight_decay=0", cwd=workspace)
    assert "dropout was 0.2 and is now 0.1" in message and "weight_decay was 0.1 and is now 0.0" in message
    succeed(*resume, "--max_steps=2", cwd=workspace)
    train = workspace / "data" / "sample" / "train.tsv"
    train.write_text(train.read_text() + "878\tx\tone more film\t1\n")
    succeed(*PREPARE_SAMPLE, cwd=workspace)
    assert "was trained on other data" in refuse(*resume, cwd=workspace)


def test_another_runs_checkpoints_are_not_replaced_unless_asked(workspace):
    succeed(*RUN, "--max_steps=1", cwd=workspace)
    before = visible(workspace / "out")
    assert before.keys() == {"best.pt", "last.pt", "log.csv", "run.json", "curves.png"}
    message = refuse(*RUN, "--max_steps=2", cwd=workspace)
    assert "out contains another run (best.pt, last.pt)" in message
    # a run that fails before its first step takes nothing away, even with leave to; nor what it is to start from
    assert "there is no folder nowhere" in refuse(*RUN, "--overwrite=True", "--init_from=nowhere", cwd=workspace)
    for source in ("out/best.pt", "./out/../out/last.pt"):
        message = refuse(*RUN, f"--init_from={source}", "--overwrite=True", cwd=workspace)
        assert "--overwrite=True would remove" in message
    assert visible(workspace / "out") == before
    succeed(*RUN, "--max_steps=2", "--overwrite=True", cwd=workspace)
    assert len(read_log(workspace / "out" / "log.csv")) == 3
    # without a checkpoint: what somebody else has put there stays, what a run has left that came to nothing does not
    (workspace / "mine").mkdir()
    (workspace / "mine" / "log.csv").write_text("day,mood\n")
    assert "mine contains another run (log.csv)" in refuse(*RUN, "--out_dir=mine", cwd=workspace)
    shutil.copy(workspace / "out" / "run.json", workspace / "mine")
    succeed(*RUN, "--max_steps=1", "--out_dir=mine", cwd=workspace)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--n_layer=2000000"], "n_layer must be a whole number from 1 to 1000, not 2000000"),
        (["--learning_rate=1e300", "--max_steps=1"], "the model's output is NaN or infinite"),
        (["--trainable_blocks=3"], "trainable_blocks=3 is more than the model has: set 2 or less"),
        (["--out_dir=data/sample/train.tsv"], "cannot write into data/sample/train.tsv: File exists"),
    ],
)
def test_what_cannot_run_is_refused(workspace, arguments, message):
    assert message in refuse(*RUN, *arguments, cwd=workspace)


def test_out_of_memory_halves_the_micro_batches_and_takes_the_same_steps(workspace, monkeypatch):
    words = [*RUN, "--dropout=0", "--batch_size=128", "--gradient_accumulation_steps=1"]
    succeed(*words, "--max_steps=3", "--out_dir=roomy", cwd=workspace)
    forward, limit = GPT.forward, 600

    def limited(model, batch):
        if model.training and (batch.positions[batch.ends] + 1)[: batch.size].sum() > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(model, batch)

    monkeypatch.setattr(GPT, "forward", limited)
    tight, again = [*words, "--out_dir=tight"], "out of memory: the step is taken again in micro-batches of"
    printed = succeed(*tight, "--max_steps=3", cwd=workspace)
    lines = [line for line in printed.splitlines() if line.startswith("out of memory")]
    assert lines == [f"{again} {now:,} tokens, not {2 * now:,}" for now in (2048, 1024, 512)]
    for a, b in zip(*(read_log(workspace / out / "log.csv") for out in ("roomy", "tight")), strict=True):
        assert float(a["loss"]) == pytest.approx(float(b["loss"]), rel=1e-6)
    # a resumed run keeps what fitted, unless it is given another budget
    tight += ["--init_from=resume"]
    assert again not in succeed(*tight, "--max_steps=4", cwd=workspace)
    limit = 10_000
    succeed(*tight, "--max_steps=5", "--token_budget=3000", cwd=workspace)
    saved = checkpoint.load(workspace / "tight" / "last.pt")[1]
    assert saved["progress"]["token_budget"] == saved["run"]["settings"]["token_budget"] == 3000

    limit = 20
    message = refuse(*words, "--out_dir=hopeless", cwd=workspace)
    assert message.startswith("error: out of memory with one sequence in memory at a time")


def test_out_of_memory_in_the_update_ends_the_run_since_half_of_it_may_be_done(workspace, monkeypatch):
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *_: torch.empty(2**50))
    done = here(*RUN, cwd=workspace)
    assert done.returncode == 1 and b"taken again" not in done.stdout
    assert unwrapped(done.stderr.decode()).startswith("error: out of memory") and done.stderr.count(b"\n") == 2
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_frozen_parameters_stay_as_they_were(workspace, blocks):
    sizes = {"vocab_size": 50257, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2}
    transformers_model("GPT2Model", workspace / "gpt2", **sizes)
    start = load_gpt2(str(workspace / "gpt2"), block_size=32).state_dict()
    words = [*RUN, "--init_from=gpt2", f"--trainable_blocks={blocks}", "--epochs=3"]
    printed = succeed(*words, cwd=workspace)
    assert ("features: computed once" in printed) == (blocks == 0)
    trained = 34 + (32 if blocks else 0) + blocks * (12 * 256 + 13 * 16)  # head, ln_f, blocks
    assert f"{trained:,} of them trained, init_from ./gpt2\n" in printed
    model, saved = checkpoint.load(workspace / "out" / "last.pt")
    assert saved["run"]["initial_weights"] == "./gpt2"  # the folder, not OpenAI's model of that name
    moved = {name for name, weight in model.state_dict().items() if not torch.equal(weight, start[name])}
    trained = [("head.",), ("head.", "ln_f.", "h.1."), ("head.", "ln_f.", "h.")][blocks]
    assert moved == {name for name in start if name.startswith(trained)}
    if blocks == 2:
        return

    # cached or not, what was logged is what the checkpoint gives
    last = [row for row in read_log(workspace / "out" / "log.csv") if row["split"] == "dev"][-1]
    evaluated = succeed("evaluate.py", "--ckpt", "out/last.pt", "--dtype", "float32", cwd=workspace)
    assert f"loss {float(last['loss']):.4f}" in evaluated
    # and resuming is exact
    resumed = ["--out_dir=parts", "--max_steps=9"]
    succeed(*words, *resumed, cwd=workspace)
    succeed(*words, resumed[0], "--init_from=resume", cwd=workspace)
    parts, _ = checkpoint.load(workspace / "parts" / "last.pt")
    assert same_state(dict(model.state_dict()), dict(parts.state_dict()))


def test_the_head_is_computed_in_full_precision():
    head, features = tiny_model_and_split()[0].head, torch.randn(30, 16)
    expected = features @ head.weight.T + head.bias
    logits = predict(head, Features(features, np.zeros(30), torch.device("cpu")), torch.bfloat16)
    torch.testing.assert_close(logits, expected.detach())


def test_an_optimizer_state_of_another_model_is_refused(workspace):
    succeed(*RUN, "--max_steps=1", cwd=workspace)
    path = workspace / "out" / "last.pt"
    model, saved = checkpoint.load(path)
    parts = {key: saved[key] for key in ("data", "settings", "progress", "run", "optimizer", "scaler")}
    state = parts["optimizer"]["state"]
    narrow = {**state, 0: {**state[0], "exp_avg": torch.zeros(3)}}  # the fused AdamW would read beyond its end
    for optimizer in ({"state": narrow}, {"state": {}}, "nothing"):
        checkpoint.save(path, model, **parts | {"optimizer": optimizer})
        message = refuse(*RUN, "--init_from=resume", "--max_steps=2", cwd=workspace)
        assert "its optimizer state does not fit its weights" in message


def test_a_spoilt_log_is_repaired_on_resume(workspace):
    succeed(*RUN, "--max_steps=2", cwd=workspace)
    log = workspace / "out" / "log.csv"
    before = "".join(line for line in log.read_text().splitlines(keepends=True) if ",dev," not in line)
    log.write_bytes(before.encode() + b"abc,def\n\xff\xfe\n99,1.0,train,0.5,,,,,\n3,0.4,tr")
    succeed(*RUN, "--init_from=resume", "--max_steps=3", cwd=workspace)
    assert log.read_text().startswith(before)
    assert [row["step"] for row in read_log(log)] == ["1", "2", "3", "3"]


def test_a_run_that_has_ended_says_how_to_train_longer(workspace):
    for schedule, how in (("cosine", "its cosine has ended, so begin a new run"), ("constant", "raise epochs or")):
        words = [*RUN, f"--lr_schedule={schedule}", "--epochs=1", f"--out_dir={schedule}"]
        succeed(*words, cwd=workspace)
        before = visible(workspace / schedule)
        printed = " ".join(succeed(*words, "--init_from=resume", cwd=workspace).split())
        assert f"note: {schedule}/last.pt is at step 7 of 7 already: {how}" in printed
        message = refuse(*words, "--max_steps=3", "--init_from=resume", cwd=workspace)
        assert "last.pt is at step 7, beyond the last step 3: raise epochs or max_steps" in message
        after = visible(workspace / schedule)
        assert all(after[name] == before[name] for name in ("last.pt", "best.pt")) and after.keys() == before.keys()


def test_a_bare_name_has_the_settings_value_everywhere_in_finetune(workspace):
    source = (REPO / "finetune.py").read_text()
    line = "            while True:\n"
    assert source.count(line) == 1
    shown = "            print('bare', grad_clip, settings.grad_clip, dtype, device, seed, init_from)\n"
    mine = workspace / "mine.py"
    mine.write_text(source.replace(line, shown + line))
    words = [mine, *RUN[1:], "--grad_clip=0.25", "--max_steps=1", "--device=cpu", "--seed=3"]
    assert "\nbare 0.25 0.25 float32 cpu 3 scratch\n" in succeed(*words, cwd=workspace)
    # a mistake in code of one's own is found: the line ends with its place
    mistake = "            (Path(out_dir) / 'mine.txt').read_text()\n"
    mine.write_text(source.replace(line, mistake + line))
    number = 1 + source[: source.index(line)].count("\n")
    message = refuse(*words, "--overwrite=True", cwd=workspace)
    assert f"out/mine.txt: No such file or directory (mine.py, line {number}); stopped after 0 steps" in message
    # no function makes one of these names its own
    names = vars(read_settings(str(REPO / "finetune.py"), [])).keys()
    for function in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)):
        arguments = {argument.arg for argument in function.args.args}
        stored = [node for node in ast.walk(function) if isinstance(getattr(node, "ctx", None), ast.Store)]
        assert not names & (arguments | {getattr(node, "id", "") for node in stored}), function.name
    with pytest.raises(dataclasses.FrozenInstanceError):
        read_settings(str(REPO / "finetune.py"), []).dtype = "float32"


def test_a_run_is_resumed_in_the_number_format_that_it_began_with(workspace, monkeypatch):
    words = [word for word in RUN if not word.startswith("--dtype")]
    auto = (torch.bfloat16, "fast")
    choose = lambda asked, device: auto if asked == "auto" else choose_dtype(asked, device)  # noqa: E731
    monkeypatch.setattr("classifier.device.choose_dtype", choose)
    succeed(*words, "--max_steps=1", cwd=workspace)
    auto = (torch.float32, "the CPU has no bfloat16")  # another machine
    printed = succeed(*words, "--max_steps=2", "--init_from=resume", cwd=workspace)
    assert "dtype: bfloat16 (as when the run began)" in printed
    assert "dtype was 'bfloat16' and is now 'float32'" in refuse(*RUN, "--init_from=resume", cwd=workspace)


# -----------------------------------------------------------------------------
# trained weights to start from


def test_training_goes_on_from_a_checkpoint_with_its_head_or_a_new_one(workspace):
    succeed(*RUN, "--max_steps=2", cwd=workspace)
    trained, _ = checkpoint.load(workspace / "out" / "best.pt")
    more = [*RUN, "--init_from=out/best.pt", "--max_steps=1", "--learning_rate=1e-12", "--weight_decay=0"]
    for name, options in {"same": [], "new": ["--new_head=True"], "short": ["--block_size=16"]}.items():
        printed = succeed(*more, f"--out_dir={name}", *options, cwd=workspace)
        assert "note: out/best.pt was trained on the texts of data/sample: if texts" in printed
        model, saved = checkpoint.load(workspace / name / "best.pt")
        for key, tensor in model.state_dict().items():
            theirs = trained.state_dict()[key][: len(tensor)]
            is_fresh = name == "new" and key.startswith("head.")
            assert torch.allclose(tensor, theirs, atol=1e-9) != is_fresh, (name, key)
    fresh, _ = checkpoint.load(workspace / "new" / "best.pt")
    assert 0.005 < fresh.head.weight.std() < 0.05 and fresh.head.bias.abs().max() < 1e-6
    message = refuse(*more, "--out_dir=x", "--block_size=33", cwd=workspace)
    assert "block_size 33 is more than out/best.pt's 32 positions: try --block_size=32" in message
    message = refuse(*more, "--init_from=none.pt", "--out_dir=x", cwd=workspace)
    assert "init_from: there is no checkpoint none.pt" in message
    # a task of other classes takes the trunk alone
    rows = "".join(f"{number}\tsentence {number}\t{number % 3}\n" for number in range(60))
    (workspace / "three.tsv").write_text("id\tsentence\tsentiment\n" + rows)
    succeed("prepare_own.py", "--train=three.tsv", "--name=three", cwd=workspace)
    assert "--new_head=True" in refuse(*more, "--data_dir=data/three", "--out_dir=x", cwd=workspace)
    assert not (workspace / "x").exists()
    succeed(*more, "--data_dir=data/three", "--out_dir=x", "--new_head=True", cwd=workspace)
    succeed("evaluate.py", "--ckpt=x/best.pt", cwd=workspace)
