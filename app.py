"""Show a checkpoint on a page: the classes of a text, and which words matter.

python app.py --ckpt out/best.pt
python app.py --ckpt out/seed-1/best.pt out/seed-2/best.pt   (an ensemble)

It listens on 127.0.0.1, so that only this machine can reach it. A second tab
lists the most confident mistakes on the dev set; a third one classifies the
rows of a file.
"""

import argparse
import os
import signal
import socket
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import shorten

from classifier import errors
from classifier.answers import models
from classifier.answers.models import Classifier
from classifier.answers.parts import answer_table
from classifier.data.dataset import Split, labels_of, load_split
from classifier.data.own import cells_of, choose_columns, class_numbers
from classifier.data.rows import ENDINGS, read_table
from classifier.errors import UserError
from classifier.training.predict import loss_and_accuracy

EXAMPLES, MISTAKES, MAX_ROWS = 5, 20, 10_000
SHOWN_ROWS, MOST_CLASSES = 10, 20  # of an answered file


def main() -> None:
    arguments = parse_arguments()
    from classifier.answers import page  # here: it needs Gradio, and --help does not

    classifiers, machine = models.load_all(arguments.ckpt)
    print(machine)
    dev = dev_split(classifiers, arguments.data_dir)
    examples = [models.example_text(dev, i) for i in range(min(EXAMPLES, len(dev)))] if dev else []
    accuracy, mistakes = find_mistakes(classifiers, dev) if dev else (None, [])
    names = " + ".join("/".join(Path(path).parts[-2:]) for path in arguments.ckpt)
    title = f"{classifiers[0].saved['data']['task']}: {names}"
    if accuracy is not None:
        title += f", dev accuracy {accuracy:.3f}"
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C: the uploads are removed
    with TemporaryDirectory(prefix="uploads-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        built = page.build(title, classifiers, examples, mistakes, partial(answer_file, classifiers))
        page.show(built, arguments.host, arguments.port)


def parse_arguments() -> argparse.Namespace:
    parser = errors.argument_parser(__doc__)
    add = parser.add_argument
    add("--ckpt", nargs="+", default=["out/best.pt"], metavar="FILE", help="as in evaluate.py (default: out/best.pt)")
    add("--data_dir", metavar="DIR", help="prepared folder of the dev set (default: the one of training)")
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 lets others in (default: %(default)s)")
    add("--port", type=int, default=7860, help="default: %(default)s")
    arguments = parser.parse_args()
    try:
        socket.create_server((arguments.host, arguments.port)).close()  # before a model is loaded
    except (OSError, OverflowError) as error:
        raise UserError(f"{error}: choose another --port or --host") from None
    return arguments


def dev_split(classifiers: list[Classifier], data_dir: str | None) -> Split | None:
    """Load the dev set; return None, with a note, where the folder of training is missing or has changed.

    Raises:
        UserError: data_dir is given and does not fit the models.
    """
    try:
        return load_split(models.prepared_folder(classifiers, data_dir, ["dev"]), "dev")
    except UserError as error:
        if data_dir is not None:
            raise
        errors.tell(f"note: a page without examples and mistakes: {error}")
        return None


def find_mistakes(classifiers: list[Classifier], dev: Split) -> tuple[float, list[tuple[str, str]]]:
    """Return the accuracy on the dev set, and its most confident mistakes: what a button says of each, and its text."""
    logits, labels, names = models.predict_all(classifiers, dev), labels_of(dev), classifiers[0].label_names
    probabilities, predictions = logits.softmax(-1).max(-1)
    found = []
    for i in models.most_confident_mistakes(logits, labels)[:MISTAKES].tolist():
        text = models.example_text(dev, i)
        label = f"{names[labels[i]]}, predicted {names[predictions[i]]} ({probabilities[i]:.3f}): {text}"
        found.append((label, text))
    return loss_and_accuracy(logits, labels)[1], found


def answer_file(classifiers: list[Classifier], path: str | None) -> tuple[str | None, str, list[list[str]]]:
    """Classify the rows of an uploaded file.

    Returns:
        The path of the file with predictions beside it, or None; a message; text, prediction and confidence of the
        first rows.
    """
    if path is None:
        return None, "Choose a file first.", []
    first, folder = classifiers[0], f"{Path(path).parent}{os.sep}"  # the server's own, which no message shows
    try:
        table = read_table(Path(path))
        if len(table.lines) > MAX_ROWS:
            raise UserError(f"{len(table.lines):,} rows; the page takes {MAX_ROWS:,}, evaluate.py --file any number")
        columns, reasons = choose_columns(table, {}, ["text"], ["label"], first.text_columns)
        name = table.path.name if table.path.suffix.lower() in ENDINGS else f"{table.path.stem}.csv"
        out = Path(path).with_name(f"answered-{name}")
        labels = cells_of(table, columns["label"]) if "label" in columns else [""] * len(table.lines)
        numbers = class_numbers(labels, first.label_names, first.file_labels)
        added, tally = answer_table(classifiers, table, columns["text"], out, numbers)
    except (UserError, OSError, ModuleNotFoundError) as error:
        return None, errors.printable(f"No answers: {error}".replace(folder, "")), []
    facts = [tally.said_rows(), reasons, *table.notes]
    counts = [f"{first.label_names[number]} {count:,}" for number, count in tally.predicted.most_common(MOST_CLASSES)]
    facts.append("predicted: " + ", ".join(counts))
    if tally.examples:
        fact = f"accuracy {tally.right / tally.examples:.3f} on {tally.examples:,} rows with a label"
        number, share = tally.most_frequent()
        facts.append(f"{fact} in {columns['label'][0]!r}; always {first.label_names[number]!r} {share:.3f}")
    elif any(label.strip() for label in labels):
        facts.append(f"no label in {columns['label'][0]!r} is one of the model's classes: is this the right model?")
    texts, predictions = cells_of(table, columns["text"]), [each or "" for each in added["prediction"]]
    confidences = ["" if each != each else f"{each:.3f}" for each in added["confidence"]]
    message = "\n".join(f"- {errors.printable(fact.replace(folder, ''))}" for fact in facts)
    rows = zip(texts, predictions, confidences, strict=True)
    return str(out), message, [[shorten(text, 200), *found] for text, *found in islice(rows, SHOWN_ROWS)]


if __name__ == "__main__":
    errors.run(main)
