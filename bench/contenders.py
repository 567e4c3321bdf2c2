"""What throughput.py times: one step of this repository, of transformers' Trainer, and of a loop like nanoGPT's.

Each returns the format of its matrix products, the seconds, and of each timed micro-batch (examples, real tokens,
tokens that were computed, padding included).
"""

import tempfile
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from classifier.data.dataset import Split
from classifier.device import choose_dtype, compile_blocks, send, tune
from classifier.training.batches import Texts, collate, epoch_order, free_memory, token_budget_for
from finetune import accumulate_gradient
from model import GPT, GPTConfig

TRAINER_BEST_TOKENS = 2048  # of a micro-batch at block_size: 32 sentences of SST, 4 reviews of CFIMDB


def can_compile(device: str) -> bool:
    """Return whether torch.compile works there: on a GPU Triton needs compute capability 7.0."""
    return device != "cuda" or torch.cuda.get_device_capability() >= (7, 0)


def whole_steps(device: torch.device) -> int:
    """Return how many steps are timed as one: a GPU takes a tenth of a second for one, too little to be timed."""
    return 10 if device.type == "cuda" else 1


def synchronize(device: torch.device) -> float:
    """Wait for the device; return the time."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def random_micro_batches(split: Split, settings: SimpleNamespace, size: int) -> list[np.ndarray]:
    """Return one step's examples in random order, `size` at a time."""
    return np.array_split(epoch_order(len(split), 0, 1)[: settings.examples], max(1, settings.examples // size))


def sizes_of(lengths: np.ndarray, micro_batches: list[np.ndarray], width: int = 0) -> list[tuple[int, int, int]]:
    """Return (examples, real tokens, tokens with padding) of each, padded to its longest sequence or to width."""
    return [(len(m), int(lengths[m].sum()), len(m) * int(width or lengths[m].max())) for m in micro_batches]


def timed(step: Callable[[Any], None], micro_batches: list, settings: SimpleNamespace) -> tuple[float, int]:
    """Take micro-batches that are all alike until the time is up; return the seconds and how many were taken."""
    for micro_batch in micro_batches[:1]:  # warm-up
        step(micro_batch)
    started = synchronize(settings.device)
    for taken, micro_batch in enumerate(micro_batches, start=1):  # noqa: B007, it is returned
        step(micro_batch)
        seconds = synchronize(settings.device) - started
        if seconds > settings.seconds:
            break
    return seconds, taken


def ours(split: Split, settings: SimpleNamespace, compiled: bool, **_: bool) -> tuple[torch.dtype, float, list[tuple]]:
    """Time finetune.py's own function on whole steps, after another one as a warm-up."""
    device, token_budget = settings.device, settings.batch_size * settings.block_size
    dtype, _ = choose_dtype("auto", device)
    tune(device, dtype)
    config = GPTConfig(settings.num_classes, settings.block_size, dropout=settings.dropout, **settings.shape)
    model = GPT(config).to(device)
    texts = Texts(split, model, is_compiled=compiled)
    scaler = torch.amp.GradScaler(device.type, enabled=False)
    if device.type == "cuda":
        token_budget = token_budget_for(model, dtype, free_memory())
    if compiled:
        compile_blocks(model)
    steps = [epoch_order(len(split), 0, epoch)[: settings.examples] for epoch in range(whole_steps(device) + 2)]
    step, taken = collate(texts, steps[0], token_budget), []
    for indices, upcoming in zip(steps, steps[1:], strict=False):
        if len(taken) == 1:  # the first was the warm-up
            started = synchronize(device)
        accumulate_gradient(model, scaler, step, dtype)
        taken.append((indices, step))
        step = collate(texts, upcoming, token_budget)  # while the device computes, as finetune.py does
    seconds, sizes = synchronize(device) - started, []
    for indices, step in taken[1:]:
        for chosen, (inputs, _) in zip(texts.cut(indices, token_budget), step.micro_batches, strict=True):
            sizes.append((len(chosen), int(texts.lengths(chosen).sum()), len(inputs.tokens)))
    return dtype, seconds, sizes


class Clock(transformers.TrainerCallback):
    """Times Trainer: whole steps after the first, since micro-batches grouped by length differ; or, where they are all
    alike, as many after the first two as fit into the time.
    """

    def __init__(self, sizes: list[tuple], settings: SimpleNamespace, whole: bool) -> None:
        self.sizes, self.settings, self.whole = sizes, settings, whole

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step < 2:
            self.first, self.taken, self.seconds = len(self.sizes) - args.gradient_accumulation_steps, 0, 0.0
        self.started = synchronize(self.settings.device)

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.taken += 1
        if not self.whole and self.taken == 2:  # warm-up
            self.first, self.started = self.first + 2, synchronize(self.settings.device)
        elif not self.whole and self.taken > 2 and time.perf_counter() - self.started > self.settings.seconds:
            control.should_training_stop = True
            self.seconds, self.last = synchronize(self.settings.device) - self.started, self.taken - 2

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.taken += 1
        if not control.should_training_stop:
            self.seconds += synchronize(self.settings.device) - self.started
            self.last = self.taken if self.whole else self.taken - 2

    def measured(self) -> list[tuple]:
        """Return the sizes of the micro-batches that were timed."""
        return self.sizes[self.first :][: self.last]


def trainer(
    split: Split, settings: SimpleNamespace, best: bool, compiled: bool
) -> tuple[torch.dtype, float, list[tuple]]:
    """Time transformers' Trainer: as it comes, or at its best settings."""
    device, block_size = settings.device, settings.block_size
    dtype = choose_dtype("auto", device)[0] if best else torch.float32
    size = max(1, TRAINER_BEST_TOKENS // block_size) if best else 8
    config = transformers.GPT2Config(**settings.shape, num_labels=settings.num_classes, pad_token_id=50256)
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = settings.dropout
    model = transformers.GPT2ForSequenceClassification(config)
    step = epoch_order(len(split), 0, 1)[: settings.examples]  # the same examples as ours
    rows = [{"input_ids": split.sequence(i, block_size).astype(np.int64), "labels": split.labels[i]} for i in step]
    sizes: list[tuple] = []

    def pad_to_longest(rows: list[dict]) -> dict[str, Tensor]:
        lengths = [len(row["input_ids"]) for row in rows]
        sizes.append((len(rows), sum(lengths), len(rows) * max(lengths)))
        tokens = nn.utils.rnn.pad_sequence(
            [torch.from_numpy(row["input_ids"]) for row in rows], batch_first=True, padding_value=50256
        )
        mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        labels = torch.tensor([int(row["labels"]) for row in rows])
        return {"input_ids": tokens, "attention_mask": mask.long(), "labels": labels}

    clock = Clock(sizes, settings, whole=best)
    is_recent = "train_sampling_strategy" in transformers.TrainingArguments.__dataclass_fields__  # transformers 5
    by_length = {"train_sampling_strategy": "group_by_length"} if is_recent else {"group_by_length": True}
    by_length = by_length if best else {}
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder,
            max_steps=1 + whole_steps(device) if best else 1,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=settings.examples // size,
            **by_length,
            bf16=dtype == torch.bfloat16,
            fp16=dtype == torch.float16,
            torch_compile=compiled,
            use_cpu=device.type == "cpu",
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        transformers.Trainer(model, arguments, pad_to_longest, rows, callbacks=[clock]).train()
    return dtype, clock.seconds, clock.measured()


class NanoBlock(nn.Module):
    """A transformer block as nanoGPT has it: torch's attention kernel, dropout and exact GELU."""

    def __init__(self, n_embd: int, n_head: int, dropout: float) -> None:
        super().__init__()
        self.n_head, self.dropout = n_head, dropout
        self.ln_1, self.ln_2 = nn.LayerNorm(n_embd), nn.LayerNorm(n_embd)
        self.c_attn, self.c_proj = nn.Linear(n_embd, 3 * n_embd), nn.Linear(n_embd, n_embd)
        self.mlp = nn.Sequential(nn.Linear(n_embd, 4 * n_embd), nn.GELU(), nn.Linear(4 * n_embd, n_embd))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.n_head, -1)).transpose(1, 2) for part in self.c_attn(self.ln_1(x)).chunk(3, -1)
        )
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout, is_causal=True)
        x = x + F.dropout(self.c_proj(y.transpose(1, 2).flatten(2)), self.dropout)
        return x + F.dropout(self.mlp(self.ln_2(x)), self.dropout)


