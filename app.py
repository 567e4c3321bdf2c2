"""Show a checkpoint's answers on a page: for a text its classes, and why.

python app.py --ckpt out/best.pt
python app.py --ckpt out/seed-1/best.pt out/seed-2/best.pt   (an ensemble)

It listens on 127.0.0.1, this machine alone. A second tab has the mistakes on
the dev set that the model was surest of. export_hf.py --space writes a folder
that carries such a page by itself.
"""

import argparse
import socket
from functools import partial

import torch

from classifier import errors
from classifier.answers.models import (
    Loaded,
    check_same_classes,
    check_same_data,
    check_same_task,
    load,
    log_probabilities,
    predict_all,
    surest_mistakes,
    text_of,
)
from classifier.data.dataset import Split, load_meta, load_split
from classifier.device import choose_device, choose_dtype, tune
from classifier.errors import UserError

EXAMPLES, MISTAKES = 5, 20


def main() -> None:
    arguments = parse_arguments()
    from classifier.answers import page  # here: it needs Gradio, and to say what options there are does not

    models = [load(path) for path in arguments.ckpt]
    check_same_classes(models)
    device, device_reason = choose_device("auto")
    dtype, dtype_reason = choose_dtype("auto", device)
    tune(device, dtype)
    print(f"device {device} ({device_reason})\ndtype {str(dtype).removeprefix('torch.')} ({dtype_reason})")
    for loaded in models:
        loaded.model.to(device)
    data = models[0].saved["data"]
    dev = dev_split(models, arguments.data_dir)
    examples = [text_of(dev, i) for i in range(min(EXAMPLES, len(dev)))] if dev else []
    mistakes = find_mistakes(models, dev, dtype) if dev else []
    answers = partial(log_probabilities, models, dtype)
    title = f"{data['task']}: {' + '.join(arguments.ckpt)}"
    built = page.build(title, data["label_names"], answers, examples, mistakes)
    page.show(built, server_name=arguments.host, server_port=arguments.port)


def parse_arguments() -> argparse.Namespace:
    parser = errors.argument_parser(__doc__)
    add = parser.add_argument
    add("--ckpt", nargs="+", default=["out/best.pt"], metavar="FILE", help="as in evaluate.py (default: out/best.pt)")
    add("--data_dir", metavar="DIR", help="prepared folder of the dev set (default: the one it was trained on)")
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 lets others in (default: %(default)s)")
    add("--port", type=int, default=7860, help="default: %(default)s")
    arguments = parser.parse_args()
    if not 0 < arguments.port < 65536:
        raise UserError(f"--port must be from 1 to 65535, not {arguments.port}")
    try:
        socket.create_server((arguments.host, arguments.port)).close()  # before a model is loaded
    except OSError as error:
        reason, _, _ = error.strerror.partition(" (while")  # then Python names the address once more
        where = f"{arguments.host}, port {arguments.port}"
        raise UserError(f"cannot listen on {where} ({reason}): name another --port or --host") from None
    return arguments


def dev_split(models: list[Loaded], data_dir: str | None) -> Split | None:
    """Return the dev set; None, with a note, where the folder that the models were trained on does not have it now.

    Raises:
        UserError: data_dir, the folder that was asked for, does not fit the models.
    """
    folder = data_dir or models[0].saved["data"]["folder"]
    try:
        meta = load_meta(folder)
        for loaded in models:
            check_same_task(loaded, folder, meta)
            check_same_data(loaded, folder, meta, ["dev"], data_dir is not None)
        return load_split(folder, "dev", meta)
    except UserError as error:
        if data_dir is not None:
            raise
        print(errors.printable(f"note: a page without examples and mistakes: {error}"))
        return None


def find_mistakes(models: list[Loaded], dev: Split, dtype: torch.dtype) -> list[tuple[str, str]]:
    """Return the mistakes on the dev set that the models were surest of: what is to be said of each, and its text."""
    logits, names = predict_all(models, dev, dtype), models[0].saved["data"]["label_names"]
    probabilities, predictions = logits.softmax(-1).max(-1)
    found = []
    for i in surest_mistakes(logits, dev.labels)[:MISTAKES].tolist():
        text = text_of(dev, i)
        said = f"{names[dev.labels[i]]}, taken for {names[predictions[i]]} ({probabilities[i]:.3f}): {text}"
        found.append((said, text))
    return found


if __name__ == "__main__":
    errors.run(main)
