"""Prepare data of your own: TSV files -> data/NAME/*.bin, and config/finetune_NAME.py to train on it.

python prepare_own.py --train my.tsv --dev my_dev.tsv --name mytask
python prepare_own.py --train my.tsv --name mytask   # a tenth of the sentences become the dev split

The files are UTF-8 with tabs between the columns, a header line and CSV's quoting. Labels are words, or the whole
numbers from 0 on. Run it again after a change of the files: data/NAME is made anew, config/finetune_NAME.py is kept.
"""

import math
import re
import textwrap
from argparse import Namespace
from array import array
from hashlib import blake2b
from pathlib import Path

import numpy as np

from classifier import errors
from classifier.dataset import load_meta, load_split
from classifier.errors import UserError
from classifier.files import refuse_irregular, written_whole
from classifier.prepare import prepare
from classifier.tables import Source, as_source, read_texts, read_tsv

MAX_CLASSES = 1000  # more labels than these are surely another column
LONGEST = 1024  # GPT-2's
TOKENS_AT_ONCE = 4096  # batch_size x block_size of the suggested settings


def main() -> None:
    options = read_options()
    folder, config = Path("data") / options.name, Path("config") / f"finetune_{options.name}.py"
    files = {"train": options.train, "dev": options.dev, "test": options.test}
    columns = {"sentence": options.text_column, "label": options.label_column, "id": options.id_column}
    sources = {split: as_source(Source(Path(file), **columns)) for split, file in files.items() if file}
    refuse_irregular(config)
    if not options.overwrite:
        refuse_to_replace(folder, options.name, sources["train"].path)

    # what is where: every sentence as a hash, every label as a number
    seen, sentences, labels = read_labels(sources["train"])
    names, numbers = number_labels(seen, options.labels, sources["train"].path)
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
    add("--train", metavar="FILE", required=True, help="the TSV file to train on")
    add("--dev", metavar="FILE", help="the one to evaluate on (default: a share of --train)")
    add("--test", metavar="FILE", help="one to predict; it need not have labels")
    add("--name", required=True, help="the task's name, of a-z, 0-9, _ and -")
    add("--text_column", metavar="COLUMN", default="sentence", help="the texts (default: sentence)")
    add("--label_column", metavar="COLUMN", default="sentiment", help="their labels (default: sentiment)")
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
    columns = [options.text_column, options.label_column, options.id_column or "id"]
    if len(set(columns)) < 3:
        raise UserError(f"text, label and id must be three columns, not {', '.join(columns)}")
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
# one pass over a file: eight bytes a sentence and two a label, however many rows there are


def sentence_hash(sentence: str) -> int:
    """Return 64 bits that stand for a sentence, the spaces around it left out."""
    return int.from_bytes(blake2b(sentence.strip().encode(), digest_size=8).digest(), "little")


def read_labels(source: Source) -> tuple[dict[str, int], np.ndarray, np.ndarray]:
    """Read the training file.

    Returns:
        each label's first line; (rows,) uint64 hashes of the sentences; (rows,) int16 labels, numbered as they come.

    Raises:
        UserError: a broken row, an unusable label, or so many labels that it must be the wrong column.
    """
    lines, numbers, sentences, labels = {}, {}, array("Q"), array("h")
    for row in read_texts(source, labelled=True):
        label = row.label.strip()
        if label not in numbers:
            where = f"{source.path}, line {row.line}"
            if not label or not label.isprintable():
                raise UserError(f"{where}: the label {label!r} is {'no name' if label else 'empty'}")
            if len(numbers) == MAX_CLASSES:
                raise UserError(
                    f"{where}: more than {MAX_CLASSES:,} different labels up to here: "
                    f"is {source.label!r} the label's column?"
                )
            numbers[label], lines[label] = len(numbers), row.line
        sentences.append(sentence_hash(row.sentence))
        labels.append(numbers[label])
    return lines, np.array(sentences, dtype=np.uint64), np.array(labels, dtype=np.int16)


