"""Fine-tune GPT-2 into a text classifier on one GPU, or on a CPU.

python finetune.py config/finetune_sst.py
python finetune.py config/finetune_sst.py --batch_size=16 --gradient_accumulation_steps=128
python finetune.py config/finetune_sst.py --init_from=resume
"""

import sys

import errors
from configurator import load_settings

# -----------------------------------------------------------------------------
# settings: change them in a config file or with --key=value
# data and output
data_dir = "data/sst"  # a folder that a prepare script wrote
out_dir = "out"  # gets best.pt, last.pt and log.csv
overwrite = False  # replace another run's checkpoints in out_dir
# model
init_from = "gpt2"  # gpt2[-medium|-large|-xl], a directory, scratch, or resume (from out_dir/last.pt)
block_size = 64  # a longer sequence keeps its last block_size tokens
trainable_blocks = -1  # train the last so many blocks and the head; 0: the head only, -1: everything
dropout = 0.2  # on embeddings, attention probabilities and both residual branches
n_layer = 4  # blocks, for init_from=scratch
n_head = 4  # attention heads, for init_from=scratch
n_embd = 128  # width, for init_from=scratch
# optimization
epochs = 20  # passes over the training data
max_steps = 0  # end after so many optimizer steps, evaluate and save; 0: after the last epoch
batch_size = 64  # sequences of block_size tokens that fit into memory at once
gradient_accumulation_steps = 32  # a step averages over batch_size times so many examples, however cut
learning_rate = 5e-5  # AdamW's, after the warm-up
lr_schedule = "constant"  # constant, or cosine: decay to min_lr at the end of the last epoch
warmup_steps = 0  # steps in which the learning rate rises linearly from 0
min_lr = 0.0  # where the cosine ends
beta1 = 0.9  # AdamW's decay rate of the gradient's mean
beta2 = 0.95  # AdamW's decay rate of its square
weight_decay = 0.1  # on matrices and embeddings, not on biases and LayerNorms
grad_clip = 1.0  # largest gradient norm; 0: no clipping
# machine
seed = 1337  # of the new head, the order of the examples and every dropout mask
device = "auto"  # cuda, mps or cpu; auto takes the first that is there
dtype = "auto"  # of matrix products: float32, bfloat16 or float16; auto takes what the hardware is fast in
compile = False  # fuse each block's operators with torch.compile: for GPUs, slower on CPUs
activation_checkpointing = False  # compute activations twice and keep few of them: less memory, a third slower
# -----------------------------------------------------------------------------

POSITIVE = (lambda value: value > 0, "above 0")
NOT_NEGATIVE = (lambda value: value >= 0, "0 or more")
FRACTION = (lambda value: 0 <= value < 1, "at least 0 and below 1")
NAME = (lambda value: value != "" and value.isprintable(), "a name")


def one_of(*names: str) -> tuple:
    return (lambda value: value in names), "one of " + ", ".join(names)


RULES = {
    **dict.fromkeys(["data_dir", "out_dir", "init_from"], NAME),
    **dict.fromkeys(["block_size", "n_layer", "n_head", "n_embd", "epochs", "batch_size"], POSITIVE),
    **dict.fromkeys(["gradient_accumulation_steps", "learning_rate"], POSITIVE),
    **dict.fromkeys(["max_steps", "warmup_steps", "min_lr", "weight_decay", "grad_clip", "seed"], NOT_NEGATIVE),
    "trainable_blocks": (lambda value: value >= -1, "-1 or more"),
    **dict.fromkeys(["dropout", "beta1", "beta2"], FRACTION),
    "lr_schedule": one_of("constant", "cosine"),
    "device": one_of("auto", "cuda", "mps", "cpu"),
    "dtype": one_of("auto", "float32", "bfloat16", "float16"),
}

# before PyTorch is imported, which takes seconds, so that --help and a mistyped setting are answered at once
settings = errors.run(lambda: load_settings(__file__, sys.argv[1:], RULES)) if __name__ == "__main__" else None

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

