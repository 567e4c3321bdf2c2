"""Fine-tune GPT-2 into a text classifier, on one GPU, several, or a CPU.

python finetune.py config/finetune_sst.py
python finetune.py config/finetune_sst.py --learning_rate=3e-5 --epochs=10
python finetune.py config/finetune_sst.py --init_from=resume
torchrun --nproc_per_node=2 finetune.py config/finetune_sst.py   (two GPUs)
"""

import os
import sys

import errors
from configurator import load_settings
from seeds import run_seeds

# -----------------------------------------------------------------------------
# settings: change them in a config file or with --key=value
# data and output
data_dir = "data/sst"  # a folder that a prepare script wrote
out_dir = "out"  # gets best.pt, last.pt, log.csv, run.json and curves.png
overwrite = False  # replace another run's checkpoints in out_dir
# model
init_from = "gpt2"  # gpt2[-medium|-large|-xl], a directory, scratch, or resume (from out_dir/last.pt)
block_size = 64  # a longer sequence keeps its last block_size tokens
prompt = ""  # text that ends every sequence, as a question; a long sentence is cut, the prompt never
label_words = []  # one single-token word a class, as ["bad", "good"]: the head starts as their embeddings
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
save_interval = 0  # steps between saves of last.pt inside an epoch; 0: about every ten minutes
# reports
reference_accuracy = 0.0  # a dev accuracy to compare with: a line in curves.png; 0: none
tensorboard_log = False  # write for TensorBoard, too, into out_dir/tensorboard (pip install tensorboard)
wandb_log = False  # send to Weights & Biases, too (pip install wandb)
wandb_project = "finetune-gpt2"  # its project
wandb_run_name = ""  # its name for the run; empty: out_dir
# machine
seed = 1337  # of the new head, the order of the examples and every dropout mask
seeds = []  # run the job once for each of these, as in "--seeds=[1,2,3]", each in out_dir/seed-N
deterministic = False  # the same bits on every run on a GPU, too; slower (a CPU gives them anyway)
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
    **dict.fromkeys(["data_dir", "out_dir", "init_from", "wandb_project"], NAME),
    **dict.fromkeys(["block_size", "n_layer", "n_head", "n_embd", "epochs", "batch_size"], POSITIVE),
    **dict.fromkeys(["gradient_accumulation_steps", "learning_rate"], POSITIVE),
    **dict.fromkeys(
        ["max_steps", "save_interval", "warmup_steps", "min_lr", "weight_decay", "grad_clip", "seed"], NOT_NEGATIVE
    ),
    "seeds": (
        lambda value: all(type(seed) is int and 0 <= seed < 2**53 for seed in value) and len(set(value)) == len(value),
        "a list of different whole numbers, 0 or more",
    ),
    "trainable_blocks": (lambda value: value >= -1, "-1 or more"),
    "label_words": (lambda value: all(type(word) is str and word for word in value), "a list of words"),
    **dict.fromkeys(["dropout", "beta1", "beta2", "reference_accuracy"], FRACTION),
    "lr_schedule": one_of("constant", "cosine"),
    "device": one_of("auto", "cuda", "mps", "cpu"),
    "dtype": one_of("auto", "float32", "bfloat16", "float16"),
}

# what may differ when a run is resumed; anything else would make it another run
FREE_ON_RESUME = {"data_dir", "out_dir", "overwrite", "init_from", "epochs", "max_steps", "device"}
FREE_ON_RESUME |= {"activation_checkpointing", "save_interval", "seeds", "reference_accuracy"}
FREE_ON_RESUME |= {"tensorboard_log", "wandb_log", "wandb_project", "wandb_run_name"}

# before PyTorch is imported, which takes seconds, so that --help and a mistyped setting are answered at once
settings = errors.run(lambda: load_settings(__file__, sys.argv[1:], RULES)) if __name__ == "__main__" else None
if settings:
    errors.quiet_interrupt()
    if settings.seeds and "TORCHELASTIC_RUN_ID" in os.environ:
        errors.fail("--seeds runs one job after the other, so not under torchrun: give each run its --seed")
    if settings.seeds:
        errors.run(lambda: run_seeds(__file__, settings, FREE_ON_RESUME))
        sys.exit()

