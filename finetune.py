"""Fine-tune GPT-2 into a text classifier, on one GPU, several, or a CPU.

python finetune.py config/finetune_sst.py
python finetune.py config/finetune_sst.py --learning_rate=3e-5 --epochs=10
python finetune.py config/finetune_sst.py --init_from=resume
torchrun --nproc_per_node=2 finetune.py config/finetune_sst.py   (two GPUs)
"""

from classifier import errors
from classifier.settings import read_settings

# -----------------------------------------------------------------------------
# settings: change them in a config file or with --key=value
# data and output
data_dir = "data/sst"  # a folder written by a prepare script
out_dir = "out"  # gets best.pt, last.pt, log.csv, run.json and curves.png
overwrite = False  # replace another run's checkpoints in out_dir
# model
init_from = "gpt2"  # a GPT-2 on the hub, a folder, a .pt file (also nanoGPT's), scratch, or resume (out_dir/last.pt)
new_head = False  # start with a random head even if init_from has one
block_size = 64  # tokens of a sequence; longer ones are truncated
keep = "last"  # which tokens of a longer sequence are read: the last, or the first ones
prompt = ""  # text at the end of every sequence, such as a question; it is never truncated
label_words: list[str] = []  # a single-token word per class (--label_words=bad,good): the head starts as these
trainable_blocks = -1  # train only the last so many blocks and the head; 0: the head alone, -1: everything
dropout = 0.2  # on embeddings, attention probabilities and both residual branches
n_layer = 4  # blocks, for init_from=scratch
n_head = 4  # attention heads, for init_from=scratch
n_embd = 128  # width, for init_from=scratch
# optimization
epochs = 20  # passes over the training data
max_steps = 0  # end after so many optimizer steps; 0: after the last epoch
batch_size = 64  # sequences of block_size tokens in memory at once, unless token_budget or a GPU decides
gradient_accumulation_steps = 32  # an optimizer step averages over batch_size times so many examples
token_budget = 0  # tokens in memory at once; 0: batch_size * block_size, or what fits into a GPU's free memory
learning_rate = 5e-5  # AdamW's, after the warm-up
lr_schedule = "constant"  # constant, or cosine: decay to min_lr at the end of the last epoch
warmup_steps = 0  # steps in which the learning rate rises linearly from 0
min_lr = 0.0  # the learning rate at the end of the cosine
beta1 = 0.9  # AdamW's decay rate of the gradient's mean
beta2 = 0.95  # AdamW's decay rate of its square
weight_decay = 0.1  # on matrices and embeddings, not on biases and LayerNorms
grad_clip = 1.0  # largest gradient norm; 0: no clipping
class_weights = "none"  # none, or balanced: rare classes count as much in the loss as frequent ones
eval_interval = 0  # steps between further evaluations within an epoch; 0: only at its end
best_by = "accuracy"  # how best.pt is chosen: accuracy, or macro_f1, in which rare classes count as much
patience = 0  # end after so many evaluations without a better one; 0: never
save_interval = 0  # steps between saves of last.pt; 0: about every minute
# reports
reference_accuracy = 0.0  # a dev accuracy to show as a line in curves.png; 0: none
tensorboard_log = False  # also log to TensorBoard, in out_dir/tensorboard (pip install tensorboard)
wandb_log = False  # also log to Weights & Biases (pip install wandb)
wandb_project = "finetune-gpt2"  # its project
wandb_run_name = ""  # its name for the run; empty: out_dir
# machine
seed = 1337  # of new weights, the order of the examples and the dropout masks
deterministic = False  # the same bits in every run on a GPU; slower (on a CPU they are always the same)
device = "auto"  # cuda, mps or cpu; auto uses the first that works
dtype = "auto"  # of matrix products: float32, bfloat16 or float16; auto uses what is fast on the hardware
compile = False  # use torch.compile: for GPUs, slower on CPUs
activation_checkpointing = False  # compute activations twice instead of keeping them: less memory, a third slower
# -----------------------------------------------------------------------------