import checkpoint
from dataset import Split, collate, cut_into_micro_batches, epoch_order, load_meta, load_split
from device import autocast, choose_device, choose_dtype, send, tune
from errors import UserError, is_out_of_memory
from evaluate import loss_and_accuracy, over_split, predict
from model import GPT, GPTConfig
from run_folder import refuse_to_replace_a_run, start_log, write_log
from tokenizer import VOCAB_SIZE

SECONDS_BETWEEN_LINES = 5  # of plain output, where there is no terminal for a progress bar
# what may differ when a run is resumed; anything else would make it another run
FREE_ON_RESUME = {"data_dir", "out_dir", "overwrite", "init_from", "epochs", "max_steps", "device"}
FREE_ON_RESUME |= {"activation_checkpointing"}


def main() -> None:
    out = Path(settings.out_dir)
    meta = load_meta(settings.data_dir)
    train, dev = (load_split(settings.data_dir, name) for name in ("train", "dev"))
    where, why_device = choose_device(settings.device)
    dtype, why_dtype = choose_dtype(settings.dtype, where)
    settings.dtype = str(dtype).removeprefix("torch.")
    tune(where)
    print(f"device: {where} ({why_device})\ndtype: {settings.dtype} ({why_dtype})")

    # model, optimizer and where the run stands
    torch.manual_seed(settings.seed)
    facts = data_facts(meta)
    saved = None
    if settings.init_from == "resume":
        model, saved = load_resumable(out / "last.pt", facts)
    else:
        if not settings.overwrite:
            refuse_to_replace_a_run(out)
        model = new_model(len(meta["label_names"]))
        out.mkdir(parents=True, exist_ok=True)
    if model.config.vocab_size < VOCAB_SIZE:
        raise UserError(
            f"{settings.init_from} has {model.config.vocab_size:,} tokens, fewer than GPT-2's {VOCAB_SIZE:,}"
        )
    if settings.trainable_blocks > model.config.n_layer:
        raise UserError(
            f"trainable_blocks={settings.trainable_blocks}, but the model has {model.config.n_layer} blocks"
        )
    if 0 <= settings.trainable_blocks < model.config.n_layer:
        model.train_last(settings.trainable_blocks)
    model.activation_checkpointing = settings.activation_checkpointing
    model.to(where)
    betas = (settings.beta1, settings.beta2)
    optimizer = torch.optim.AdamW(model.optimizer_groups(settings.weight_decay), betas=betas, fused=True)
    scaler = torch.amp.GradScaler(where.type, enabled=dtype == torch.float16)
    step, best, seconds_before = 0, {}, 0.0
    if saved:
        checkpoint.load_optimizer_state(optimizer, saved["optimizer"], out / "last.pt")
        scaler.load_state_dict(saved["scaler"])
        step, best, seconds_before = (saved["progress"][key] for key in ("step", "best", "seconds"))
        if not (out / "best.pt").is_file():
            print(f"note: {out / 'best.pt'} is gone; the best of what follows will take its place")
            best = {}
    parameters = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = f", {trained:,} of them trained" if trained < parameters else ""
    print(f"model: {parameters:,} parameters{frozen}, init_from {settings.init_from}")
    print(f"data: {settings.data_dir}, {len(train):,} train and {len(dev):,} dev examples")
    longer = (np.diff(train.offsets) > model.config.block_size).sum()
    if longer:
        print(f"note: {longer:,} train examples are longer than block_size and keep their last tokens only")

    step_size = settings.batch_size * settings.gradient_accumulation_steps  # examples a step
    steps_per_epoch = math.ceil(len(train) / step_size)  # the last may be smaller
    all_steps = settings.epochs * steps_per_epoch
    last_step = min(all_steps, settings.max_steps or all_steps)
    if step >= last_step:
        raise UserError(
            f"{out / 'last.pt'} is at step {step} of {last_step} already: raise epochs or max_steps to go on"
        )
    token_budget = settings.batch_size * settings.block_size  # of a micro-batch, padding included
    longest = int(train.lengths(model.config.block_size).max())
    if saved:  # what fitted into the memory before
        token_budget = max(longest, min(token_budget, saved["progress"]["token_budget"]))
    features = None
    if settings.trainable_blocks == 0:
        print("features: computed once, since only the head is trained (dropout has no part in it)", flush=True)
        features = {split.name: over_split(model.features, model, split, where, dtype) for split in (train, dev)}
    elif settings.compile:
        compile_blocks(model, train, token_budget, where, dtype)
    log = None
    first_step, first_started = step, time.monotonic()
    started = first_started - seconds_before
    line_due = 0.0  # when to print the next plain line

    def examples_until(step: int) -> int:
        return step // steps_per_epoch * len(train) + step % steps_per_epoch * step_size

    total, done = examples_until(last_step), examples_until(step)
    bar = tqdm(total=total, initial=done, unit="ex", disable=not sys.stderr.isatty(), dynamic_ncols=True)

    while step < last_step:
        step_started = time.monotonic()
        epoch, step_in_epoch = divmod(step, steps_per_epoch)
        bar.n = examples_until(step)  # a step may be taken a second time, see below
        indices = epoch_order(len(train), settings.seed, epoch)[step_in_epoch * step_size :][:step_size]
        bar.set_description(f"epoch {epoch + 1}/{settings.epochs}", refresh=False)
        # a step's dropout masks depend on seed and step alone, so that a resumed run draws the same ones
        torch.manual_seed(np.random.SeedSequence([settings.seed, step]).generate_state(1, np.uint64).item())
        for group in optimizer.param_groups:
            group["lr"] = rate = learning_rate_at(step, all_steps, settings)
        try:
            if features is None:
                mean_loss = accumulate_gradient(model, scaler, train, indices, token_budget, dtype, bar.update)
            else:
                mean_loss = accumulate_head_gradient(model, scaler, features["train"], train, indices)
            loss, norm = update(model, optimizer, scaler, mean_loss, settings.grad_clip)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            token_budget = halved(token_budget, longest)
            optimizer.zero_grad(set_to_none=False)
            continue  # with the same step
        step += 1

        now = time.monotonic()
        # not sooner: a run that fails before its first step has changed nothing
        log = log or start_log(out, step - 1)
        row = {"step": step, "epoch": step / steps_per_epoch, "seconds": now - started}
        speed = len(indices) / (now - step_started)
        write_log(log, **row, split="train", loss=loss, learning_rate=rate, grad_norm=norm, examples_per_second=speed)
        bar.set_postfix(loss=f"{loss:.3f}", lr=f"{rate:.0e}")
        if bar.disable and now > line_due:
            left = duration((now - first_started) / (step - first_step) * (last_step - step))
            print(
                f"step {step}/{last_step}: loss {loss:.4f}, lr {rate:.1e}, {speed:.1f} examples/s, {left} left",
                flush=True,
            )
            line_due = now + SECONDS_BETWEEN_LINES
        if step % steps_per_epoch and step < last_step:
            continue

        # after every epoch, and at the end: the whole dev set, and checkpoints
        logits = predict(model, dev, where, dtype) if features is None else classify(model, features["dev"])
        dev_loss, accuracy = loss_and_accuracy(logits, dev.labels)
        row["seconds"] = time.monotonic() - started
        speed = len(dev) / (time.monotonic() - now)
        write_log(log, **row, split="dev", loss=dev_loss, accuracy=accuracy, examples_per_second=speed)
        is_best = not best or (accuracy, -dev_loss) > (best["accuracy"], -best["loss"])
        if is_best:
            best = {"step": step, "epoch": row["epoch"], "accuracy": accuracy, "loss": dev_loss}
        mark = ", the best so far" if is_best else ""
        tqdm.write(f"epoch {row['epoch']:.4g}: dev accuracy {accuracy:.3f}, dev loss {dev_loss:.4f}{mark}")
        progress = {"step": step, "epoch": row["epoch"], "best": best, "seconds": row["seconds"]}
        progress["token_budget"] = token_budget
        parts = {"data": facts, "settings": vars(settings), "progress": progress}
        if is_best:
            checkpoint.save(out / "best.pt", model, **parts)
        state = {"optimizer": optimizer.state_dict(), "scaler": scaler.state_dict()}
        checkpoint.save(out / "last.pt", model, **parts, **state)
    bar.close()

    print(f"best: epoch {best['epoch']:.4g}, dev accuracy {best['accuracy']:.3f}, dev loss {best['loss']:.4f}")
    print(f"wall time {duration(time.monotonic() - started)}; {out}{os.sep} has best.pt, last.pt and log.csv")
    print(f"next: python evaluate.py --ckpt {out / 'best.pt'}")


