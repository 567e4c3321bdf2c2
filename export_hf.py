"""Write a checkpoint as a folder that transformers loads: pipeline("text-classification", model=DIR).

python export_hf.py --ckpt out/best.pt --out DIR

The folder has the weights, the tokenizer, the class names and a model card, README.md; look through the card before you
publish it. The pipeline's probabilities are those of evaluate.py in float32, after its --calibrate, too; it wants
truncation=True for texts longer than the model's block_size. No network is needed. finetune.py --init_from=DIR starts
from such a folder, head included.
"""

from classifier.signals import quiet_interrupt

if __name__ == "__main__":
    quiet_interrupt()  # while the rest is imported

import argparse
import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor

from classifier import errors
from classifier.answers import load
from classifier.errors import UserError, printable
from classifier.files import folder_written_whole
from classifier.pretrained import to_transformers
from classifier.settings import MAY_CHANGE
from classifier.significance import wilson_interval
from classifier.tokenizer import END_OF_TEXT, encode_prompt, load_tokenizer, vocabulary_folder
from classifier.weights import HUB_NAMES
from model import GPT, GPTConfig

FILES = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def main() -> None:
    arguments = parse_arguments()
    check_out(arguments.out, arguments.overwrite)
    loaded = load(arguments.ckpt)
    model, saved = loaded.model, loaded.saved
    label_names = saved["data"]["label_names"]
    check_classes(arguments.ckpt, label_names)
    divide_logits(model, loaded.temperature)
    prompt = encode_prompt(saved["settings"]["prompt"], model.config.block_size)
    weights = to_transformers(model)
    leading_space, block_size = saved["data"]["leading_space"], model.config.block_size
    texts = {
        "config.json": as_json(config(model.config, label_names)),
        "tokenizer.json": build_tokenizer(leading_space, prompt).to_str(),
        "tokenizer_config.json": as_json(tokenizer_config(leading_space, block_size)),
        "README.md": model_card(model, saved, len(prompt), loaded.calibration),
    }
    with folder_written_whole(arguments.out, arguments.overwrite) as folder:
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
        write_weights(folder / "model.safetensors", weights)
        shutil.copymode(folder / "config.json", folder / "model.safetensors")  # safetensors writes for the owner only
    print(f"wrote {arguments.out}: {', '.join(sorted(FILES))}")
    print(
        f'next: from transformers import pipeline; pipeline("text-classification", "{arguments.out}", truncation=True)'
    )


def parse_arguments() -> argparse.Namespace:
    parser = errors.argument_parser(__doc__)
    parser.add_argument("--ckpt", default="out/best.pt", help="checkpoint of finetune.py (default: %(default)s)")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="the folder to write: new, or empty")
    parser.add_argument("--overwrite", action="store_true", help="let it replace an earlier export, as a whole")
    return parser.parse_args()


def check_out(out: Path, overwrite: bool) -> None:
    """Raise a UserError, before any work is done, where the folder could not or should not be written."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is there already and no folder")
    if out.resolve() == Path.cwd():
        raise UserError(f"--out {out} is the current folder, which cannot be replaced: name a new one, such as hf")
    if not out.resolve().parent.is_dir():
        raise UserError(f"--out {out}: the folder it is to lie in does not exist")
    found = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if others := sorted(found - FILES):
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise UserError(f"--out {out} holds other things ({', '.join(others[:3])}{more}): name a new folder")
    if found and not overwrite:
        raise UserError(f"{out} holds a model already: name another folder, or add --overwrite to replace it")


def check_classes(ckpt: str, label_names: list[str]) -> None:
    """Raise a UserError where transformers could not tell the classes apart."""
    if len(label_names) < 2:
        raise UserError(f"{ckpt} has a single class, for which transformers' pipeline computes something else")
    if len(set(label_names)) < len(label_names):
        raise UserError(f"{ckpt} has classes of the same name, and the pipeline gives names: {', '.join(label_names)}")


@torch.no_grad()
def divide_logits(model: GPT, temperature: float) -> None:
    """Put a temperature into a model's head: transformers has no place for it."""
    model.head.weight /= temperature
    model.head.bias /= temperature