if __name__ == "__main__":  # before PyTorch is imported, which takes seconds
    settings = errors.run(lambda: read_settings(__file__))
    globals().update(vars(settings))  # below, each of these names has this run's value

import math
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn import functional as F
from torch.optim import AdamW, Optimizer
from tqdm import tqdm

from classifier import checkpoint, distributed, files
from classifier.device import choose_device, choose_dtype, compile_blocks, refuse_other_masks, tune
from classifier.errors import UserError, is_out_of_memory, tell
from classifier.settings import ARE_LOCAL, MAY_CHANGE
from classifier.training import batches, predict, record, start, stop
from model import casting

SECONDS_BETWEEN_SAVES = 60  # of last.pt, with save_interval=0
SECONDS_BETWEEN_LINES = 5  # of progress, where no terminal shows a bar
MOST_SKIPPED_AT_START = 20  # steps without a finite gradient in float16, before the run gives up

# -----------------------------------------------------------------------------
# the mathematics


def learning_rate_at(step: int, all_steps: int) -> float:
    """Return the rate of a step, counted from 0: linear warm-up, then constant or half a cosine down to min_lr."""
    if step < warmup_steps:
        return learning_rate * (step + 1) / warmup_steps
    if lr_schedule == "constant":
        return learning_rate
    done = (step - warmup_steps) / max(1, all_steps - warmup_steps)
    return min_lr + (learning_rate - min_lr) * 0.5 * (1 + math.cos(math.pi * done))


def optimizer_groups(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Return AdamW's parameter groups: weight decay on matrices and embeddings, none on biases and LayerNorms."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


def seed_dropout(step: int) -> None:
    """Seed a step's dropout masks by seed, step and process, so that a resumed run draws the same ones."""
    entropy = [seed, step, distributed.rank()]
    torch.manual_seed(np.random.SeedSequence(entropy).generate_state(1, np.uint64).item())


def accumulate_gradient(
    net: nn.Module,
    scaler: GradScaler,
    batch: batches.Step,
    torch_dtype: torch.dtype,
    weight_of_class: np.ndarray | None = None,
    after_micro_batch: Callable[[int], None] = lambda examples: None,
) -> Tensor:
    """Add the gradient of a step's mean loss, over as many micro-batches as it was cut into; return that loss.

    Each of several processes computes its share; the gradients are summed in the last micro-batch. weight_of_class,
    float64 (K,), is what an example of each class counts in the mean. after_micro_batch gets its number of examples.
    """
    net.train()
    total_loss = torch.zeros((), device=batch.micro_batches[0][1].device)
    weights, total_weight = None, float(len(batch.labels))
    if weight_of_class is not None:
        weights = torch.tensor(weight_of_class, dtype=torch.float32, device=total_loss.device)
        total_weight = float(weight_of_class[batch.labels].sum())
    with casting(net, torch_dtype):
        for number, (inputs, labels) in enumerate(batch.micro_batches, start=1):
            with distributed.reducing(net, is_last=number == len(batch.micro_batches)):
                # sum, then divide by the step's total weight: the same mean for any cut into micro-batches
                loss = F.cross_entropy(net(inputs), labels, weights, reduction="sum") * (1 / total_weight)
                # DistributedDataParallel divides by the number of processes
                scaler.scale(loss * distributed.size()).backward()
            total_loss += loss.detach()
            after_micro_batch(len(labels))
    return total_loss


def update(
    model: nn.Module, optimizer: Optimizer, scaler: GradScaler, loss: Tensor, max_norm: float
) -> tuple[float, float]:
    """Clip the gradient, take the step, zero the gradient; return the loss and the gradient's norm before clipping.

    Raises:
        UserError: loss or gradient is not finite; the step was not taken. (In float16 the scaler skips such a step.)
    """
    scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm or math.inf)
    mean_loss, grad_norm = torch.stack([loss, norm]).tolist()  # the step's only wait for the device
    if not scaler.is_enabled() and not math.isfinite(mean_loss + grad_norm):
        how = "try a lower learning_rate, warmup_steps, or dtype=float32"
        raise UserError(
            f"the loss is {mean_loss} and the gradient's norm {grad_norm}, so the step was not taken: {how}"
        )
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=False)  # on a CPU sparse gradients are added to dense ones, which stay
    return mean_loss, grad_norm