def nanogpt(split: Split, settings: SimpleNamespace, **_: bool) -> tuple[torch.dtype, float, list[tuple]]:
    """Time a loop like nanoGPT's: every sentence padded to block_size, logits of the whole vocabulary at all positions.

    As nanoGPT itself does, it runs in float32 on a CPU, and on a GPU compiled and in 16 bits, where it can be.
    """
    device, T, shape = settings.device, settings.block_size, settings.shape
    dtype = choose_dtype("auto", device)[0] if device.type == "cuda" else torch.float32
    wte, wpe = nn.Embedding(50304, shape["n_embd"]), nn.Embedding(T, shape["n_embd"])
    blocks = [NanoBlock(shape["n_embd"], shape["n_head"], settings.dropout) for _ in range(shape["n_layer"])]
    trunk = nn.Sequential(*blocks, nn.LayerNorm(shape["n_embd"]))
    parts = nn.ModuleList([wte, wpe, trunk]).to(device)
    for parameter in parts.parameters():
        nn.init.normal_(parameter, std=0.02)

    def loss_of(tokens: Tensor, targets: Tensor) -> Tensor:
        x = F.dropout(wte(tokens) + wpe.weight, settings.dropout)
        logits = F.linear(trunk(x), wte.weight)  # (B, T, vocabulary)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)

    loss_of = torch.compile(loss_of) if device.type == "cuda" and can_compile("cuda") else loss_of

    def step(chosen: np.ndarray) -> None:
        tokens, targets = np.full((len(chosen), T), 50256), np.full((len(chosen), T), -1)
        for row, example in enumerate(chosen):
            sequence = split.sequence(example, T)
            tokens[row, : len(sequence)] = sequence
            targets[row, len(sequence) - 1] = split.labels[example]  # the class as the next token
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            loss = loss_of(send(tokens, device), send(targets, device))
        loss.backward()

    micro_batches = random_micro_batches(split, settings, settings.batch_size)
    seconds, taken = timed(step, micro_batches, settings)
    return dtype, seconds, sizes_of(split.lengths(np.arange(len(split)), T), micro_batches[:taken], width=T)
