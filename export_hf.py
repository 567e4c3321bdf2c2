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
from classifier.card import model_card
from classifier.errors import UserError
from classifier.files import folder_written_whole
from classifier.pretrained import to_transformers
from classifier.tokenizer import END_OF_TEXT, encode_prompt, load_tokenizer, vocabulary_folder
from model import GPT, GPTConfig

FILES = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
SPACE_FILES = {"app.py", "requirements.txt"}
REPOSITORY = Path(__file__).resolve().parent


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
        "README.md": model_card(loaded, len(prompt), space_header() if arguments.space else []),
    }
    if arguments.space:
        texts |= {"app.py": space_app(), "requirements.txt": "\n".join(space_requirements()) + "\n"}
    with folder_written_whole(arguments.out, arguments.overwrite) as folder:
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
        write_weights(folder / "model.safetensors", weights)
        shutil.copymode(folder / "config.json", folder / "model.safetensors")  # safetensors writes for the owner only
    print(f"wrote {arguments.out}: {', '.join(sorted({*texts, 'model.safetensors'}))}")
    if loaded.calibration:
        print(f"its head is divided by the temperature {loaded.temperature:.3f} of evaluate.py --calibrate")
    print(
        f'next: from transformers import pipeline; pipeline("text-classification", "{arguments.out}", truncation=True)'
    )


def parse_arguments() -> argparse.Namespace:
    parser = errors.argument_parser(__doc__)
    parser.add_argument("--ckpt", default="out/best.pt", help="checkpoint of finetune.py (default: %(default)s)")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="the folder to write: new, or empty")
    parser.add_argument("--overwrite", action="store_true", help="let it replace an earlier export, as a whole")
    parser.add_argument("--space", action="store_true", help="add a page, so that it is a Hugging Face Space, too")
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
    if others := sorted(found - FILES - SPACE_FILES):
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


def space_app() -> str:
    """Return the page as one file that needs nothing else of this repository."""
    parts = [(REPOSITORY / "classifier" / f"{name}.py").read_text("utf-8") for name in ("explain", "page", "space")]
    return "\n\n".join(re.sub(r"^from classifier\..*\n", "", part, flags=re.MULTILINE) for part in parts)


def space_requirements() -> list[str]:
    """Return the lines of our requirements that the page needs."""
    text = "".join((REPOSITORY / name).read_text("utf-8") for name in ("requirements.txt", "requirements-app.txt"))
    return re.findall(r"^(?:torch|transformers|gradio)\b[^\s#]*", text, re.MULTILINE)


def space_header() -> list[str]:
    """Return what a Space's README.md begins with: the very version of Gradio, and what to run."""
    (version,) = [line.removeprefix("gradio==") for line in space_requirements() if line.startswith("gradio==")]
    return ["sdk: gradio", f"sdk_version: {version}", "app_file: app.py"]


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


if __name__ == "__main__":
    errors.run(main)
