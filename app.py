"""Show a checkpoint's answers on a page: for a text its classes, and why.

python app.py --ckpt out/best.pt
python app.py --ckpt out/seed-1/best.pt out/seed-2/best.pt   (an ensemble)

It listens on 127.0.0.1, this machine alone. A second tab has the mistakes on
the dev set that the model was surest of, a third answers a file of texts.
export_hf.py --space writes a folder that carries such a page by itself.
"""

import argparse
import socket
from functools import partial
from pathlib import Path
from tempfile import mkdtemp

from classifier import errors
from classifier.answers import models as answers
from classifier.answers.report import answer_table
from classifier.data.dataset import Split, load_split
from classifier.data.own import choose_columns
from classifier.data.rows import ENDINGS, read_table
from classifier.errors import UserError

EXAMPLES, MISTAKES, MOST_ROWS = 5, 20, 10_000


def main() -> None:
    arguments = parse_arguments()
    from classifier.answers import page  # here: it needs Gradio, and to say what options there are does not

    models, machine = answers.load_all(arguments.ckpt)
    print(machine)
    dev = dev_split(models, arguments.data_dir)
    examples = [answers.text_of(dev, i) for i in range(min(EXAMPLES, len(dev)))] if dev else []
    mistakes = find_mistakes(models, dev) if dev else []
    title = f"{models[0].saved['data']['task']}: {' + '.join(arguments.ckpt)}"
    asked = partial(answers.log_probabilities, models), examples, mistakes, partial(answer_file, models)
    built = page.build(title, models[0].label_names, *asked)
    page.show(built, server_name=arguments.host, server_port=arguments.port)


def parse_arguments() -> argparse.Namespace:
    parser = errors.argument_parser(__doc__)
    add = parser.add_argument
    add("--ckpt", nargs="+", default=["out/best.pt"], metavar="FILE", help="as in evaluate.py (default: out/best.pt)")
    add("--data_dir", metavar="DIR", help="prepared folder of the dev set (default: the one it was trained on)")
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 lets others in (default: %(default)s)")
    add("--port", type=int, default=7860, help="default: %(default)s")
    arguments = parser.parse_args()
    try:
        socket.create_server((arguments.host, arguments.port)).close()  # before a model is loaded
    except (OSError, OverflowError) as error:
        raise UserError(f"{error}: name another --port or --host") from None
    return arguments


def dev_split(models: list[answers.Loaded], data_dir: str | None) -> Split | None:
    """Return the dev set; None, with a note, where the folder that the models were trained on does not have it now.

    Raises:
        UserError: data_dir, the folder that was asked for, does not fit the models.
    """
    try:
        return load_split(answers.prepared_folder(models, data_dir, ["dev"]), "dev")
    except UserError as error:
        if data_dir is not None:
            raise
        print(f"note: a page without examples and mistakes: {error}")
        return None


def find_mistakes(models: list[answers.Loaded], dev: Split) -> list[tuple[str, str]]:
    """Return the mistakes on the dev set that the models were surest of: what is to be said of each, and its text."""
    logits, names = answers.predict_all(models, dev), models[0].label_names
    probabilities, predictions = logits.softmax(-1).max(-1)
    found = []
    for i in answers.surest_mistakes(logits, dev.labels)[:MISTAKES].tolist():
        text = answers.text_of(dev, i)
        said = f"{names[dev.labels[i]]}, taken for {names[predictions[i]]} ({probabilities[i]:.3f}): {text}"
        found.append((said, text))
    return found


def answer_file(models: list[answers.Loaded], path: str | None) -> tuple[str | None, str]:
    """Return the path of an uploaded file's answers, None where there are none, and what is to be said of them."""
    if path is None:
        return None, "Choose a file first."
    try:
        table = read_table(Path(path))
        if len(table.lines) > MOST_ROWS:
            raise UserError(f"{len(table.lines):,} rows: here {MOST_ROWS:,} are answered, by evaluate.py --file any")
        columns, reasons = choose_columns(table, {}, ["text"], (), models[0].text_columns)
        name = table.path.name if table.path.suffix.lower() in ENDINGS else f"{table.path.stem}.csv"
        out = Path(mkdtemp()) / f"answered-{name}"
        found = answer_table(models, table, columns["text"], out)
    except (UserError, OSError, ModuleNotFoundError) as error:
        return None, errors.printable(f"No answers: {error}")
    return str(out), errors.printable(f"{len(found):,} rows, {reasons}")


if __name__ == "__main__":
    errors.run(main)
