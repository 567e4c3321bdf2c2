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
from pathlib import Path
from tempfile import TemporaryDirectory

from classifier import errors
from classifier.answers import models
from classifier.answers.models import Classifier
from classifier.answers.parts import answer_table
from classifier.data.dataset import Split, load_split
from classifier.data.own import choose_columns
from classifier.data.rows import ENDINGS, read_table
from classifier.errors import UserError

EXAMPLES, MISTAKES, MAX_ROWS = 5, 20, 10_000


def main() -> None:
    arguments = parse_arguments()
    from classifier.answers import page  # here: it needs Gradio, and --help does not

    classifiers, machine = models.load_all(arguments.ckpt)
    print(machine)
    dev = dev_split(classifiers, arguments.data_dir)
    examples = [models.example_text(dev, i) for i in range(min(EXAMPLES, len(dev)))] if dev else []
    mistakes = find_mistakes(classifiers, dev) if dev else []
    title = f"{classifiers[0].saved['data']['task']}: {' + '.join(arguments.ckpt)}"
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


def find_mistakes(classifiers: list[Classifier], dev: Split) -> list[tuple[str, str]]:
    """Find the most confident mistakes on the dev set; return a label for each, and its text."""
    logits, names = models.predict_all(classifiers, dev), classifiers[0].label_names
    probabilities, predictions = logits.softmax(-1).max(-1)
    found = []
    for i in models.most_confident_mistakes(logits, dev.labels)[:MISTAKES].tolist():
        text = models.example_text(dev, i)
        label = f"{names[dev.labels[i]]}, predicted {names[predictions[i]]} ({probabilities[i]:.3f}): {text}"
        found.append((label, text))
    return found


def answer_file(classifiers: list[Classifier], path: str | None) -> tuple[str | None, str]:
    """Classify the rows of an uploaded file; return the path of the result beside it, or None, and a message."""
    if path is None:
        return None, "Choose a file first."
    try:
        table = read_table(Path(path))
        if len(table.lines) > MAX_ROWS:
            raise UserError(f"{len(table.lines):,} rows; the page takes {MAX_ROWS:,}, evaluate.py --file any number")
        columns, reasons = choose_columns(table, {}, ["text"], (), classifiers[0].text_columns)
        name = table.path.name if table.path.suffix.lower() in ENDINGS else f"{table.path.stem}.csv"
        out = Path(path).with_name(f"answered-{name}")
        tally = answer_table(classifiers, table, columns["text"], out)
    except (UserError, OSError, ModuleNotFoundError) as error:
        return None, errors.printable(f"No answers: {error}")
    facts = [tally.said_rows(), reasons, *table.notes]
    return str(out), errors.printable("; ".join(facts))


if __name__ == "__main__":
    errors.run(main)