def accumulate_gradient(
    model: GPT,
    scaler: torch.amp.GradScaler,
    split: Split,
    indices: np.ndarray,
    token_budget: int,
    dtype: torch.dtype,
    on_examples: Callable[[int], Any] = lambda count: None,
) -> Tensor:
    """Add the gradient of the mean loss over some examples, however many micro-batches it takes; return that loss.

    Args:
        indices: (n,) the step's examples, numbers into split.
        token_budget: tokens of a micro-batch, padding included.
        on_examples: called with the number of examples of each micro-batch that is done.
    """
    model.train()
    where, block_size = model.head.weight.device, model.config.block_size
    micro_batches = cut_into_micro_batches(indices, split.lengths(block_size), token_budget, model.micro_batch_cost())
    # everything is on its way to the device before the first micro-batch is computed
    inputs = [[send(array, where) for array in collate(split, chosen, block_size)] for chosen in micro_batches]
    targets = [send(split.labels[chosen].astype(np.int64), where) for chosen in micro_batches]
    total = torch.zeros((), device=where)
    with autocast(where, dtype):  # around all micro-batches, so that weights are cast once
        for (tokens, lengths), labels in zip(inputs, targets, strict=True):
            # a sum, divided by the whole step's count: micro-batches of any sizes add up to the same mean
            loss = F.cross_entropy(model(tokens, lengths), labels, reduction="sum") / len(indices)
            with torch.autocast(where.type, enabled=False):  # the backward pass keeps each operator's own dtype
                scaler.scale(loss).backward()
            total += loss.detach()
            on_examples(len(labels))
    return total


