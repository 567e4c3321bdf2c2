"""Fine-tune GPT-2 into a text classifier, on one GPU, several, or a CPU.

python finetune.py config/finetune_sst.py
python finetune.py config/finetune_sst.py --learning_rate=3e-5 --epochs=10
python finetune.py config/finetune_sst.py --init_from=resume
torchrun --nproc_per_node=2 finetune.py config/finetune_sst.py   (two GPUs)
"""

from collections.abc import Callable

from classifier import errors
from classifier.settings import read_settings
from classifier.training.seeds import run_seeds

# -----------------------------------------------------------------------------
# settings: change them in a config file or with --key=value
# data and output
data_dir = "data/sst"  # a folder that a prepare script wrote
out_dir = "out"  # gets best.pt, last.pt, log.csv, run.json and curves.png
overwrite = False  # replace another run's checkpoints in out_dir
# model
init_from = "gpt2"  # a GPT-2 of the hub, a directory, a .pt file (nanoGPT's, too), scratch, or resume (out_dir/last.pt)
new_head = False  # leave out the head that init_from may have, and start with a random one
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
token_budget = 0  # tokens in memory at once; 0: batch_size * block_size, on a GPU what its free memory holds
learning_rate = 5e-5  # AdamW's, after the warm-up
lr_schedule = "constant"  # constant, or cosine: decay to min_lr at the end of the last epoch
warmup_steps = 0  # steps in which the learning rate rises linearly from 0
min_lr = 0.0  # where the cosine ends
beta1 = 0.9  # AdamW's decay rate of the gradient's mean
beta2 = 0.95  # AdamW's decay rate of its square
weight_decay = 0.1  # on matrices and embeddings, not on biases and LayerNorms
grad_clip = 1.0  # largest gradient norm; 0: no clipping
class_weights = "none"  # none, or balanced: in the loss a rare class counts as much as a frequent one
eval_interval = 0  # steps between evaluations inside an epoch, beside that at its end; 0: none
best_by = "accuracy"  # which evaluation is the best: by accuracy, or by macro_f1, which rare classes count in as much
patience = 0  # end after so many evaluations without a better one; 0: never
save_interval = 0  # steps between saves of last.pt inside an epoch; 0: about every minute
# reports
reference_accuracy = 0.0  # a dev accuracy to compare with: a line in curves.png; 0: none
tensorboard_log = False  # write for TensorBoard, too, into out_dir/tensorboard (pip install tensorboard)
wandb_log = False  # send to Weights & Biases, too (pip install wandb)
wandb_project = "finetune-gpt2"  # its project
wandb_run_name = ""  # its name for the run; empty: out_dir
# machine
seed = 1337  # of the new head, the order of the examples and every dropout mask
seeds = []  # run the job once for each of these, as in --seeds=1,2,3, each in out_dir/seed-N
deterministic = False  # the same bits on every run on a GPU, too; slower (a CPU gives them anyway)
device = "auto"  # cuda, mps or cpu; auto takes the first that is there
dtype = "auto"  # of matrix products: float32, bfloat16 or float16; auto takes what the hardware is fast in
compile = False  # fuse each block's operators with torch.compile: for GPUs, slower on CPUs
activation_checkpointing = False  # compute activations twice and keep few of them: less memory, a third slower
# -----------------------------------------------------------------------------

if __name__ == "__main__":  # before PyTorch is imported, which takes seconds
    settings = errors.run(lambda: read_settings(__file__))
    if settings.seeds:
        errors.run(lambda: run_seeds(__file__, settings))
        raise SystemExit

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn import functional as F
from torch.optim import AdamW, Optimizer

from classifier import distributed
from classifier.data.dataset import Split
from classifier.device import choose_device, choose_dtype, compile_blocks, refuse_other_masks, tune
from classifier.errors import UserError
from classifier.training.batches import Features, Step, Texts, collate, epoch_order, free_memory, token_budget_for
from classifier.training.predict import predict
from classifier.training.progress import Progress
from classifier.training.run import Run
from classifier.training.start import describe, freeze_all_but_last, load_data, net_and_examples, new_model
from model import GPT, casting


def learning_rate_at(step: int, all_steps: int, settings: SimpleNamespace) -> float:
    """Return the rate of a step, counted from 0: a linear warm-up, then constant or half a cosine down to min_lr."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    if settings.lr_schedule == "constant":
        return settings.learning_rate
    done = (step - settings.warmup_steps) / max(1, all_steps - settings.warmup_steps)
    return settings.min_lr + (settings.learning_rate - settings.min_lr) * 0.5 * (1 + math.cos(math.pi * done))


def optimizer_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return AdamW's parameter groups: weight decay on matrices and embeddings, none on biases and LayerNorms."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


def step_after(taken: int, progress: Progress, examples: Texts | Features, seed: int) -> Step:
    """Cut and send the step that follows so many others: its part of the epoch's permutation."""
    epoch, number = divmod(taken, progress.steps_per_epoch)
    order = epoch_order(progress.examples, seed, epoch)
    return collate(examples, order[number * progress.step_size :][: progress.step_size], progress.token_budget)


def seed_dropout(seed: int, step: int) -> None:
    """Make a step's masks depend on seed, step and process alone, so that a resumed run draws the same ones."""
    entropy = [seed, step, distributed.rank()]
    torch.manual_seed(np.random.SeedSequence(entropy).generate_state(1, np.uint64).item())