def write_weights(path: Path, weights: dict[str, Tensor]) -> None:
    """Write tensors in the safetensors format.

    Raises:
        OSError: a full disk, most likely.
    """
    try:
        save_file(weights, path, metadata={"format": "pt"})  # transformers wants to be told that it is PyTorch's
    except SafetensorError as error:
        raise OSError(str(error)) from None


def as_json(content: dict[str, Any]) -> str:
    """Return JSON in ASCII, for people to read, too."""
    return json.dumps(content, indent=2) + "\n"


def config(ours: GPTConfig, label_names: list[str]) -> dict[str, Any]:
    """Return config.json's content; the dropout is that of training, which only further training would use."""
    return {
        "architectures": ["GPT2ForSequenceClassification"],
        "model_type": "gpt2",
        "problem_type": "single_label_classification",
        "id2label": dict(enumerate(label_names)),
        "label2id": {name: number for number, name in enumerate(label_names)},
        "vocab_size": ours.vocab_size,
        "n_positions": ours.block_size,
        "n_embd": ours.n_embd,
        "n_layer": ours.n_layer,
        "n_head": ours.n_head,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        **dict.fromkeys(["embd_pdrop", "attn_pdrop", "resid_pdrop"], ours.dropout),
        **dict.fromkeys(["bos_token_id", "eos_token_id", "pad_token_id"], END_OF_TEXT),
    }


def build_tokenizer(leading_space: bool, prompt: tuple[int, ...]) -> Tokenizer:
    """Return GPT-2's tokenizer as the library tokenizers has it.

    Args:
        leading_space: put a space in front of texts that have none.
        prompt: tokens that end every sequence; where a text is cut, its own last tokens make room for them.
    """
    load_tokenizer()  # checks the files
    folder = vocabulary_folder()
    tokenizer = Tokenizer(models.BPE.from_file(str(folder / "encoder.json"), str(folder / "vocab.bpe")))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=leading_space)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", normalized=False)])
    if prompt:
        tokens = [tokenizer.id_to_token(token) for token in prompt]
        special = {"id": "prompt", "ids": list(prompt), "tokens": tokens}  # one name for all of its tokens
        tokenizer.post_processor = processors.TemplateProcessing(single="$A prompt", special_tokens=[special])
    return tokenizer


def tokenizer_config(leading_space: bool, block_size: int) -> dict[str, Any]:
    """Return tokenizer_config.json's content."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",  # takes tokenizer.json as it is; GPT2Tokenizer builds its own
        "model_input_names": ["input_ids", "attention_mask"],  # GPT-2 would add token_type_ids as if they were words
        "add_prefix_space": leading_space,
        "split_special_tokens": True,  # "<|endoftext|>" in a text is text
        "pad_token": "<|endoftext|>",
        "padding_side": "right",
        "truncation_side": "left",  # the last tokens are kept
        "model_max_length": block_size,
        "clean_up_tokenization_spaces": False,
    }


CARD = """\
---
{header}
---

# {task}: a text classifier

{base}, {parameters:,} parameters in {config.n_layer} blocks of width {config.n_embd}, fine-tuned into a classifier.

{classes}

```python
from transformers import pipeline

classify = pipeline("text-classification", model="path/to/this/folder", truncation=True)
classify(["A lovely film.", "A dull mess."], batch_size=16, top_k=None)  # the probability of every class
```

A text may have {tokens} tokens; of a longer one the last are used, as in training.{prompt}{space}
An empty text cannot be classified.

## Result

{result} {calibration}

## Training

{settings}

