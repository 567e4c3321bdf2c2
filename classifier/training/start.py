"""What a run begins with: a new model, as init_from names it, or last.pt of the run that it continues."""

import datetime
import hashlib
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from classifier import checkpoint, distributed
from classifier.data.dataset import Split, load_meta, load_split, training_files
from classifier.data.tokenizer import check_vocabulary, encode_label_words, encode_prompt
from classifier.errors import UserError
from classifier.gpt2 import HUB_NAMES, load_gpt2
from classifier.settings import MAY_CHANGE, differences
from classifier.training.batches import Features, Texts, balanced_weights
from classifier.training.predict import cached_features
from model import GPT, GPTConfig


def load_data(settings: SimpleNamespace) -> tuple[dict[str, Any], list[Split]]:
    """Return what a checkpoint records of the prepared data, and its train and dev splits, with the prompt.

    Raises:
        UserError: data_dir was not prepared, or is damaged; or the prompt leaves no room for a sentence.
    """
    meta = load_meta(settings.data_dir)
    prompt = encode_prompt(settings.prompt, settings.block_size)
    splits = [replace(load_split(settings.data_dir, name, meta), prompt=prompt) for name in ("train", "dev")]
    facts = {
        "task": meta["task"],
        "label_names": meta["label_names"],
        "labels": meta.get("labels", meta["label_names"]),  # as the files have them; before, no record was kept
        "text_columns": meta.get("text_columns", []),
        "detokenized": meta["detokenized"],
        "folder": settings.data_dir,
        "leading_space": meta["splits"]["train"]["leading_space"],
        "examples": {split: meta["splits"][split]["examples"] for split in ("train", "dev")},
        "files": training_files(meta),
    }
    return facts, splits


def new_model(settings: SimpleNamespace, data: dict[str, Any]) -> GPT:
    """Return the model that init_from names: its head that of label_words, a stored one, or random.

    Args:
        data: load_data's facts.

    Raises:
        UserError: there is no such model, or it does not fit the settings.
    """
    torch.manual_seed(settings.seed)
    label_names = data["label_names"]
    num_classes = len(label_names)
    if settings.init_from in HUB_NAMES and Path(settings.init_from).is_dir():
        settings.init_from = f"./{settings.init_from}"  # the record must not take it for OpenAI's
    if settings.init_from != "scratch":
        sizes = (num_classes, settings.dropout, settings.block_size)
        model = load_gpt2(settings.init_from, *sizes, label_names, settings.new_head)
    else:
        names = ("block_size", "n_layer", "n_head", "n_embd", "dropout")
        try:
            config = GPTConfig(num_classes=num_classes, **{name: getattr(settings, name) for name in names})
        except ValueError as error:
            raise UserError(str(error)) from None
        model = GPT(config)
    check_vocabulary(model.config.vocab_size, settings.init_from)
    if settings.trainable_blocks > model.config.n_layer:
        raise UserError(
            f"trainable_blocks={settings.trainable_blocks}, but the model has {model.config.n_layer} blocks"
        )
    if settings.label_words:
        start_head_from(model, encode_label_words(settings.label_words, num_classes))
    return model


@torch.no_grad()
def start_head_from(model: GPT, words: list[int]) -> None:
    """Start the head as one word's embedding a class, bias zero: the language model's logits for these words."""
    model.head.weight.copy_(model.wte.weight[words])
    model.head.bias.zero_()


def freeze_all_but_last(model: GPT, blocks: int) -> None:
    """Train only the last so many blocks, the final LayerNorm and the head; with 0 blocks, the head alone; -1: all."""
    if not 0 <= blocks < model.config.n_layer:
        return
    frozen = [model.wte, model.wpe, *model.h[: model.config.n_layer - blocks], *([] if blocks else [model.ln_f])]
    for module in frozen:
        module.requires_grad_(False)


def net_and_examples(
    settings: SimpleNamespace, model: GPT, splits: Sequence[Split], dtype: torch.dtype
) -> tuple[nn.Module, Texts | Features, Texts | Features]:
    """Return what is trained, and on what: the model on texts, or the head alone on the model's features."""
    net, (train_set, dev_set) = model, (Texts(split, model, settings.compile) for split in splits)
    if settings.trainable_blocks == 0:
        print("features: computed once, since only the head is trained (dropout has no part in it)", flush=True)
        net, train_set, dev_set = model.head, *(cached_features(model, texts, dtype) for texts in (train_set, dev_set))
    if settings.class_weights == "balanced":
        train_set.class_weights = balanced_weights(train_set.labels, model.config.num_classes)
    return net, train_set, dev_set


def describe(settings: SimpleNamespace, model: GPT, train: Split, dev: Split) -> None:
    """Print what is trained, and on what."""
    parameters = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = f", {trained:,} of them trained" if trained < parameters else ""
    print(f"model: {parameters:,} parameters{frozen}, init_from {settings.init_from}")
    print(f"data: {settings.data_dir}, {len(train):,} train and {len(dev):,} dev examples")
    longer = (train.whole_lengths() > model.config.block_size).sum()
    if longer:
        print(f"note: {longer:,} train examples exceed block_size and keep their last tokens only")
    if distributed.size() > 1:
        print(f"processes: {distributed.size()}, each with its share of every step")


def load_resumable(settings: SimpleNamespace, path: Path, facts: dict[str, Any]) -> tuple[GPT, dict[str, Any]]:
    """Return the model and the content of last.pt, having checked that this run is its continuation.

    Raises:
        UserError: there is nothing to resume from, or data or settings differ from what the run began with.
    """
    if not path.is_file():
        raise UserError(f"there is no {path} to go on from: leave out --init_from=resume to begin a run")
    model, saved = checkpoint.load(path)
    if "optimizer" not in saved:
        raise UserError(f"{path} holds no optimizer state: it cannot be resumed from")
    if saved["data"]["files"] != facts["files"]:
        raise UserError(f"{path} was trained on other data than what {settings.data_dir} holds now")
    free = MAY_CHANGE - {"epochs"} if settings.lr_schedule == "cosine" else MAY_CHANGE  # it ends with the last epoch
    if changed := differences(saved["settings"], vars(settings), free):
        how = "give the run's own command again, and --init_from=resume after it"
        raise UserError(f"cannot resume {path} with other settings: {changed}: {how}")
    return model, saved


# -----------------------------------------------------------------------------
# what a result hangs on


def run_facts(settings: dict[str, Any], data: dict[str, Any], model: nn.Module, device: str) -> dict[str, Any]:
    """Return what a result hangs on: settings, code, versions, machine, data and the weights at the start."""
    return {
        "command": [word.encode("utf-8", "backslashreplace").decode() for word in sys.argv],
        "settings": dict(settings),
        "git": _git_state(),
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__},
        "system": platform.platform(),
        "device": device,
        "dtype": settings["dtype"],
        "threads": torch.get_num_threads(),
        "data": data,
        "initial_weights_sha256": _weights_sha256(model),
        "seed": settings["seed"],
        "started": now(),
    }


def now() -> str:
    """Return the time as ISO 8601 has it, in UTC."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def _git_state() -> dict[str, Any] | None:
    """Return this code's commit and whether files differ from it, or None where git or its repository is missing."""
    words = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(words, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": found.removesuffix("-dirty"), "dirty": found.endswith("-dirty")}


def _weights_sha256(model: nn.Module) -> str:
    """Return the sha256 over the names and the bytes of all parameters, in their order."""
    digest = hashlib.sha256()
    for name, parameter in model.state_dict().items():
        digest.update(name.encode())
        digest.update(parameter.cpu().contiguous().numpy())
    return digest.hexdigest()
