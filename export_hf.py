"""Write a checkpoint as a folder that transformers' pipeline() loads.

python export_hf.py --ckpt out/best.pt --out DIR
python export_hf.py --ckpt out/best.pt --out DIR --space   (with a page, app.py)

The folder has the weights, the tokenizer, the class names and a model card,
README.md; look through the card before you publish it. The probabilities of
pipeline("text-classification", model=DIR) are those of evaluate.py in float32,
after its --calibrate, too; it wants truncation=True for texts longer than the
model's block_size. No network is needed. finetune.py --init_from=DIR starts
from such a folder, head included. With --space it is a Hugging Face Space, or
python app.py in it shows the page.
"""

import argparse
import json
import os
import re
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from classifier import errors
from classifier.answers.card import model_card
from classifier.answers.models import load
from classifier.data.tokenizer import END_OF_TEXT, encode_prompt, load_tokenizer, vocabulary_folder
from classifier.errors import UserError
from classifier.files import folder_written_whole
from classifier.gpt2 import to_transformers
from model import GPTConfig

REPOSITORY = Path(__file__).resolve().parent
FILES = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
# what a Space has besides: copies of these, whose paths are the same there, and a script
COPIED = [f"classifier/{name}.py" for name in ("__init__", "answers/__init__", "answers/explain", "answers/page")]
APP = """\
from pathlib import Path

from classifier.answers.page import show_exported

show_exported(Path(__file__).resolve().parent)
"""


def main() -> None:
    arguments = parse_arguments()
    check_out(arguments.out, arguments.overwrite)
    loaded = load(arguments.ckpt)
    model, saved = loaded.model, loaded.saved
    label_names, leading_space = saved["data"]["label_names"], saved["data"]["leading_space"]
    prompt = encode_prompt(saved["settings"]["prompt"], model.config.block_size)
    with torch.no_grad():  # transformers has no place for a temperature
        model.head.weight /= loaded.temperature
        model.head.bias /= loaded.temperature
    weights = to_transformers(model)
    header, texts = space_parts() if arguments.space else ({}, {})
    texts |= {
        "config.json": json.dumps(config(model.config, label_names), indent=2) + "\n",
        "tokenizer.json": build_tokenizer(leading_space, prompt).to_str(),
        "tokenizer_config.json": json.dumps(tokenizer_config(leading_space, model.config.block_size), indent=2) + "\n",
        "README.md": model_card(loaded, len(prompt), header),
    }
    with folder_written_whole(arguments.out) as folder:
        for name, text in texts.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
        # transformers wants to be told that the tensors are PyTorch's
        (folder / "model.safetensors").write_bytes(safetensors.torch.save(weights, metadata={"format": "pt"}))
    print(f"wrote {arguments.out}{os.sep}")
    if loaded.calibration:
        print(f"its head is divided by the temperature {loaded.temperature:.3f} of evaluate.py --calibrate")
    page = f"cd {arguments.out} && python app.py   (or upload the folder as a Space)"
    call = f'pipeline("text-classification", "{arguments.out}", truncation=True)'
    print(f"next: {page}" if arguments.space else f"next, in Python:\n  from transformers import pipeline\n  {call}")


def parse_arguments() -> argparse.Namespace:
    parser = errors.argument_parser(__doc__)
    parser.add_argument("--ckpt", default="out/best.pt", help="checkpoint of finetune.py (default: %(default)s)")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="the folder to write: new, or empty")
    parser.add_argument("--overwrite", action="store_true", help="let it replace an earlier export, as a whole")
    parser.add_argument("--space", action="store_true", help="add a page, so that it is a Hugging Face Space, too")
    return parser.parse_args()


def check_out(out: Path, overwrite: bool) -> None:
    """Raise a UserError, before any work is done, where the folder could not or should not be written."""
    found = {path.name for path in out.iterdir()} if out.exists() else set()
    ours = FILES | {"app.py", "classifier", "requirements.txt"}
    if others := sorted(found - ours):
        raise UserError(f"--out {out} holds other things ({', '.join(others[:3])}): name a new folder")
    if found and not overwrite:
        raise UserError(f"{out} holds a model already: name another folder, or add --overwrite to replace it")


def space_parts() -> tuple[dict[str, str], dict[str, str]]:
    """Return what a Space has besides: of the card's header, and the texts of files by their names."""
    ours = "".join((REPOSITORY / name).read_text("utf-8") for name in ("requirements.txt", "requirements-app.txt"))
    versions = dict(re.findall(r"^(torch|transformers|gradio)\b([^\s#]*)", ours, re.MULTILINE))  # gradio: ==6.31.0
    header = {"sdk": "gradio", "sdk_version": versions["gradio"].removeprefix("=="), "app_file": "app.py"}
    texts = {name: (REPOSITORY / name).read_text("utf-8") for name in COPIED}
    requirements = "".join(f"{name}{version}\n" for name, version in versions.items())
    return header, texts | {"app.py": APP, "requirements.txt": requirements}


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


if __name__ == "__main__":
    errors.run(main)