def read_examples(source: Source, num_classes: int, labelled: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """Return (rows,) uint64 hashes of a split's sentences and their (rows,) int16 class numbers, if it has labels."""
    sentences, labels = array("Q"), array("h")
    for row in read_tsv(source, num_classes, labelled):
        sentences.append(sentence_hash(row.sentence))
        if row.label is not None:
            labels.append(row.label)
    return np.array(sentences, dtype=np.uint64), np.array(labels, dtype=np.int16) if labels else None


def number_labels(seen: dict[str, int], wanted: list[str], path: Path) -> tuple[list[str], dict[str, int] | None]:
    """Return the classes' names in the order of their numbers, and label -> number, None if labels are the numbers.

    Args:
        seen: the training file's labels, each with its first line.
        wanted: --labels, or nothing.

    Raises:
        UserError: there are not two classes, a number is left out, or --labels does not fit.
    """
    labels = list(seen)
    if len(labels) < 2:
        raise UserError(f"{path}: {f'every label is {labels[0]!r}' if labels else 'no examples after the header line'}")
    are_numbers = all(label.isascii() and label.isdecimal() and len(label) <= 9 for label in labels)
    if not are_numbers or set(labels) <= set(wanted):
        names = wanted or sorted(labels)
        unknown = [label for label in labels if label not in names]
        if unknown:
            raise UserError(f"{path}, line {seen[unknown[0]]}: the label {unknown[0]!r} is none of --labels")
        unused = [name for name in wanted if name not in labels]
        if unused:
            raise UserError(f"--labels: no row of {path} has the label {unused[0]!r}")
        return names, {name: number for number, name in enumerate(names)}
    numbers = {int(label) for label in labels}  # fewer than labels where one is written both 1 and 01
    missing = [number for number in range(min(max(numbers), MAX_CLASSES)) if number not in numbers]
    if missing:
        raise UserError(
            f"{path}: the labels go up to {max(numbers)}, but none is {missing[0]}: number them 0, 1, 2, ..., "
            f"or name them all in their order, as in --labels {' '.join(map(str, sorted(numbers)[:3]))} ..."
        )
    if len(numbers) < 2:
        raise UserError(f"{path}: every label is {labels[0]!r}")
    if wanted and len(wanted) != len(numbers):
        raise UserError(f"--labels names {len(wanted)} classes, but {path} has {len(numbers)}")
    return wanted or [str(number) for number in sorted(numbers)], None


# -----------------------------------------------------------------------------
# dev out of train


def choose_dev(sentences: np.ndarray, labels: np.ndarray, names: list[str], share: float, seed: int) -> np.ndarray:
    """Choose the dev split's rows: in each class the same share of the sentences, a repeated one with all its rows.

    Args:
        sentences: (rows,) uint64 hashes.
        labels: (rows,) class numbers; the first of a repeated sentence's counts.

    Returns:
        (rows,) bool.

    Raises:
        UserError: a class has too few sentences to stand in both splits.
    """
    from sklearn.model_selection import train_test_split  # takes a second to import

    _, first, sentence_of_row = np.unique(sentences, return_index=True, return_inverse=True)
    classes = labels[first]
    counts = np.bincount(classes, minlength=len(names))
    if counts.min() < 2:
        raise UserError(
            f"the class {names[counts.argmin()]!r} has fewer than two different sentences, too few for train and dev: "
            f"add some, or give a dev file with --dev"
        )
    size = math.ceil(share * len(classes))
    if size < len(names):
        raise UserError(
            f"a share of {share} of {len(classes)} sentences is {size}, less than one for each of {len(names)} "
            f"classes: raise --dev_share, or give a dev file with --dev"
        )
    _, dev = train_test_split(np.arange(len(classes)), test_size=size, stratify=classes, random_state=seed)
    in_dev = np.zeros(len(classes), dtype=bool)
    in_dev[dev] = True
    left = np.bincount(classes[~in_dev], minlength=len(names))
    if left.min() == 0:
        raise UserError(f"no sentence of the class {names[left.argmin()]!r} is left to train on: lower --dev_share")
    return in_dev[sentence_of_row]


# -----------------------------------------------------------------------------
# the report, and settings to begin with


def print_labels(names: list[str]) -> None:
    shown = ", ".join(f"{number} {name}" for number, name in enumerate(names[:20]))
    more = f", ... ({len(names)} classes)" if len(names) > 20 else ""
    print(textwrap.fill("labels: " + errors.printable(shown + more), 80, subsequent_indent="  "))


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


def count_repeats(sentences: np.ndarray, labels: np.ndarray | None) -> tuple[int, int]:
    """Return how many sentences stand in more than one row, and how many of these have more than one label."""
    _, numbers, rows = np.unique(sentences, return_inverse=True, return_counts=True)
    if labels is None:
        return int((rows > 1).sum()), 0
    pairs = np.unique(numbers * MAX_CLASSES + labels)  # of sentence and label
    return int((rows > 1).sum()), int((np.bincount(pairs // MAX_CLASSES) > 1).sum())


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