def accumulate_head_gradient(
    model: GPT, scaler: torch.amp.GradScaler, features: Tensor, split: Split, indices: np.ndarray
) -> Tensor:
    """Do the same for the head alone, on the whole split's features (examples, C)."""
    where = model.head.weight.device
    labels = send(split.labels[indices].astype(np.int64), where)
    loss = F.cross_entropy(model.classify(features[torch.from_numpy(indices)].to(where)), labels)
    scaler.scale(loss).backward()
    return loss.detach()


@torch.no_grad()
def classify(model: GPT, features: Tensor) -> Tensor:
    """Return the head's logits for a whole split's features, on the CPU."""
    return model.classify(features.to(model.head.weight.device)).cpu()


def update(
    model: GPT, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, loss: Tensor, grad_clip: float
) -> tuple[float, float]:
    """Clip the gradient, step, and zero it; return the loss and the gradient's norm before clipping.

    Raises:
        UserError: loss or gradient is not finite; the step was not taken. (In float16 the scaler skips it and goes on.)
    """
    scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip or math.inf)
    loss, norm = torch.stack([loss, norm]).tolist()  # the step's only wait for the device
    if not scaler.is_enabled() and not math.isfinite(loss + norm):
        raise UserError(
            f"the loss is {loss} and the gradient's norm {norm}, so the step was not taken: "
            f"try a lower learning_rate, warmup_steps, or dtype=float32"
        )
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=False)
    return loss, norm


