"""Time training against what a user would pick instead, in one table.

python bench/throughput.py --out bench/cpu     (bench/cpu.json, bench/cpu.md)
python bench/throughput.py --out bench/gpu --device cuda
python bench/throughput.py --out tiny --tasks sample --n_layer 2 --n_head 2 \\
    --n_embd 16 --examples 64 --rounds 1

All have the same model, data, dropout and batch. Timed is the forward and
backward pass over the examples of one optimizer step: the optimizer's own step,
the same for all, comes once in 2,048 or 512 examples and is left out. Weights
are random, which changes nothing for the time. Each contender runs in a process
of its own, and the rounds go through all of them in turn, so that a machine
whose speed drifts treats them alike. The peak that a speed is a share of is
measured beside it, in the same process and dtype.
"""

import argparse
import datetime
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from classifier import errors
from classifier.batches import Texts, collate, epoch_order
from classifier.budget import free_memory, measured_cost, token_budget_for
from classifier.dataset import Split, load_meta, load_split
from classifier.device import choose_dtype, compile_blocks, send, tune
from classifier.errors import UserError
from classifier.files import written_whole
from classifier.settings import read_settings
from finetune import accumulate_gradient
from model import GPT, GPTConfig

REPO = Path(__file__).resolve().parents[1]
TASKS = ("sst", "cfimdb", "sample")
CONTENDERS = {
    "ours": "this repository",
    "ours-compiled": "this repository, `compile=True`",
    "trainer": "`Trainer`, defaults (8 examples a micro-batch)",
    "trainer-best": "`Trainer`, length grouping, larger micro-batches",
    "trainer-best-compiled": "the same, `torch_compile=True`",
    "nanogpt": "nanoGPT-style loop: padded to block_size, all logits",
}
TRAINER_BEST_TOKENS = 2048  # of a micro-batch at block_size: 32 sentences of SST, 4 reviews of CFIMDB


def main() -> None:
    arguments = parse_arguments()
    if arguments.measure:
        print(json.dumps(measure(*arguments.measure, arguments)))
        return
    outputs = [arguments.out.with_suffix(suffix) for suffix in (".json", ".md")]
    for path in outputs:
        if path.exists() and not arguments.overwrite:
            raise UserError(f"{path} exists already: name another --out, or add --overwrite")
    rows = [
        {"task": task, "contender": contender, "runs": []}
        for task in arguments.tasks
        for contender in arguments.contenders
    ]
    for number in range(1, arguments.rounds + 1):
        for row in rows:
            words = [sys.executable, __file__, "--measure", row["task"], row["contender"], *sys.argv[1:]]
            done = subprocess.run(words, capture_output=True, text=True)
            if done.returncode:
                raise UserError(f"{row['contender']} on {row['task']} failed: {done.stderr.strip().splitlines()[-1]}")
            row["runs"].append(json.loads(done.stdout.splitlines()[-1]))
            speed = row["runs"][-1]["examples_per_second"]
            print(f"round {number}  {row['task']:<8}{row['contender']:<24}{speed:9.2f} examples/s", flush=True)
    record = {"date": f"{datetime.date.today()}", "machine": machine(arguments.device), "arguments": sys.argv[1:]}
    for path, text in zip(
        outputs, (json.dumps(record | {"rows": rows}, indent=1), markdown(record, rows)), strict=True
    ):
        with written_whole(path, "w") as f:
            f.write(text + "\n")
    print("\n" + markdown(record, rows))


def parse_arguments() -> argparse.Namespace:
    parser = errors.argument_parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="where the results go: OUT.json and OUT.md")
    parser.add_argument("--overwrite", action="store_true", help="let them replace files")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS[:2], help="default: sst cfimdb")
    parser.add_argument(
        "--contenders",
        nargs="+",
        metavar="NAME",
        choices=CONTENDERS,
        default=list(CONTENDERS),
        help=f"of {', '.join(CONTENDERS)} (default: all)",
    )
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each (default: %(default)s)")
    parser.add_argument("--examples", type=int, default=0, help="of a step (default: the task's effective batch)")
    parser.add_argument("--seconds", type=float, default=30, help="enough for loops whose micro-batches are all alike")
    parser.add_argument("--n_layer", type=int, default=12, help="default: %(default)s")
    parser.add_argument("--n_head", type=int, default=12, help="default: %(default)s")
    parser.add_argument("--n_embd", type=int, default=768, help="default: %(default)s")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)  # one contender, in a process of its own
    return parser.parse_args()