def accumulate_gradient(
    net: nn.Module,
    scaler: GradScaler,
    step: Step,
    dtype: torch.dtype,
    on_examples: Callable[[int], Any] = lambda count: None,
) -> Tensor:
    """Add the gradient of the mean loss over a step's examples, however many micro-batches it takes; return that loss.

    Of several processes each computes and returns its share; the gradients' sum goes round with the last micro-batch.

    Args:
        net: a GPT for Texts or its head for Features, as distributed.parallel returns it.
        on_examples: called with the number of examples of each micro-batch that is done.
    """
    net.train()
    total = torch.zeros((), device=step.micro_batches[0][1].device)
    with casting(net, dtype):
        for number, (inputs, labels) in enumerate(step.micro_batches, start=1):
            with distributed.reducing(net, is_last=number == len(step.micro_batches)):
                # a sum, divided by the whole step's weight: micro-batches of any sizes add up to the same mean
                loss = F.cross_entropy(net(inputs), labels, step.class_weights, reduction="sum") * step.weight
                # DistributedDataParallel divides by the number of processes
                scaler.scale(loss * distributed.size()).backward()
            total += loss.detach()
            on_examples(len(labels))
    return total


def update(
    model: nn.Module, optimizer: Optimizer, scaler: GradScaler, loss: Tensor, grad_clip: float
) -> tuple[float, float]:
    """Clip the gradient, step, and zero it; return the loss and the gradient's norm before clipping.

    Raises:
        UserError: loss or gradient is not finite; the step was not taken. (In float16 the scaler skips it and goes on.)
    """
    scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip or math.inf)
    loss, norm = torch.stack([loss, norm]).tolist()  # the step's only wait for the device
    if not scaler.is_enabled() and not math.isfinite(loss + norm):
        how = "try a lower learning_rate, warmup_steps, or dtype=float32"
        raise UserError(f"the loss is {loss} and the gradient's norm {norm}, so the step was not taken: {how}")
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=False)
    return loss, norm


def step_and_evaluation(model: GPT, scaler: GradScaler, step: Step, dtype: torch.dtype) -> None:
    """Compute all that blocks are compiled for."""
    accumulate_gradient(model, scaler, step, dtype)
    model.eval()
    with torch.no_grad(), casting(model, dtype):
        model(step.micro_batches[0][0])


def main() -> None:
    """Set up all that a run needs, and train, as one of several processes or as the only one."""
    with distributed.joined(settings.device):
        data, splits = load_data(settings)
        device, device_reason = choose_device(settings.device)
        dtype, dtype_reason = choose_dtype(settings.dtype, device)
        settings.dtype = str(dtype).removeprefix("torch.")
        tune(device, dtype, settings.deterministic)
        refuse_other_masks(device, settings.activation_checkpointing, settings.dropout)
        print(f"device: {device} ({device_reason})\ndtype: {settings.dtype} ({dtype_reason})")

        # the run, its model and optimizer: new, or where last.pt left them
        run = Run(settings, data)
        model, progress = run.model or new_model(settings, data), run.progress
        freeze_all_but_last(model, settings.trainable_blocks)
        model.activation_checkpointing = settings.activation_checkpointing
        model.to(device)
        if device.type == "cuda" and not settings.token_budget and not settings.deterministic:
            progress.token_budget = token_budget_for(model, dtype, free_memory())
        groups = optimizer_groups(model, settings.weight_decay)
        optimizer = AdamW(groups, betas=(settings.beta1, settings.beta2), fused=True)
        scaler = GradScaler(device.type, init_scale=2**12, enabled=dtype == torch.float16)
        run.began(model, optimizer, scaler, f"{device} ({device_reason})")
        with run.underway():
            if not run.is_complete:
                describe(settings, model, *splits)
                train(run, model, optimizer, scaler, dtype, *splits)


def train(run: Run, model: GPT, optimizer: Optimizer, scaler: GradScaler, dtype: torch.dtype, *splits: Split) -> None:
    """Take steps and evaluate until the last step is taken, on a train and a dev split."""
    progress, (net, train_set, dev_set) = run.progress, net_and_examples(settings, model, splits, dtype)
    if settings.compile and net is model:
        some = collate(train_set, np.arange(min(len(train_set), 64)), progress.token_budget)
        compile_blocks(model, lambda: step_and_evaluation(model, scaler, some, dtype))
    replica = distributed.parallel(net)
    step = step_after(progress.step, progress, train_set, settings.seed)
    run.ready()
    while True:
        # after every epoch or eval_interval, and at the end: the whole dev set, and checkpoints
        if progress.evaluation_is_due:
            run.evaluated(predict(net, dev_set, dtype, run.stop_if_asked), dev_set.labels)
        if progress.is_done:
            break

        seed_dropout(settings.seed, progress.step)
        learning_rate = learning_rate_at(progress.step, progress.all_steps, settings)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        try:
            loss = accumulate_gradient(replica, scaler, step, dtype, run.computed)
        except (MemoryError, RuntimeError) as error:
            run.halve_micro_batches_after(error, int(train_set.lengths.max()))
            loss = None
        if loss is None:  # outside of the except block, which holds on to the activations
            optimizer.zero_grad(set_to_none=False)
            step = step_after(progress.step, progress, train_set, settings.seed)
            continue
        upcoming = step_after(progress.step + 1, progress, train_set, settings.seed)  # while the device computes
        loss, grad_norm = update(model, optimizer, scaler, distributed.total(loss), settings.grad_clip)
        run.stepped(loss, grad_norm, learning_rate)
        step = upcoming


if __name__ == "__main__":
    errors.run(main)
