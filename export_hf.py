"""Write a checkpoint as a folder that transformers' pipeline() loads.

python export_hf.py --ckpt out/best.pt --out DIR

The folder contains the weights, the tokenizer, the class names and a model
card, README.md: read the card before you publish it. The probabilities of
pipeline("text-classification", model=DIR) are those of evaluate.py in float32.
Pass truncation=True for texts longer than the model's block_size. No network
is needed. finetune.py --init_from=DIR starts from this folder, head included.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import safetensors.torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from classifier import errors
from classifier.answers.card import model_card
from classifier.answers.models import Classifier
from classifier.data.tokenizer import END_OF_TEXT, load_tokenizer, vocabulary_folder
from classifier.errors import UserError
from classifier.files import folder_written_whole
from classifier.gpt2 import to_transformers
from model import GPTConfig

FILES = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def main() -> None:
    arguments = parse_arguments()
    check_out(arguments.out, arguments.overwrite)
    classifier = Classifier.load(arguments.ckpt, device="cpu", dtype="float32")
    config, leading_space = classifier.model.config, classifier.saved["data"]["leading_space"]
    weights = to_transformers(classifier.model)
    texts = {
        "config.json": json.dumps(model_config(config, classifier.label_names), indent=2),
        "tokenizer.json": build_tokenizer(leading_space, classifier.prompt).to_str(),
        "tokenizer_config.json": json.dumps(
            tokenizer_config(leading_space, config.block_size, classifier.keep), indent=2
        ),
        "README.md": model_card(classifier, f"{classifier.keep} {classifier.tokens_read}"),
    }
    with folder_written_whole(arguments.out) as folder:
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
        # the mark without which transformers refuses the file
        (folder / "model.safetensors").write_bytes(safetensors.torch.save(weights, metadata={"format": "pt"}))
    print(f"wrote {arguments.out}{os.sep}")
    print("next, in Python:\n  from transformers import pipeline")
    print(f'  pipeline("text-classification", "{arguments.out}", truncation=True)')


def parse_arguments() -> argparse.Namespace:
    parser = errors.argument_parser(__doc__)
    parser.add_argument("--ckpt", default="out/best.pt", help="checkpoint of finetune.py (default: %(default)s)")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="the folder to write: new, or empty")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    return parser.parse_args()


def check_out(out: Path, overwrite: bool) -> None:
    """Raise a UserError, before any work is done, where the folder could not or should not be written."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: name a new folder")
    found = {path.name for path in out.iterdir()} if out.exists() else set()
    others = sorted(found - FILES)
    if found and not found >= {"config.json", "model.safetensors"}:  # no export, whatever its names
        others = sorted(found)
    if others:
        raise UserError(f"--out {out} contains other files ({', '.join(others[:3])}): name a new folder")
    if found and not overwrite:
        raise UserError(f"{out} contains an exported model: name another folder, or add --overwrite to replace it")


def model_config(ours: GPTConfig, label_names: list[str]) -> dict[str, Any]:
    """Return the content of config.json."""
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
        **dict.fromkeys(["embd_pdrop", "attn_pdrop", "resid_pdrop"], ours.dropout),  # for further training
        **dict.fromkeys(["bos_token_id", "eos_token_id", "pad_token_id"], END_OF_TEXT),
    }


def build_tokenizer(leading_space: bool, prompt: tuple[int, ...]) -> Tokenizer:
    """Build GPT-2's tokenizer with the library tokenizers.

    Args:
        leading_space: put a space in front of a text that has none.
        prompt: tokens that end every sequence, truncated or not.
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


def tokenizer_config(leading_space: bool, block_size: int, keep: str) -> dict[str, Any]:
    """Return the content of tokenizer_config.json."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",  # takes tokenizer.json as it is; GPT2Tokenizer builds its own
        "model_input_names": ["input_ids", "attention_mask"],  # GPT-2 would add token_type_ids as if they were words
        "add_prefix_space": leading_space,
        "split_special_tokens": True,  # "<|endoftext|>" in a text is text
        "pad_token": "<|endoftext|>",
        "padding_side": "right",
        "truncation_side": "left" if keep == "last" else "right",
        "model_max_length": block_size,
        "clean_up_tokenization_spaces": False,
    }


if __name__ == "__main__":
    errors.run(main)