# -----------------------------------------------------------------------------
# one measurement


def measure(task: str, contender: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Return one contender's speed on one task, and what it took."""
    settings = read_settings(str(REPO / "finetune.py"), [str(REPO / "config" / f"finetune_{task}.py")])
    settings.examples = arguments.examples or settings.batch_size * settings.gradient_accumulation_steps
    settings.seconds, settings.device = arguments.seconds, torch.device(arguments.device)
    settings.shape = {"n_layer": arguments.n_layer, "n_head": arguments.n_head, "n_embd": arguments.n_embd}
    settings.num_classes = len(load_meta(settings.data_dir)["label_names"])
    split = load_split(settings.data_dir, "train")
    torch.manual_seed(0)
    run = {"ours": ours, "nanogpt": nanogpt}.get(contender.partition("-")[0], trainer)
    dtype, seconds, sizes = run(split, settings, best="best" in contender, compiled="compiled" in contender)
    examples, real, padded = (sum(column) for column in zip(*sizes, strict=True))
    weights = 12 * arguments.n_layer * arguments.n_embd**2  # of the blocks' matrices
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "examples": examples,
        "examples_per_second": examples / seconds,
        "real_tokens_per_second": real / seconds,
        "padding_share": 1 - real / padded,
        "peak_memory_gb": peak_memory(settings.device),
        "share_of_peak": 6 * weights * real / seconds / product_peak(settings.device, dtype),
    }


def synchronize(device: torch.device) -> float:
    """Wait for the device; return the time."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_memory(device: torch.device) -> float:
    """Return the most memory in use so far, in GB: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def product_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Return the fastest matrix product measured, in FLOP/s: sizes of GPT-2 small's own layers, and larger ones."""
    fastest = 0.0
    for m, k, n in ((4096, 768, 3072), (4096, 3072, 768), (8192, 8192, 8192)):
        if device.type == "cpu" and m > 4096:
            continue
        a, b = (torch.randn(shape, dtype=dtype, device=device) for shape in ((m, k), (k, n)))
        for _ in range(10):
            started = synchronize(device)
            a @ b
            fastest = max(fastest, 2 * m * k * n / (synchronize(device) - started))
    return fastest


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
    """Time finetune.py's own function on a whole step, after another one as a warm-up."""
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
        some = collate(texts, np.arange(min(len(split), 64)), token_budget)
        compile_blocks(model, lambda: accumulate_gradient(model, scaler, some, dtype))
    if device.type == "cuda":
        texts.micro_batch_cost = measured_cost(
            lambda step: accumulate_gradient(model, scaler, step, dtype), texts, token_budget
        )
    steps = [epoch_order(len(split), 0, epoch)[: settings.examples] for epoch in range(3)]
    step = collate(texts, steps[0], token_budget)
    for upcoming in steps[1:]:
        started = synchronize(device)
        accumulate_gradient(model, scaler, step, dtype)
        timed, step = step, collate(texts, upcoming, token_budget)  # while the device computes, as finetune.py does
        seconds = synchronize(device) - started
    chosen = texts.cut(timed.indices, token_budget)
    sizes = [len(inputs.tokens) for inputs, _ in timed.micro_batches]
    return dtype, seconds, [(len(m), int(texts.lengths[m].sum()), size) for m, size in zip(chosen, sizes, strict=True)]


