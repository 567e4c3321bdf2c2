"""What the tests share: a small GPT-2 of transformers on disk, splits in memory, and the real commands in a folder."""

import contextlib
import gc
import io
import os
import runpy
import shutil
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from unittest import mock

# pytest-xdist runs several tests at a time: each gets its part of the cores, before PyTorch counts them. (The process
# that starts these workers sets nothing, since they would inherit it.)
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    WORKERS = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // WORKERS)))

import numpy as np
import pytest
import torch

from classifier import checkpoint
from classifier.data.dataset import Split
from classifier.data.tokenizer import load_tokenizer
from classifier.training import stop
from model import GPT, GPTConfig

REPO = Path(__file__).resolve().parents[1]
BLOCK_SIZE = 24  # of random_model
PREPARE_SAMPLE = ["prepare_own.py", "--train", "data/sample/train.tsv", "--dev", "data/sample/dev.tsv"]
PREPARE_SAMPLE += ["--labels", "negative", "positive", "--name", "sample"]
# a shell's background jobs ignore Ctrl-C, and so would the processes that a test interrupts
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks a network for anything


def pytest_collection_modifyitems(items):
    """Begin with the longest tests, so that the others run beside them."""
    items.sort(key=lambda item: "test_full_size" not in item.nodeid and "order_of_the_page" not in item.nodeid)


@pytest.fixture(scope="session")
def tsv_dir() -> Path:
    """The course's TSV files, where the machine has them."""
    if "TSV_DIR" not in os.environ:
        pytest.skip("needs the course's TSV files: set TSV_DIR to their folder")
    return Path(os.environ["TSV_DIR"])


def command(*words: object, cwd: Path, stdin: str | bytes = b"", **options) -> subprocess.CompletedProcess:
    """Run one of the repository's scripts as a person would, in a process of its own."""
    script, *arguments = map(str, words)
    return subprocess.run(
        [sys.executable, str(REPO / script), *arguments],
        cwd=cwd,
        input=stdin.encode() if isinstance(stdin, str) else stdin,
        capture_output=True,
        timeout=1800,
        **options,
    )


@contextlib.contextmanager
def _working_in(folder: Path):
    before = os.getcwd()
    os.chdir(folder)
    yield
    os.chdir(before)


def here(*words: object, cwd: Path, stdin: str | bytes = b"") -> subprocess.CompletedProcess:
    """Run a script in the test's own process, which has imported what takes seconds; undo what it changed."""
    script, *arguments = map(str, words)
    content = stdin.encode() if isinstance(stdin, str) else stdin
    streams = [io.TextIOWrapper(io.BytesIO(part), encoding="utf-8") for part in (content, b"", b"")]
    signals = {number: signal.getsignal(number) for number in stop.SIGNALS}
    status = 0
    with (
        _working_in(cwd),
        mock.patch.object(sys, "argv", [str(REPO / script), *arguments]),
        mock.patch.multiple(sys, stdin=streams[0], stdout=streams[1], stderr=streams[2]),
    ):
        try:
            runpy.run_path(str(REPO / script), run_name="__main__")
        except SystemExit as end:
            status = end.code or 0
        except Exception:
            traceback.print_exc()
            status = 1
    for number, handler in signals.items():
        signal.signal(number, handler)
    torch.use_deterministic_algorithms(False)
    gc.collect()  # what a script leaves to the end of its process: locks above all
    gc.freeze()  # the next one shall not search through all of PyTorch again
    output, errors = (stream.detach().getvalue() for stream in (streams[1], streams[2]) if not stream.flush())
    return subprocess.CompletedProcess(words, status, output, errors)


def succeed(*words: object, cwd: Path, run=here, **options) -> str:
    """Run a script that must succeed, by `here` or by `command`; return what it printed."""
    done = run(*words, cwd=cwd, **options)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def refuse(*words: object, cwd: Path, run=here, **options) -> str:
    """Run a script that must end with one message on stderr and exit status 1; return it on one line."""
    done = run(*words, cwd=cwd, **options)
    message = unwrapped(done.stderr.decode())
    assert done.returncode == 1, (done.returncode, message)
    assert message.count("\n") == 1 and message.startswith("error: "), message
    return message


def unwrapped(output: str) -> str:
    """Return notes and errors without the line ends at which they were wrapped."""
    return output.replace("\n  ", " ")


@pytest.fixture(scope="session")
def prepared_sample(tmp_path_factory) -> Path:
    """A folder in which the sample is prepared, and a config file that trains a tiny model on it, 7 steps an epoch."""
    folder = tmp_path_factory.mktemp("sample")
    (folder / "data").mkdir()
    shutil.copytree(REPO / "data" / "sample", folder / "data" / "sample", ignore=shutil.ignore_patterns("*.bin"))
    succeed(*PREPARE_SAMPLE, cwd=folder)
    (folder / "config" / "sample.py").write_text(
        'data_dir = "data/sample"\ninit_from = "scratch"\n'
        "gradient_accumulation_steps = 2\nepochs = 2\nlearning_rate = 1e-3\n"
    )
    return folder