def evaluate(net: nn.Module, dev_set: batches.Texts | batches.Features, torch_dtype: torch.dtype) -> dict[str, float]:
    """Measure loss, accuracy and, with best_by=macro_f1, macro-F1 on the whole dev set."""
    logits = predict.predict(net, dev_set, torch_dtype, lambda examples: stop.check())
    loss, accuracy = predict.loss_and_accuracy(logits, dev_set.labels)
    figures = {"loss": loss, "accuracy": accuracy}
    if best_by == "macro_f1":
        figures["macro_f1"] = predict.macro_f1(logits, dev_set.labels)
    return figures


def is_regular(step: int, steps_per_epoch: int) -> bool:
    """Return whether an evaluation is scheduled after this step: at every eval_interval and at an epoch's end."""
    return step % steps_per_epoch % (eval_interval or steps_per_epoch) == 0


def is_better(new: dict[str, Any], best: dict[str, Any], steps_per_epoch: int) -> bool:
    """Return whether an evaluation is better than the best so far ({}: none): by best_by, then by loss.

    One that is not scheduled, at an end by max_steps, counts only until there is another: so a resumed run ends like
    one that never stopped.
    """
    if not best or not is_regular(best["step"], steps_per_epoch):
        return True
    return is_regular(new["step"], steps_per_epoch) and (new[best_by], -new["loss"]) > (best[best_by], -best["loss"])


# -----------------------------------------------------------------------------
# a run


