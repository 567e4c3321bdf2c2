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
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from bench.contenders import can_compile, nanogpt, ours, synchronize, trainer
from classifier import errors
from classifier.data.dataset import load_meta, load_split
from classifier.errors import UserError
from classifier.files import written_whole
from classifier.settings import read_settings

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


def main() -> None:
    arguments = parse_arguments()
    if arguments.measure:
        print(json.dumps(measure(*arguments.measure, arguments)))
        return
    outputs = [arguments.out.with_suffix(suffix) for suffix in (".json", ".md")]
    for path in outputs:
        if path.exists() and not arguments.overwrite:
            raise UserError(f"{path} exists already: name another --out, or add --overwrite")
    names = [name for name in arguments.contenders if "compiled" not in name or can_compile(arguments.device)]
    if left_out := set(arguments.contenders) - set(names):
        print(f"left out, since torch.compile does not work on this GPU: {', '.join(sorted(left_out))}")
    rows = [{"task": task, "contender": name, "runs": []} for task in arguments.tasks for name in names]
    for number in range(1, arguments.rounds + 1):
        for row in rows:
            words = [sys.executable, __file__, "--measure", row["task"], row["contender"], *sys.argv[1:]]
            done = subprocess.run(words, capture_output=True, text=True, env=os.environ | one_gpu())
            title = f"round {number}  {row['task']:<8}{row['contender']:<24}"
            if done.returncode:  # the others' figures count all the same
                print(f"{title} failed: {(done.stderr.strip() or 'killed').splitlines()[-1]}", flush=True)
                continue
            row["runs"].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{title}{row['runs'][-1]['examples_per_second']:9.2f} examples/s", flush=True)
    record = {"date": f"{datetime.date.today()}", "machine": machine(arguments.device), "arguments": sys.argv[1:]}
    for path, text in zip(
        outputs, (json.dumps(record | {"rows": rows}, indent=1), markdown(record, rows)), strict=True
    ):
        with written_whole(path, "w") as f:
            f.write(text + "\n")
    print("\n" + markdown(record, rows))
    if failed := [f"{row['contender']} on {row['task']}" for row in rows if len(row["runs"]) < arguments.rounds]:
        raise UserError(f"not measured, or not in each round: {', '.join(failed)}; above is why")


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


def one_gpu() -> dict[str, str]:
    """Return the environment of a measurement: where there are several GPUs, Trainer would take them all."""
    return {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]}


# -----------------------------------------------------------------------------
# one measurement


def measure(task: str, contender: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Return one contender's speed on one task, and what it took."""
    job = read_settings(str(REPO / "finetune.py"), [str(REPO / "config" / f"finetune_{task}.py")])
    settings = SimpleNamespace(**vars(job))
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


def peak_memory(device: torch.device) -> float:
    """Return the most memory in use so far, in GB: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    try:
        import resource
    except ImportError:  # on Windows
        import psutil  # which accelerate brings

        return psutil.Process().memory_info().peak_wset / 1e9
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
    rows = [row for row in rows if row["runs"]]
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