def visible(folder: Path) -> dict[str, bytes]:
    """What a folder holds, but for the lock that a process leaves there."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


@pytest.fixture
def workspace(prepared_sample, tmp_path) -> Path:
    """A copy of the prepared sample that a test may spoil."""
    for name in ("data", "config"):
        shutil.copytree(prepared_sample / name, tmp_path / name)
    return tmp_path


def make_split(sequences: list[list[int]], labels: list[int] | None) -> Split:
    """A split in memory."""
    tokens = np.array([token for sequence in sequences for token in sequence], dtype=np.uint16)
    offsets = np.cumsum([0, *map(len, sequences)])
    labels = None if labels is None else np.array(labels, dtype=np.int16)
    return Split("train", tokens, offsets, labels, id_lines=np.zeros(0, np.uint8))


def decoded(split: Split) -> list[str]:
    """A split's texts."""
    encoding, bounds = load_tokenizer(), zip(split.offsets[:-1], split.offsets[1:], strict=True)
    return [encoding.decode(split.tokens[a:b].tolist()) for a, b in bounds]


def random_split(examples: int, longest: int, vocab_size: int, num_classes: int, seed: int = 0) -> Split:
    """A split in memory with random sequences of 1 to `longest` tokens."""
    random = np.random.default_rng(seed)
    sequences = [random.integers(vocab_size, size=random.integers(1, longest + 1)).tolist() for _ in range(examples)]
    return make_split(sequences, random.integers(num_classes, size=examples).tolist())


def tiny_model_and_split(n_layer: int = 2, dropout: float = 0.0) -> tuple[GPT, Split]:
    """A model of 24 positions and 97 tokens, and 60 examples for it, some of them longer."""
    torch.manual_seed(0)
    return GPT(GPTConfig(5, 24, 97, n_layer, 2, 16, dropout)), random_split(60, 40, 97, 5)


def transformers_model(kind: str, folder: Path | None = None, **config):
    """A model of transformers with every parameter random, biases and LayerNorms too; saved to folder if given."""
    import transformers

    sizes = {"vocab_size": 211, "n_positions": 40, "n_embd": 48, "n_layer": 3, "n_head": 4} | config
    dropout = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
    pad = sizes["vocab_size"] - 1
    torch.manual_seed(0)
    model = getattr(transformers, kind)(transformers.GPT2Config(**sizes, **dropout, pad_token_id=pad, num_labels=5))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    if folder is not None:
        model.save_pretrained(folder)
    return model.eval()


def padded_batch(lengths: list[int], vocab_size: int, pad: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random tokens, right-padded; their lengths; the attention mask for transformers."""
    lengths = torch.tensor(lengths)
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    tokens = torch.randint(vocab_size - 1, mask.shape, generator=torch.Generator().manual_seed(1))
    return tokens.masked_fill(~mask, pad), lengths, mask.long()


def random_model(num_classes: int = 5, n_embd: int = 32, block_size: int = BLOCK_SIZE) -> GPT:
    """A small model with GPT-2's vocabulary whose every parameter is random and whose classes vary with the text."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(num_classes, block_size, 50257, 2, 4, n_embd, 0.1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def save(path: Path, model: GPT, data: dict = {}, **parts: dict) -> Path:  # noqa: B006
    """A checkpoint of it."""
    names = [f"class {number}" for number in range(model.config.num_classes)]
    about = {"leading_space": True, "examples": {"train": 9, "dev": 8}}
    data = {"task": "films", "label_names": names, "folder": "", "files": {}} | about | data
    best = {"step": 8, "epoch": 2.0, "accuracy": 0.75, "loss": 0.5}
    progress = {"step": 8, "epoch": 2.0, "seconds": 1.0, "token_budget": 9, "skipped": 0, "best": best}
    parts = {"progress": progress} | parts
    parts["run"] = {"settings": {}, "started": "2026", "seed": 1} | parts.get("run", {})
    parts["settings"] = {"init_from": "gpt2", "prompt": ""} | parts.get("settings", {})
    checkpoint.save(path, model, data=data, **parts)
    return path


@pytest.fixture
def run_cell_of():
    """A function that starts a notebook's kernel in a folder; it returns one that executes code in it."""
    manager = pytest.importorskip("jupyter_client.manager")
    pytest.importorskip("ipykernel")
    started = []

    def run_cell_of(folder: Path):
        kernel, client = manager.start_new_kernel(kernel_name="python3", startup_timeout=120, cwd=str(folder))
        started.append((kernel, client))

        def run_cell(code: str, interrupt_at: str = "", allow_error: bool = False) -> str:
            """Execute code, interrupted when it has printed some text; return what it printed, errors included."""
            printed = []

            def show(message: dict) -> None:
                printed.append(message["content"].get("text", ""))
                if interrupt_at and interrupt_at in printed[-1]:
                    kernel.interrupt_kernel()

            reply = client.execute_interactive(code, timeout=120, output_hook=show)
            assert allow_error or reply["content"]["status"] == "ok", reply["content"]
            return "".join(printed)

        return run_cell

    yield run_cell_of
    for kernel, client in started:
        client.stop_channels()
        kernel.shutdown_kernel(now=True)
        assert not kernel.is_alive()
