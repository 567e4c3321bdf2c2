"""Make a prepared folder of any size, and measure what a run on it needs: seconds to start, and memory.

python bench/large.py /tmp/large --examples 50_000_000    (3 GB, in a minute)

The tokens are random, 30 to a text, and so are the two labels. The run is a tiny model's, for 3 steps; its memory is
RssAnon, which does not count mapped files, read from /proc: Linux only.
"""

import json
import subprocess
import sys
import time
from argparse import ArgumentParser
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

import numpy as np

from classifier.data.dataset import FORMAT_VERSION, TOKENIZER, meta_sha256
from classifier.files import file_sha256

TOKENS = 30  # of a text
RUN = ["--init_from=scratch", "--n_layer=1", "--n_head=1", "--n_embd=16", "--block_size=32", "--learning_rate=1e-3"]
RUN += ["--batch_size=64", "--gradient_accumulation_steps=1", "--max_steps=3", "--overwrite=True"]


def main() -> None:
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--examples", type=int, default=50_000_000)
    arguments = parser.parse_args()
    folder = arguments.folder / f"{arguments.examples}"
    if not (folder / "meta.json").is_file():
        write_folder(folder, {"train": arguments.examples, "dev": 1000})
    words = [REPO / "finetune.py", f"--data_dir={folder}", f"--out_dir={folder}/out", *RUN]
    began, started, most = time.monotonic(), 0.0, 0
    process = subprocess.Popen([sys.executable, "-u", *map(str, words)], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        print(line, end="")
        started = started or (line.startswith("step 1/") and time.monotonic() - began)
        status = Path(f"/proc/{process.pid}/status").read_text()
        most = max(most, *(int(row.split()[1]) for row in status.splitlines() if row.startswith("RssAnon")), 0)
    print(f"{arguments.examples:,} examples: first step after {started:.1f} s, RssAnon at most {most / 1e3:.0f} MB")


def write_folder(folder: Path, examples: dict[str, int]) -> None:
    """Write a prepared folder of random tokens, a million examples at a time."""
    folder.mkdir(parents=True)
    meta = {"format_version": FORMAT_VERSION, "task": "large", "label_names": ["no", "yes"], "tokenizer": TOKENIZER}
    meta["splits"], random = {}, np.random.default_rng(0)
    for split, count in examples.items():
        for begin in range(0, count, 1_000_000):
            numbers = np.arange(begin, min(begin + 1_000_000, count))
            offsets = np.append(numbers, numbers[-1] + 1) * TOKENS
            parts = {
                ".bin": random.integers(0, 50_257, len(numbers) * TOKENS, dtype=np.uint16),
                ".offsets.bin": offsets[begin > 0 :],
                ".labels.bin": random.integers(0, 2, len(numbers), dtype=np.int16),
                ".ids.txt": np.frombuffer("".join(f"{number}\n" for number in numbers).encode(), np.uint8),
            }
            for field, part in parts.items():
                with open(folder / f"{split}{field}", "ab") as file:
                    file.write(part.tobytes())
        names = [f"{split}{field}" for field in parts]
        meta["splits"][split] = {
            "examples": count,
            "leading_space": False,
            "source": {"name": "random"},
            "files": {name: file_sha256(folder / name) for name in names},
        }
    (folder / "meta.json").write_text(json.dumps(meta | {"sha256": meta_sha256(meta)}))


if __name__ == "__main__":
    main()