def trainer(
    split: Split, settings: SimpleNamespace, best: bool, compiled: bool
) -> tuple[torch.dtype, float, list[tuple]]:
    """Time transformers' Trainer: as it comes, or at its best settings."""
    import tempfile

    import transformers

    device, block_size = settings.device, settings.block_size
    dtype = choose_dtype("auto", device)[0] if best else torch.float32
    size = max(1, TRAINER_BEST_TOKENS // block_size) if best else 8
    config = transformers.GPT2Config(**settings.shape, num_labels=settings.num_classes, pad_token_id=50256)
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = settings.dropout
    model = transformers.GPT2ForSequenceClassification(config)
    step = epoch_order(len(split), 0, 1)[: settings.examples]  # the same examples as ours
    rows = [{"input_ids": split.sequence(i, block_size).astype(np.int64), "labels": split.labels[i]} for i in step]
    sizes = []

    def pad_to_longest(rows: list[dict]) -> dict[str, Tensor]:
        lengths = [len(row["input_ids"]) for row in rows]
        sizes.append((len(rows), sum(lengths), len(rows) * max(lengths)))
        tokens = nn.utils.rnn.pad_sequence(
            [torch.from_numpy(row["input_ids"]) for row in rows], batch_first=True, padding_value=50256
        )
        mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        labels = torch.tensor([int(row["labels"]) for row in rows])
        return {"input_ids": tokens, "attention_mask": mask.long(), "labels": labels}

    class Clock(transformers.TrainerCallback):
        """Times a whole second step where micro-batches differ (length grouping), else as many as fit into the time."""

        def on_step_begin(self, args, state, control, **_) -> None:
            self.first, self.taken, self.started = len(sizes) - args.gradient_accumulation_steps, 0, synchronize(device)

        def on_substep_end(self, args, state, control, **_) -> None:
            self.taken += 1
            if not best and self.taken == 2:  # warm-up
                self.first, self.started = self.first + 2, synchronize(device)
            elif not best and self.taken > 2 and time.perf_counter() - self.started > settings.seconds:
                control.should_training_stop = True
                self.seconds, self.last = synchronize(device) - self.started, self.taken

        def on_pre_optimizer_step(self, args, state, control, **_) -> None:
            if not control.should_training_stop:
                self.seconds, self.last = synchronize(device) - self.started, self.taken + 1

    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        transformers.Trainer(
            model,
            transformers.TrainingArguments(
                folder,
                max_steps=2 if best else 1,
                per_device_train_batch_size=size,
                gradient_accumulation_steps=settings.examples // size,
                train_sampling_strategy="group_by_length" if best else "random",
                bf16=dtype == torch.bfloat16,
                fp16=dtype == torch.float16,
                torch_compile=compiled,
                use_cpu=device.type == "cpu",
                logging_strategy="no",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            pad_to_longest,
            rows,
            callbacks=[clock],
        ).train()
    skipped = 0 if best else 2
    measured = sizes[clock.first :][: clock.last - skipped]
    return dtype, clock.seconds, measured


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

    As nanoGPT itself does, it runs in float32 on a CPU, and compiled and in bfloat16 on a GPU.
    """
    device, T, shape = settings.device, settings.block_size, settings.shape
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
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

    loss_of = torch.compile(loss_of) if device.type == "cuda" else loss_of

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
    return dtype, seconds, sizes_of(split.lengths(T), micro_batches[:taken], width=T)


# -----------------------------------------------------------------------------
# the record


def machine(device: str) -> str:
    """Return what the figures were measured on."""
    import transformers

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    cpu = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    name = torch.cuda.get_device_name() if device == "cuda" else f"{cpu}, {torch.get_num_threads()} threads"
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}"
    return f"{name}; {versions}; {platform.system()}"


def markdown(record: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Return the table: medians over the rounds, and the lowest and highest speed."""

    def median(row: dict[str, Any], key: str) -> float:
        return statistics.median(run[key] for run in row["runs"])

    def figure(speed: float) -> str:
        return f"{speed:,.0f}" if speed >= 100 else f"{speed:.3g}"

    lines = [f"{record['machine']}; {record['date']}; `python bench/throughput.py {' '.join(record['arguments'])}`", ""]
    lines += [
        "| task | | examples/s | lowest–highest | tokens/s | padding | memory, GB | share of peak | ours is faster by |"
    ]
    lines += ["|---|---|---:|---:|---:|---:|---:|---:|---:|"]
    speeds = {(row["task"], row["contender"]): median(row, "examples_per_second") for row in rows}
    for row in rows:
        speed = median(row, "examples_per_second")
        all_speeds = [run["examples_per_second"] for run in row["runs"]]
        ours = max(speeds.get((row["task"], name), 0) for name in ("ours", "ours-compiled"))
        factor = f"{ours / speed:.1f} ×" if ours and not row["contender"].startswith("ours") else ""
        lines.append(
            f"| {row['task']} | {CONTENDERS[row['contender']]}, {row['runs'][0]['dtype']} | {figure(speed)} "
            f"| {figure(min(all_speeds))}–{figure(max(all_speeds))} | {median(row, 'real_tokens_per_second'):,.0f} "
            f"| {median(row, 'padding_share'):.1%} | {median(row, 'peak_memory_gb'):.1f} "
            f"| {median(row, 'share_of_peak'):.0%} | {factor} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    errors.run(main)
