"""Prepare your own texts and labels: data/NAME/*.bin and config/finetune_NAME.py.

python prepare_own.py --train my.csv --dev my_dev.csv --name mytask
python prepare_own.py --train my.csv --name mytask   # a tenth becomes dev

A file's name tells how it is read: .tsv, .csv (commas or semicolons), .jsonl,
each also as .gz, or .parquet. Labels are words, or the whole numbers from 0 on.
Run it again after a change of the files: data/NAME is made anew,
config/finetune_NAME.py is kept.
"""

import math
import re
import textwrap
from argparse import Namespace
from pathlib import Path

import numpy as np

from classifier import errors
from classifier.data.dataset import load_meta, load_split
from classifier.data.own import choose_dev, count_repeats, find_sources, number_labels, read_examples, read_labels
from classifier.data.prepare import prepare
from classifier.errors import UserError
from classifier.files import refuse_irregular, written_whole

LONGEST = 1024  # GPT-2's
TOKENS_AT_ONCE = 4096  # batch_size x block_size of the suggested settings


def main() -> None:
    options = read_options()
    folder, config = Path("data") / options.name, Path("config") / f"finetune_{options.name}.py"
    files = {"train": options.train, "dev": options.dev, "test": options.test}
    sources, columns = find_sources(files, options)
    print_filled(f"columns: {columns}")
    refuse_irregular(config)
    if not options.overwrite:
        refuse_to_replace(folder, options.name, sources["train"].path)

    # what is where: every sentence as a hash, every label as a number
    seen, sentences, labels = read_labels(sources["train"])
    names, numbers = number_labels(seen, options.labels, sources["train"])
    sources = {split: source._replace(numbers=numbers) for split, source in sources.items()}
    labels = np.array([numbers[label] if numbers else int(label) for label in seen], dtype=np.int16)[labels]
    examples = {"train": (sentences, labels)}
    if "dev" not in sources:
        in_dev = choose_dev(sentences, labels, names, options.dev_share, options.seed)
        examples = {"train": (sentences[~in_dev], labels[~in_dev]), "dev": (sentences[in_dev], labels[in_dev])}
        source = sources["train"]
        chosen = {"train": source._replace(chosen=~in_dev), "dev": source._replace(chosen=in_dev)}
        sources = chosen | {split: source for split, source in sources.items() if split != "train"}
    for split in sources.keys() - examples.keys():
        examples[split] = read_examples(sources[split], len(names), labelled=split == "dev")

    prepare(options.name, sources, names, LONGEST, folder)
    if numbers or options.labels:
        print_labels(names)
    print_repeats({split: examples[split] for split in sources})
    lengths = np.diff(load_split(folder, "train").offsets)
    block_size = suggest_block_size(lengths)
    print(f"block_size {block_size} cuts {(lengths > block_size).mean():.2%} of the training sentences")
    if config.exists() and not options.overwrite:
        print(f"kept {config}, which may hold your changes (--overwrite writes it anew)")
    else:
        config.parent.mkdir(exist_ok=True)
        with written_whole(config, "w") as f:
            f.write(config_text(options.name, len(names), lengths))
        print(f"wrote {config}")
    print(f"next: python finetune.py {config}")


def read_options() -> Namespace:
    """Return the command line's options, checked as far as they can be without reading a file."""
    parser = errors.argument_parser(__doc__)
    add = parser.add_argument
    add("--train", metavar="FILE", required=True, help="the file to train on")
    add("--dev", metavar="FILE", help="the one to evaluate on (default: a share of --train)")
    add("--test", metavar="FILE", help="one to predict; it need not have labels")
    add("--name", required=True, help="the task's name, of a-z, 0-9, _ and -")
    add("--text_column", metavar="COLUMN", help="the texts (default: found by name, as text, review)")
    add("--label_column", metavar="COLUMN", help="their labels (default: found by name, as label, class)")
    add("--id_column", metavar="COLUMN", help="their ids (default: id if there is one, else the row's number)")
    names = "the classes' names in the order of their numbers (default: the labels, in alphabetical order, or numbers)"
    add("--labels", metavar="LABEL", nargs="+", help=names)
    share = "without --dev, the share of the sentences that is set aside (default: 0.1)"
    add("--dev_share", metavar="SHARE", type=float, default=0.1, help=share)
    add("--seed", metavar="N", type=int, default=1337, help="another one sets others aside (default: 1337)")
    overwrite = "replace config/finetune_NAME.py, and a data/NAME that does not come from a file of --train's name"
    add("--overwrite", action="store_true", help=overwrite)
    options = parser.parse_args()
    if not re.fullmatch("[a-z0-9_][a-z0-9_-]{,63}", options.name):
        raise UserError(f"--name {options.name}: use a-z, 0-9, _ and - only, 64 at most, as in my-task")
    if Path(__file__).with_name(f"prepare_{options.name}.py").exists():
        raise UserError(f"--name {options.name}: taken by prepare_{options.name}.py; choose another name")
    if not 0 < options.dev_share <= 0.5:
        raise UserError(f"--dev_share must be above 0 and at most 0.5, not {options.dev_share}")
    if not 0 <= options.seed < 2**32:
        raise UserError(f"--seed must be a whole number from 0 to 2**32 - 1, not {options.seed}")
    options.labels = [label.strip() for label in options.labels or []]
    if options.labels and (len(options.labels) < 2 or len(set(options.labels)) < len(options.labels)):
        raise UserError(f"--labels must name at least two classes, each once, not {' '.join(options.labels)}")
    if not all(label and label.isprintable() for label in options.labels):
        raise UserError("--labels must be names without control characters")
    return options