{run}
"""
PROMPT = " The prompt {} ends every text, cut or not."
SPACE = " A space is put in front of a text that has none, since all texts of the training data begin with one."
UNKNOWN = "Nothing was measured on a test set, or on texts of another kind, time or language"
CALIBRATED = """\
The logits are divided by {temperature:.3f}, a temperature that was fitted on the dev split and changes no prediction:
there the loss went from {before[loss]:.4f} to {estimate[loss]:.4f} and the expected calibration error from
{before[calibration_error]:.3f} to {estimate[calibration_error]:.3f},
each fifth with a temperature fitted to the rest."""


def model_card(model: GPT, saved: dict[str, Any], prompt_length: int, calibration: dict[str, Any]) -> str:
    """Return the text of README.md. What comes from the checkpoint is escaped, and none of it is in the YAML header."""
    data, run = saved["data"], saved["run"]
    settings = run["settings"] if isinstance(run.get("settings"), dict) else saved["settings"]  # a resumed run's first
    init_from, header = settings.get("init_from"), ["library_name: transformers", "pipeline_tag: text-classification"]
    if hub_name := HUB_NAMES.get(init_from) if isinstance(init_from, str) else None:
        header += [f"base_model: {hub_name}", "license: mit"]  # the license of GPT-2's weights
        base = f"[{hub_name}](https://huggingface.co/{hub_name})"
    else:
        base = (
            "A GPT-2 with random initial weights" if init_from == "scratch" else "A GPT-2 from a local folder or file"
        )
    shape = {"n_layer", "n_head", "n_embd"}  # of a model from scratch; the card says this model's own
    shown = {name: repr(value) for name, value in settings.items() if name not in MAY_CHANGE - {"epochs"} | shape}
    facts = {name: in_words(run.get(name)) for name in ("started", "git", "versions", "device", "dtype")}
    return CARD.format(
        header="\n".join(header),
        task=plain(data["task"]),
        base=base,
        parameters=sum(p.numel() for p in model.parameters()),
        config=model.config,
        classes=table("number", "class", dict(enumerate(data["label_names"]))),
        tokens=model.config.block_size - prompt_length,
        prompt=PROMPT.format(plain(repr(saved["settings"]["prompt"]))) if prompt_length else "",
        space=SPACE if data["leading_space"] else "",
        result=result(data, saved["progress"]),
        calibration=f"{CALIBRATED.format(**calibration)}\n{UNKNOWN}."
        if calibration
        else f"{UNKNOWN}, or on whether the\nprobabilities are calibrated.",
        settings=table("setting", "value", shown),
        run=table("run", "", facts),
    )


def result(data: dict[str, Any], progress: dict[str, Any]) -> str:
    """Return the card's sentences on the accuracy that was measured on the dev split for these very weights."""
    best, count = progress["best"], data["examples"]["dev"]
    if not best or best["step"] != progress["step"] or not 0 <= best["accuracy"] <= 1:
        return "No accuracy was measured for these weights."
    low, high = wilson_interval(round(best["accuracy"] * count), count)
    return (
        f"Accuracy **{best['accuracy']:.3f}** (95% Wilson interval {low:.3f} to {high:.3f}, {count:,} examples) and "
        f"loss {best['loss']:.4f} on the dev split, measured in the run after epoch {best['epoch']:.4g}, which "
        f"was chosen by this very accuracy: that flatters it."
    )


def table(first: str, second: str, rows: dict[Any, Any]) -> str:
    """Return a Markdown table of two columns."""
    lines = [f"| {first} | {second} |", "|---|---|"]
    return "\n".join(lines + [f"| {plain(key)} | {plain(value)} |" for key, value in rows.items()])


def in_words(value: Any) -> str:
    """Return a run's fact on one line."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {part}" for key, part in value.items())
    return "not recorded" if value is None else str(value)


def plain(value: Any) -> str:
    """Return text that Markdown shows as it is, on one line and in a table, too."""
    return re.sub(r"([\\`*_\[\]<>|~&$#])", r"\\\1", printable(str(value)))


if __name__ == "__main__":
    errors.run(main)