def halved(token_budget: int, longest: int) -> int:
    """Return the token budget to go on with after memory ran out, and say so.

    Raises:
        UserError: a micro-batch of the longest sequence alone (longest: its tokens) did not fit.
    """
    if token_budget <= longest:
        raise UserError(
            "out of memory with one sequence in memory at a time: try --activation_checkpointing=True, "
            "a smaller block_size, --trainable_blocks=0 or a smaller model"
        )
    halved = max(token_budget // 2, longest)
    tqdm.write(f"out of memory: the step is taken again in micro-batches of {halved:,} tokens, not {token_budget:,}")
    return halved


def compile_blocks(model: GPT, split: Split, token_budget: int, where: torch.device, dtype: torch.dtype) -> None:
    """Compile the model's blocks, for sequences of any length and number, and print how long it took.

    Raises:
        UserError: PyTorch cannot compile on this machine.
    """
    started = time.monotonic()
    torch._dynamo.config.recompile_limit = 32  # first or last block, training or not, single sequences
    for block in model.h:
        block.compile(dynamic=True)
    examples = np.arange(min(len(split), 64))
    try:
        accumulate_gradient(model, torch.amp.GradScaler(enabled=False), split, examples, token_budget, dtype)
        model.zero_grad(set_to_none=False)
    except Exception as error:  # a missing compiler, an unsupported GPU: each with its own type
        if is_out_of_memory(error):
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"compile=True does not work on this machine ({reason}): leave it out") from None
    print(f"compile: {time.monotonic() - started:.0f} s")


def learning_rate_at(step: int, all_steps: int, settings: SimpleNamespace) -> float:
    """Return the rate of a step, counted from 0: a linear warm-up, then constant or half a cosine down to min_lr."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    if settings.lr_schedule == "constant":
        return settings.learning_rate
    done = (step - settings.warmup_steps) / max(1, all_steps - settings.warmup_steps)
    return settings.min_lr + (settings.learning_rate - settings.min_lr) * 0.5 * (1 + math.cos(math.pi * done))


def new_model(num_classes: int) -> GPT:
    """Return the model that init_from names, under a fresh head."""
    if settings.init_from != "scratch":
        return GPT.from_pretrained(settings.init_from, num_classes, settings.dropout, settings.block_size)
    return GPT(
        GPTConfig(
            num_classes=num_classes,
            block_size=settings.block_size,
            n_layer=settings.n_layer,
            n_head=settings.n_head,
            n_embd=settings.n_embd,
            dropout=settings.dropout,
        )
    )


def load_resumable(path: Path, facts: dict[str, Any]) -> tuple[GPT, dict[str, Any]]:
    """Return the model and the content of last.pt, having checked that this run is its continuation.

    Raises:
        UserError: there is nothing to resume from, or data or settings differ from what the run began with.
    """
    model, saved = checkpoint.load(path)
    if "optimizer" not in saved or "scaler" not in saved:
        raise UserError(f"{path} holds no optimizer state: it cannot be resumed from")
    if saved["data"]["files"] != facts["files"]:
        raise UserError(f"{path} was trained on other data than what {settings.data_dir} holds now")
    free = FREE_ON_RESUME - ({"epochs"} if settings.lr_schedule == "cosine" else set())
    changed = [
        f"{name} was {saved['settings'].get(name)!r} and is now {value!r}"
        for name, value in vars(settings).items()
        if name not in free and value != saved["settings"].get(name)
    ]
    if changed:
        raise UserError(f"cannot resume {path} with other settings: {'; '.join(changed)}")
    return model, saved


def data_facts(meta: dict[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint records of its data."""
    return {
        "task": meta["task"],
        "label_names": meta["label_names"],
        "folder": settings.data_dir,
        "leading_space": meta["splits"]["train"]["leading_space"],
        "files": {split: meta["splits"][split]["files"] for split in ("train", "dev")},
    }


def duration(seconds: float) -> str:
    """Return h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


if __name__ == "__main__":
    errors.run(main, after_interrupt=": where last.pt was written, --init_from=resume goes on from it")