import gc
import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import checkpoint
import distributed
from dataset import epoch_order, load_meta, load_split
from device import choose_device, choose_dtype, tune
from errors import UserError, is_out_of_memory
from predict import loss_and_accuracy, over_split, predict
from run_folder import now, run_facts, start_log, write_log, write_run
from start import begin_or_resume, data_facts, describe
from step import (
    accumulate_gradient,
    accumulate_head_gradient,
    classify,
    compile_blocks,
    halved,
    learning_rate_at,
    update,
)
from stopping import Stopped, ignore_signals, note_signals
from tokenizer import encode_prompt
from trackers import start_trackers

SECONDS_BETWEEN_LINES = 5  # of plain output, where there is no terminal for a progress bar
OF_ONE_MACHINE = {"data_dir", "out_dir", "init_from", "device"}  # what may differ between processes
SECONDS_BETWEEN_SAVES = 600  # where save_interval is 0


def main() -> None:
    """Train, as one of several processes or as the only one."""
    try:
        distributed.start(settings.device)
        train_and_evaluate()
    except RuntimeError as error:
        if not distributed.is_lost_peer(error):
            raise
        raise UserError("another process of this run has ended; its message says why") from None
    finally:
        distributed.stop()


def train_and_evaluate() -> None:
    out = Path(settings.out_dir)
    meta = load_meta(settings.data_dir)
    prompt = encode_prompt(settings.prompt, settings.block_size)
    train, dev = (replace(load_split(settings.data_dir, name), prompt=prompt) for name in ("train", "dev"))
    where, why_device = choose_device(settings.device)
    dtype, why_dtype = choose_dtype(settings.dtype, where)
    settings.dtype = str(dtype).removeprefix("torch.")
    tune(where, settings.deterministic)
    print(f"device: {where} ({why_device})\ndtype: {settings.dtype} ({why_dtype})")

    # model, optimizer and where the run stands
    facts = data_facts(settings.data_dir, meta)
    model, saved, lock = begin_or_resume(settings, out, facts, FREE_ON_RESUME)
    run = saved["run"] if saved else run_facts(vars(settings), facts, model, f"{where} ({why_device})")
    lengths = {"epochs": settings.epochs, "max_steps": settings.max_steps}  # a resumed run's may be others
    run["settings"] = run.get("settings", vars(settings)) | lengths
    run["processes"] = distributed.size()
    run.pop("ended", None)
    model.activation_checkpointing = settings.activation_checkpointing
    model.to(where)
    betas = (settings.beta1, settings.beta2)
    optimizer = torch.optim.AdamW(model.optimizer_groups(settings.weight_decay), betas=betas, fused=True)
    scaler = torch.amp.GradScaler(where.type, enabled=dtype == torch.float16)
    token_budget = settings.batch_size * settings.block_size  # of a micro-batch
    longest = int(train.lengths(model.config.block_size).max())
    progress = {"step": 0, "epoch": 0.0, "evaluated": 0, "seconds": 0.0, "skipped": 0, "best": {}}
    if saved:
        checkpoint.load_optimizer_state(optimizer, saved["optimizer"], out / "last.pt")
        scaler.load_state_dict(saved["scaler"])
        progress = saved["progress"]
        token_budget = max(longest, min(token_budget, progress["token_budget"]))  # what fitted into the memory before
        if progress["best"] and not (out / "best.pt").is_file():
            print(f"note: {out / 'best.pt'} is gone; the best of what follows will take its place")
            progress["best"] = {}
    common = {name: value for name, value in vars(settings).items() if name not in OF_ONE_MACHINE}
    distributed.refuse_differences(common | {"data": facts["files"], "step of last.pt": progress["step"]})
    describe(settings, model, train, dev)

    step_size = settings.batch_size * settings.gradient_accumulation_steps  # examples a step
    steps_per_epoch = math.ceil(len(train) / step_size)  # the last may be smaller
    all_steps = settings.epochs * steps_per_epoch
    last_step = min(all_steps, settings.max_steps or all_steps)
    step = progress["step"]
    if step >= last_step and not needs_evaluation(progress, steps_per_epoch):
        raise UserError(
            f"{out / 'last.pt'} is at step {step} of {last_step} already: raise epochs or max_steps to go on"
        )
    features = None
    if settings.trainable_blocks == 0:
        print("features: computed once, since only the head is trained (dropout has no part in it)", flush=True)
        features = {split.name: over_split(model.features, model, split, where, dtype) for split in (train, dev)}
    elif settings.compile:
        compile_blocks(model, train, token_budget, where, dtype)
    replica = model if features is not None else distributed.parallel(model)
    trackers = start_trackers(settings, run, out, step) if distributed.rank() == 0 else []

    def examples_until(step: int) -> int:
        return step // steps_per_epoch * len(train) + step % steps_per_epoch * step_size

    def save(name: str, **parts: dict[str, Any]) -> None:
        progress["seconds"], progress["token_budget"] = time.monotonic() - started, token_budget
        content = {"data": facts, "settings": vars(settings), "progress": progress, "run": run} | parts
        write(out / name, partial(checkpoint.save, model=model, **content), failed)

    def save_last() -> None:
        save("last.pt", optimizer=optimizer.state_dict(), scaler=scaler.state_dict())

    def record(**row: float | str) -> None:
        write(out / "log.csv", partial(write_log, **row), failed)
        for track in trackers:
            write(out / "trackers", lambda _, track=track: track(row), failed)

    def draw(path: Path) -> None:
        try:
            from plots import draw_curves  # here, since importing matplotlib takes a second

            draw_curves(path, out / "log.csv", settings.reference_accuracy)
            gc.collect()  # figures are cycles of megabytes, which else pile up
        except Exception as error:  # whatever it is: a picture must not end a training
            raise UserError(f"cannot draw {path}: {error}") from None

    def stop_if_asked() -> None:
        if number := signal_received():
            raise Stopped(number)

    def on_examples(count: int) -> None:
        bar.update(count * distributed.size())
        stop_if_asked()

    failed: dict[str, str] = {}  # what could not be written at the last attempt, and why
    first_step, first_started, saved_at = step, time.monotonic(), time.monotonic()
    started = first_started - progress["seconds"]
    line_due = 0.0  # when to print the next plain line
    total, done = examples_until(last_step), examples_until(step)
    is_hidden = distributed.rank() > 0 or not sys.stderr.isatty()
    bar = tqdm(total=total, initial=done, unit="ex", disable=is_hidden, dynamic_ncols=True)
    signal_received = note_signals() if distributed.rank() == 0 else ignore_signals()
    if saved and distributed.rank() == 0:
        start_log(out / "log.csv", step, progress["evaluated"])

    try:
        while True:
            # after every epoch, and at the end: the whole dev set, and checkpoints
            if needs_evaluation(progress, steps_per_epoch) or step >= last_step:
                evaluation_started = time.monotonic()
                if features is None:
                    logits = predict(model, dev, where, dtype, lambda count: stop_if_asked())
                else:
                    logits = classify(model, features["dev"])
                dev_loss, accuracy = loss_and_accuracy(logits, dev.labels)
                speed = len(dev) / (time.monotonic() - evaluation_started)
                row = {"step": step, "epoch": progress["epoch"], "loss": dev_loss, "accuracy": accuracy}
                seconds = time.monotonic() - started
                times = {"examples_per_second": speed, "seconds": seconds}
                record(split="dev", **row, **times)
                best, whole_epoch = progress["best"], step % steps_per_epoch == 0
                is_best = not best or whole_epoch and (accuracy, -dev_loss) > (best["accuracy"], -best["loss"])
                mark = ", the best so far" if is_best else ""
                tqdm.write(f"epoch {row['epoch']:.4g}: dev accuracy {accuracy:.3f}, dev loss {dev_loss:.4f}{mark}")
                if whole_epoch:
                    progress["evaluated"] = step
                    progress["best"] = row if is_best else best
                run["best"] = best = row if is_best else best
                if is_best:  # an end inside the first epoch leaves a best.pt, too, that a resumed run does not count
                    save("best.pt", progress=progress | {"best": row, "seconds": seconds, "token_budget": token_budget})
                save_last()
                write(out / "curves.png", draw, failed)
                saved_at = time.monotonic()
            if step >= last_step:
                break

            step_started = time.monotonic()
            epoch, step_in_epoch = divmod(step, steps_per_epoch)
            bar.n = examples_until(step)  # a step may be taken a second time, see below
            indices = epoch_order(len(train), settings.seed, epoch)[step_in_epoch * step_size :][:step_size]
            bar.set_description(f"epoch {epoch + 1}/{settings.epochs}", refresh=False)
            # a step's dropout masks depend on seed, step and process alone: a resumed run draws the same ones
            seeds = [settings.seed, step, distributed.rank()]
            torch.manual_seed(np.random.SeedSequence(seeds).generate_state(1, np.uint64).item())
            rate = learning_rate_at(step, all_steps, settings)
            for group in optimizer.param_groups:
                group["lr"] = rate
            try:
                if features is None:
                    mean_loss = accumulate_gradient(
                        model, scaler, train, indices, token_budget, dtype, on_examples, replica
                    )
                else:
                    mean_loss = accumulate_head_gradient(model, scaler, features["train"], train, indices)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                if distributed.size() > 1:
                    raise UserError("out of memory: halve batch_size and double gradient_accumulation_steps") from None
                token_budget = halved(token_budget, longest)
                optimizer.zero_grad(set_to_none=False)
                continue  # with the same step
            try:
                loss, norm = update(model, optimizer, scaler, mean_loss, settings.grad_clip)
            except UserError as error:
                ids = train.ids()
                raise UserError(
                    f"step {step + 1}, on examples {', '.join(ids[i] for i in indices[:3])}, ...: {error}"
                ) from None
            step += 1
            progress["step"], progress["epoch"] = step, step / steps_per_epoch
            progress["skipped"] += not math.isfinite(norm)  # by the scaler, in float16

            done_at = time.monotonic()
            if step == 1:  # not sooner: a run that fails before its first step has changed nothing
                write(out / "log.csv", partial(start_log, step=0, evaluated=0), failed)
                write(out / "run.json", partial(write_run, facts=run), failed)
            speed = len(indices) / (done_at - step_started)
            row = {"step": step, "epoch": progress["epoch"], "loss": loss, "learning_rate": rate, "grad_norm": norm}
            times = {"examples_per_second": speed, "seconds": done_at - started}
            record(split="train", **row, **times)
            bar.set_postfix(loss=f"{loss:.3f}")
            if bar.disable and done_at > line_due:
                left = duration((done_at - first_started) / (step - first_step) * (last_step - step))
                print(
                    f"step {step}/{last_step}: loss {loss:.4f}, lr {rate:.1e}, {speed:.1f} examples/s, {left} left",
                    flush=True,
                )
                line_due = done_at + SECONDS_BETWEEN_LINES
            due = (
                step % settings.save_interval == 0
                if settings.save_interval
                else done_at - saved_at > SECONDS_BETWEEN_SAVES
            )
            if due and step % steps_per_epoch:
                save_last()
                saved_at = time.monotonic()
            stop_if_asked()
    except (Stopped, RuntimeError) as reason:
        if not isinstance(reason, Stopped) and not distributed.is_lost_peer(reason):
            raise
        bar.close()
        optimizer.zero_grad(set_to_none=False)
        if step > 0:
            save_last()
        is_saved = step > 0 and "last.pt" not in failed
        resume = f": --init_from=resume goes on from {out / 'last.pt'}" if is_saved else ""
        if distributed.rank() == 0:
            print(f"stopped after {step} steps{resume}", file=sys.stderr)
        if not isinstance(reason, Stopped):
            raise
        sys.exit(128 + reason.args[0])
    bar.close()
    run["ended"] = now()
    write(out / "run.json", partial(write_run, facts=run), failed)
    if lock:
        lock.close()
    best = run["best"]
    print(f"best: epoch {best['epoch']:.4g}, dev accuracy {best['accuracy']:.3f}, dev loss {best['loss']:.4f}")
    if progress["skipped"]:
        print(f"skipped: {progress['skipped']} steps whose gradient was not finite in float16")
    print(f"wall time {duration(time.monotonic() - started)}; the results are in {out}{os.sep}")
    if failed:
        raise UserError("the run is done, but not all of it could be written: " + "; ".join(failed.values()))
    print(f"next: python evaluate.py --ckpt {out / 'best.pt'}")


def needs_evaluation(progress: dict[str, Any], steps_per_epoch: int) -> bool:
    """Return whether an epoch is done and not yet evaluated."""
    step = progress["step"]
    return step > progress["evaluated"] and step % steps_per_epoch == 0


def write(path: Path, action: Callable[[Path], None], failed: dict[str, str]) -> None:
    """Call action(path) in the first process. Where it fails, say so, note it in failed, let the training go on."""
    if distributed.rank() > 0:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        action(path)
        failed.pop(path.name, None)
    except (UserError, OSError) as error:
        if path.name not in failed:
            tqdm.write(f"warning: {error}; training goes on", file=sys.stderr)
        failed[path.name] = str(error)


def duration(seconds: float) -> str:
    """Return h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


if __name__ == "__main__":
    errors.run(main, after_interrupt=": where last.pt was written, --init_from=resume goes on from it")
