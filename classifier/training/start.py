"""What a new run starts from: the prepared data, and the model that init_from names."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from classifier import distributed
from classifier.data.dataset import Split, load_meta, load_split, training_files
from classifier.data.tokenizer import check_vocabulary, encode_label_words, encode_prompt
from classifier.errors import UserError
from classifier.gpt2 import HUB_NAMES, load_gpt2
from model import GPT, GPTConfig


def refuse_other_run(out: Path) -> None:
    """Raise a UserError if a folder contains another run's checkpoints, or files that are no run's."""
    names, record = ["best.pt", "last.pt"], out / "run.json"
    if not record.is_file() or '"initial_weights_sha256"' not in record.read_text("utf-8", "replace"):
        names += ["run.json", "log.csv", "curves.png"]  # not written by finetune.py: somebody else's
    if found := [name for name in names if (out / name).is_file()]:
        raise UserError(
            f"{out} contains another run ({', '.join(found)}): resume it with --init_from=resume, choose another "
            "--out_dir, or replace it with --overwrite=True"
        )


def load_data(settings: Any) -> tuple[dict[str, Any], Split, Split]:
    """Load the prepared data; return the facts that a checkpoint records, and the train and dev splits."""
    meta = load_meta(settings.data_dir)
    prompt = encode_prompt(settings.prompt, settings.block_size)
    train, dev = (replace(load_split(settings.data_dir, name, meta), prompt=prompt) for name in ("train", "dev"))
    facts = {
        "task": meta["task"],
        "label_names": meta["label_names"],
        "labels": meta.get("labels", meta["label_names"]),  # as the files spell them; missing from older data
        "text_columns": meta.get("text_columns", []),
        "folder": settings.data_dir,
        "leading_space": meta["splits"]["train"]["leading_space"],
        "examples": {split: meta["splits"][split]["examples"] for split in ("train", "dev")},
        "files": training_files(meta),
    }
    return facts, train, dev


def initial_weights(init_from: str) -> str:
    """Return init_from as it is recorded: ./gpt2 for a folder that has the name of OpenAI's model."""
    if init_from in HUB_NAMES and Path(init_from).is_dir():
        return f"./{init_from}"
    return init_from


def new_model(settings: Any, label_names: list[str]) -> GPT:
    """Load or make the model that init_from names; its head is the stored one, that of label_words, or random."""
    torch.manual_seed(settings.seed)
    name, num_classes = settings.init_from, len(label_names)
    if name == "scratch":
        shape = {key: getattr(settings, key) for key in ("block_size", "n_layer", "n_head", "n_embd", "dropout")}
        try:
            model = GPT(GPTConfig(num_classes=num_classes, **shape))
        except ValueError as error:
            raise UserError(str(error)) from None
    else:
        model = load_gpt2(
            initial_weights(name), num_classes, settings.dropout, settings.block_size, label_names, settings.new_head
        )
    check_vocabulary(model.config.vocab_size, name)
    if settings.label_words:
        start_head_from(model, encode_label_words(settings.label_words, num_classes))
    return model


def print_job(settings: Any, model: GPT, train: Split, dev: Split) -> None:
    """Print what is trained, and on what."""
    parameters = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = f", {trained:,} of them trained" if trained < parameters else ""
    print(f"model: {parameters:,} parameters{frozen}, init_from {initial_weights(settings.init_from)}")
    print(f"data: {settings.data_dir}, {len(train):,} train and {len(dev):,} dev examples", flush=True)
    longer = (train.whole_lengths() > model.config.block_size).sum()
    if longer:
        print(f"note: {longer:,} train examples exceed block_size and keep their last tokens only")
    if distributed.size() > 1:
        print(f"processes: {distributed.size()}, each with its share of every step")


@torch.no_grad()
def start_head_from(model: GPT, words: list[int]) -> None:
    """Set the head to one token's embedding for each class, bias 0: the language model's logits for these tokens."""
    model.head.weight.copy_(model.wte.weight[words])
    model.head.bias.zero_()


def freeze_all_but_last(model: GPT, blocks: int) -> None:
    """Train only the last so many blocks, the final LayerNorm and the head; 0: the head alone, -1: everything."""
    if blocks > model.config.n_layer:
        raise UserError(f"trainable_blocks={blocks} is more than the model has: set {model.config.n_layer} or less")
    if blocks >= 0:
        model.requires_grad_(False)
        model.head.requires_grad_(True)
    if blocks > 0:
        model.ln_f.requires_grad_(True)
        model.h[-blocks:].requires_grad_(True)