def train(stack: ExitStack) -> None:
    """Set up a run, new or resumed, and train, as one of several processes or the only one (stack: out_dir's lock)."""
    out, last_path, best_path = Path(out_dir), Path(out_dir, "last.pt"), Path(out_dir, "best.pt")
    is_first = distributed.rank() == 0  # only the first process writes
    is_resumed = init_from == "resume"

    # device, data, model
    torch_device, why_device = choose_device(device)
    print(f"device: {torch_device} ({why_device})", flush=True)
    refuse_other_masks(torch_device, activation_checkpointing, dropout)
    data, train_split, dev_split = start.load_data(settings)
    if is_resumed:
        if not last_path.is_file():
            raise UserError(f"there is no {last_path} to resume: leave out --init_from=resume to begin a run")
        held = stack.enter_context(files.hold(out)) if is_first else None
        model, saved = checkpoint.load_to_resume(last_path, settings, data["files"])
        start.freeze_all_but_last(model, trainable_blocks)
    else:
        if is_first and not overwrite:
            start.refuse_other_run(out)
        model, saved = start.new_model(settings, data["label_names"]), {}
        start.freeze_all_but_last(model, trainable_blocks)
        held = stack.enter_context(files.hold(out)) if is_first else None
    model.activation_checkpointing = activation_checkpointing
    model.to(torch_device)

    # number format: a resumed run keeps the one that it began with
    asked_dtype = saved["run"]["dtype"] if is_resumed and dtype == "auto" else dtype
    torch_dtype, why_dtype = choose_dtype(asked_dtype, torch_device)
    if asked_dtype != dtype:
        why_dtype = "as when the run began"
    dtype_name = str(torch_dtype).removeprefix("torch.")
    print(f"dtype: {dtype_name} ({why_dtype})")
    tune(torch_device, torch_dtype, deterministic)
    if compile:
        print("compile: the first steps wait for the compiler")
        compile_blocks(model)

    # tokens in memory at once, a micro-batch's size: the dropout masks depend on it, but not the gradient that they are
    # drawn for; it is halved when memory runs out
    micro_batch_tokens = token_budget or batch_size * block_size
    if torch_device.type == "cuda" and not token_budget and not deterministic:
        micro_batch_tokens = batches.token_budget_for(model, torch_dtype, batches.free_memory())
    if is_resumed and saved["settings"].get("token_budget", 0) == token_budget:
        micro_batch_tokens = saved["progress"]["token_budget"]  # what has fitted so far

    # the optimizer; and the state, which is all that changes in a run beside weights and optimizer
    optimizer = AdamW(optimizer_groups(model, weight_decay), betas=(beta1, beta2), fused=True)
    scaler = GradScaler(torch_device.type, init_scale=2**12, enabled=torch_dtype == torch.float16)
    state = SimpleNamespace(step=0, seconds=0.0, token_budget=micro_batch_tokens, skipped=0, best={})
    if is_resumed:
        checkpoint.load_training_state(optimizer, scaler, saved, last_path)
        state.step, state.seconds = saved["progress"]["step"], saved["progress"]["seconds"]
        state.skipped = saved["progress"].get("skipped", 0)
        state.best = checkpoint.best_evaluation(best_path, saved)
        facts = {name: fact for name, fact in saved["run"].items() if name != "best"}
        facts["settings"] |= {name: getattr(settings, name) for name in MAY_CHANGE - {"init_from", "new_head"}}
    else:
        facts = record.run_facts(settings, data, model, f"{torch_device} ({why_device})", dtype_name)
    facts["processes"] = distributed.size()
    del saved  # the model and the optimizer have its tensors, or copies on a GPU
    must_agree = {name: value for name, value in vars(settings).items() if name not in ARE_LOCAL}
    must_agree |= {"data": data["files"], "step of last.pt": state.step, "step of best.pt": state.best.get("step")}
    distributed.refuse_differences(must_agree)

    # what is trained: the model on texts, or the head alone on features that are computed once
    start.print_job(settings, data, model, train_split, dev_split)
    net: nn.Module = model
    train_set: batches.Texts | batches.Features
    dev_set: batches.Texts | batches.Features
    train_set, dev_set = (batches.Texts(split, model, is_compiled=compile) for split in (train_split, dev_split))
    if trainable_blocks == 0:
        print("features: computed once, since only the head is trained (without dropout)", flush=True)
        net = model.head
        train_set, dev_set = (predict.cached_features(model, texts, torch_dtype) for texts in (train_set, dev_set))
    weight_of_class = None
    if class_weights == "balanced":
        weight_of_class = batches.balanced_weights(train_set.labels, len(data["label_names"]))
    replica = distributed.parallel(net)

    # steps and examples
    step_size = batch_size * gradient_accumulation_steps  # examples; an epoch's last step may have fewer
    steps_per_epoch = math.ceil(len(train_set) / step_size)
    all_steps = epochs * steps_per_epoch
    last_step = min(all_steps, max_steps or all_steps)
    if not is_resumed:
        start.tell_what_teaches_little(settings, last_step)

    def examples_before(step: int) -> int:
        epoch, number = divmod(step, steps_per_epoch)
        return epoch * len(train_set) + number * step_size

    def batch_of(step: int) -> batches.Step:
        """Cut a step's part of its epoch's permutation into micro-batches, and send them to the device."""
        epoch, number = divmod(step, steps_per_epoch)
        indices = batches.epoch_order(len(train_set), seed, epoch)[number * step_size :][:step_size]
        return batches.collate(train_set, indices, state.token_budget)

    def save(path: Path) -> None:
        """Write a checkpoint; last.pt also gets what resuming needs."""
        if not is_first:
            return
        files.check_held(out, held)
        parts = {"data": data, "settings": dict(vars(settings)), "run": facts | {"best": state.best}}
        parts["progress"] = vars(state) | {"epoch": state.step / steps_per_epoch}
        if path == last_path:
            if log:
                record.to_disk(log)  # first: it must not have fewer steps than last.pt
            parts |= {"optimizer": optimizer.state_dict(), "scaler": scaler.state_dict()}
        checkpoint.save(path, model, **parts)

    def after_micro_batch(examples: int) -> None:
        bar.update(examples * distributed.size())
        stop.check()

    first_step = state.step
    if first_step > last_step:
        raise UserError(
            f"{last_path} is at step {first_step}, beyond the last step {last_step}: raise epochs or max_steps"
        )
    trackers = record.open_trackers(settings, facts) if is_first else []
    log = record.open_log(out, facts, first_step) if is_first and is_resumed else None
    if is_resumed and first_step == last_step:
        how = "raise epochs or max_steps to train longer"
        if lr_schedule == "cosine" and first_step == all_steps:
            how = "its cosine has ended, so begin a new run to train longer"
        tell(f"note: {last_path} is at step {first_step} of {last_step} already: {how}")
    batch = batch_of(first_step)
    is_shown, seen = is_first and sys.stderr.isatty(), examples_before(first_step)
    bar = tqdm(total=examples_before(last_step), initial=seen, unit="ex", dynamic_ncols=True, disable=not is_shown)
    evaluated, saved_step, saved_at, line_at = 0, first_step, time.monotonic(), 0.0
    started_at = saved_at - state.seconds
    with stop.listening(is_first):
        try:
            while True:
                stop.check()
                epoch, began_at = state.step / steps_per_epoch, time.monotonic()
                is_best, is_end = False, state.step >= last_step

                # evaluation: at every eval_interval, an epoch's end and the run's; repeated after a resume
                if state.step > evaluated and (is_end or is_regular(state.step, steps_per_epoch)):
                    figures = evaluate(net, dev_set, torch_dtype)
                    evaluated = state.step
                    now = time.monotonic()
                    state.seconds = now - started_at
                    evaluation = {"step": state.step, "epoch": epoch, **figures}
                    row = {"split": "dev", "examples_per_second": len(dev_set) / (now - began_at)}
                    record.write_row(log, trackers, evaluation | row | {"seconds": state.seconds})
                    is_best = is_better(evaluation, state.best, steps_per_epoch)
                    if is_best:
                        state.best = evaluation
                    tqdm.write(record.describe(evaluation) + (", the best so far" if is_best else ""))
                    since_best = range(state.best["step"] + 1, state.step + 1)
                    if patience and sum(is_regular(step, steps_per_epoch) for step in since_best) >= patience:
                        how = "a larger patience lets it continue when it is resumed"
                        tqdm.write(f"patience={patience}: no better evaluation for so long, so the run ends; {how}")
                        is_end = True

                # checkpoints: last.pt for every best, at the end, and now and then; then best.pt
                is_time = time.monotonic() - saved_at > SECONDS_BETWEEN_SAVES
                if save_interval:
                    is_time = state.step % save_interval == 0
                if is_best or (state.step > saved_step and (is_end or is_time)):
                    save(last_path)
                    saved_step, saved_at = state.step, time.monotonic()
                if is_best:  # a run that is killed before this line repeats the evaluation when it is resumed
                    save(best_path)
                    if is_first:
                        record.draw(out, state.best["step"], reference_accuracy)
                if is_end:
                    break

                # gradient: over all micro-batches of the step, or smaller ones if these do not fit into memory
                began_at = time.monotonic()
                rate = learning_rate_at(state.step, all_steps)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                seed_dropout(state.step)
                try:
                    loss = accumulate_gradient(replica, scaler, batch, torch_dtype, weight_of_class, after_micro_batch)
                except (MemoryError, RuntimeError) as error:
                    if not is_out_of_memory(error):
                        raise
                    loss = None
                if loss is None:  # outside of the except block, which keeps the activations alive
                    state.token_budget = batches.smaller_budget(state.token_budget, batch.longest)
                    optimizer.zero_grad(set_to_none=False)
                    batch = batch_of(state.step)
                    continue
                num_examples = len(batch.labels)
                batch = batch_of(state.step + 1)  # while the device computes

                # update
                loss = distributed.sum_over_processes(loss)
                mean_loss, grad_norm = update(model, optimizer, scaler, loss, grad_clip)
                state.step += 1
                if log is None and is_first:  # not earlier: a run that fails at once must leave the old files alone
                    files.check_held(out, held)
                    log = record.open_log(out, facts, first_step)
                if not math.isfinite(grad_norm):
                    state.skipped += 1
                    if state.skipped == state.step and state.step in (MOST_SKIPPED_AT_START, last_step):
                        raise UserError(f"no gradient of {state.step} steps was finite in float16: try dtype=float32")

                # log and progress: a bar, or without a terminal a line now and then
                now = time.monotonic()
                state.seconds, speed = now - started_at, num_examples / (now - began_at)
                row = {"step": state.step, "epoch": state.step / steps_per_epoch, "split": "train", "loss": mean_loss}
                row |= {"learning_rate": rate, "grad_norm": grad_norm, "examples_per_second": speed}
                record.write_row(log, trackers, row | {"seconds": state.seconds})
                bar.n = examples_before(state.step)
                bar.set_description(f"epoch {(state.step - 1) // steps_per_epoch + 1}/{epochs}", refresh=False)
                bar.set_postfix(loss=f"{mean_loss:.3f}")
                if not is_shown and now > line_at + SECONDS_BETWEEN_LINES:
                    line_at = now
                    left = timedelta(seconds=round(state.seconds / state.step * (last_step - state.step)))
                    line = f"step {state.step}/{last_step}: loss {mean_loss:.4f}, lr {rate:.1e}, {speed:.1f} examples/s"
                    print(f"{line}, {left} left", flush=True)

            # the end
            bar.close()
            if is_first:
                files.check_held(out, held)
                record.draw(out, state.best["step"], reference_accuracy)
                best_facts = state.best | {"sha256": files.file_sha256(best_path)}
                files.write_json(out / "run.json", facts | {"best": best_facts, "ended": record.now()})
            number, share = predict.most_frequent(dev_set.labels)
            always = repr(data["label_names"][number])
            by = " by macro-F1" if best_by == "macro_f1" else ""
            print(f"best{by}: {record.describe(state.best)}; always {always} {share:.3f}")
            if state.best["accuracy"] <= share:
                tell(f"note: no better than always answering {always}: train longer or with another learning_rate")
            if facts["settings"]["init_from"] == "scratch":
                tell("note: without GPT-2's weights the model knows little more than the words of its training data")
            if state.skipped:
                print(f"skipped: {state.skipped} of {state.step} steps, whose gradient was not finite in float16")
            print(f"wall time {timedelta(seconds=round(state.seconds))}; the results are in {out}{os.sep}")
            print(f"next: python evaluate.py --ckpt {best_path}", flush=True)
        except (stop.Stopped, UserError, OSError, RuntimeError) as error:
            if isinstance(error, OSError) and not stop.requested:
                time.sleep(0.1)  # a closed terminal's SIGHUP may come a moment after it cannot be written to
            with suppress(OSError):
                bar.close()
            is_lost = distributed.is_lost_peer(error)  # another process has ended
            is_bug = isinstance(error, RuntimeError) and not is_lost
            if is_bug or not is_first or not files.is_held(out, held):
                raise
            if log and (stop.requested or is_lost):
                save(last_path)
            how = record.how_to_resume(state.step, last_path, log)
            if not stop.requested and not is_lost:
                reason = errors.explain(error) if isinstance(error, OSError) else error
                raise UserError(f"{reason}; {how}") from None
            with suppress(OSError):  # of a closed terminal, which sends SIGHUP and cannot be written to
                print(how, file=sys.stderr)
            if is_lost:
                raise
            sys.exit(128 + stop.requested)
        finally:
            if log:
                with suppress(OSError):  # of a full disk, which was told
                    log.close()


def main() -> None:
    """Train, then release out_dir and leave the other processes."""
    with distributed.joined(device), ExitStack() as stack:
        train(stack)


if __name__ == "__main__":
    errors.run(main)