def refuse_to_replace(folder: Path, name: str, train: Path) -> None:
    """Raise a UserError if the folder holds anything but what was prepared from a training file of that name."""
    if not (folder / "meta.json").exists() and not any(list(folder.glob(end)) for end in ("*.bin", "*.ids.txt")):
        return
    try:
        meta = load_meta(folder)
        ours = meta["task"] == name and meta["splits"]["train"]["source"]["name"] == train.name
    except (UserError, KeyError, TypeError):
        ours = False
    if not ours:
        raise UserError(
            f"{folder} holds something that was not prepared from a file {train.name}: "
            f"choose another --name, or replace it with --overwrite"
        )


# -----------------------------------------------------------------------------
# the report, and settings to begin with


def print_filled(line: str) -> None:
    print(textwrap.fill(errors.printable(line), 80, subsequent_indent="  "))


def print_labels(names: list[str]) -> None:
    shown = ", ".join(f"{number} {name}" for number, name in enumerate(names[:20]))
    more = f", ... ({len(names)} classes)" if len(names) > 20 else ""
    print_filled(f"labels: {shown}{more}")


def print_repeats(examples: dict[str, tuple[np.ndarray, np.ndarray | None]]) -> None:
    """Print what sentences stand in a split more than once, how many of them with differing labels, and in two splits.

    Args:
        examples: split -> (rows,) hashes of its sentences and (rows,) class numbers or None.
    """
    for split, (sentences, labels) in examples.items():
        repeated, conflicting = count_repeats(sentences, labels)
        differing = f", {conflicting:,} of them with differing labels" if repeated and labels is not None else ""
        print(f"{split}: {_sentences(repeated)} more than once{differing}")
    splits = list(examples)
    for i, one in enumerate(splits):
        for other in splits[i + 1 :]:
            shared = len(np.intersect1d(examples[one][0], examples[other][0]))
            print(f"{one} and {other}: {_sentences(shared)} in both")


def _sentences(count: int) -> str:
    return "1 sentence" if count == 1 else f"{count:,} sentences" if count else "no sentences"


def suggest_block_size(lengths: np.ndarray) -> int:
    """Return the smallest multiple of 32 that at least 99% of the lengths do not exceed, at most GPT-2's 1,024."""
    p99 = np.percentile(lengths, 99, method="inverted_cdf")
    return min(32 * math.ceil(p99 / 32), LONGEST)


def config_text(name: str, num_classes: int, lengths: np.ndarray) -> str:
    """Return a config file for the full fine-tuning of GPT-2 small on (examples,) texts of these lengths in tokens."""
    examples, block_size = len(lengths), suggest_block_size(lengths)
    step_size = 32 if examples <= 50_000 else 64 if examples <= 500_000 else 128
    batch_size = min(step_size, 1 << int(math.log2(TOKENS_AT_ONCE // block_size)))  # a power of two
    epochs = 10 if examples < 2_000 else 4 if examples <= 50_000 else 2
    steps_per_epoch = math.ceil(examples / step_size)
    steps = "step" if steps_per_epoch == 1 else "steps"
    return f"""\
# GPT-2 small on {name}, {num_classes} classes: {examples:,} examples, {steps_per_epoch:,} optimizer {steps} an epoch
# {(lengths > block_size).mean():.2%} of the texts are longer than block_size and keep their last tokens only
data_dir = "data/{name}"
out_dir = "out-{name}"
init_from = "gpt2"
# a small model that needs no weights:
# python finetune.py config/finetune_{name}.py --init_from=scratch --learning_rate=1e-3

block_size = {block_size}
batch_size = {batch_size}
gradient_accumulation_steps = {step_size // batch_size}

learning_rate = 3e-5
lr_schedule = "cosine"
warmup_steps = {round(0.06 * epochs * steps_per_epoch)}
epochs = {epochs}
"""


if __name__ == "__main__":
    errors.run(main)
