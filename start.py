"""What a run starts from: a new model, as init_from names it, or last.pt of a run that it continues."""

from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import torch

import checkpoint
import distributed
from configurator import differences
from dataset import Split, training_files
from errors import UserError
from files import hold
from model import GPT, GPTConfig
from pretrained import HUB_NAMES
from run_folder import refuse_to_replace_a_run
from tokenizer import check_vocabulary, encode_label_words


def begin_or_resume(
    settings: SimpleNamespace, out: Path, facts: dict[str, Any], free_on_resume: set[str]
) -> tuple[GPT, dict[str, Any] | None, IO | None]:
    """Return the model, what last.pt holds if the run is resumed, and the lock on out_dir (the first process's).

    Args:
        facts: data_facts of the prepared folder.
        free_on_resume: settings that may differ from those that the run began with.

    Raises:
        UserError: out_dir holds another run or is in use, or there is no such model.
    """
    torch.manual_seed(settings.seed)
    saved = lock = None
    is_first = distributed.rank() == 0
    if settings.init_from == "resume":
        if is_first and out.is_dir():
            lock = hold(out)  # until the process ends
        model, saved = load_resumable(settings, out / "last.pt", facts, free_on_resume)
    else:
        if is_first and not settings.overwrite:
            refuse_to_replace_a_run(out)
        model = new_model(settings, facts["label_names"])
        if is_first:
            out.mkdir(parents=True, exist_ok=True)
            lock = hold(out)
        if is_first and not settings.overwrite:
            refuse_to_replace_a_run(out)  # one that has begun in the meantime
    if 0 <= settings.trainable_blocks < model.config.n_layer:
        model.train_last(settings.trainable_blocks)
    return model, saved, lock


def new_model(settings: SimpleNamespace, label_names: list[str]) -> GPT:
    """Return the model that init_from names: its head that of label_words, the folder's where it has one, or random."""
    num_classes = len(label_names)
    if settings.init_from in HUB_NAMES and Path(settings.init_from).is_dir():
        settings.init_from = f"./{settings.init_from}"  # the record must not take it for OpenAI's
    if settings.init_from != "scratch":
        sizes = (num_classes, settings.dropout, settings.block_size)
        model = GPT.from_pretrained(settings.init_from, *sizes, label_names=label_names)
    else:
        names = ("block_size", "n_layer", "n_head", "n_embd", "dropout")
        model = GPT(GPTConfig(num_classes=num_classes, **{name: getattr(settings, name) for name in names}))
    check_vocabulary(model.config.vocab_size, settings.init_from)
    if settings.trainable_blocks > model.config.n_layer:
        raise UserError(
            f"trainable_blocks={settings.trainable_blocks}, but the model has {model.config.n_layer} blocks"
        )
    if settings.label_words:
        model.start_head_from(encode_label_words(settings.label_words, num_classes))
    return model


def describe(settings: SimpleNamespace, model: GPT, train: Split, dev: Split) -> None:
    """Print what is trained, and on what."""
    parameters = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = f", {trained:,} of them trained" if trained < parameters else ""
    print(f"model: {parameters:,} parameters{frozen}, init_from {settings.init_from}")
    print(f"data: {settings.data_dir}, {len(train):,} train and {len(dev):,} dev examples")
    longer = (train.whole_lengths() > model.config.block_size).sum()
    if longer:
        print(f"note: {longer:,} of the train examples exceed block_size: they keep their last tokens only")
    if distributed.size() > 1 and settings.trainable_blocks != 0:
        print(f"processes: {distributed.size()}, each with its share of every step")


def load_resumable(
    settings: SimpleNamespace, path: Path, facts: dict[str, Any], free: set[str]
) -> tuple[GPT, dict[str, Any]]:
    """Return the model and the content of last.pt, having checked that this run is its continuation.

    Raises:
        UserError: there is nothing to resume from, or data or settings differ from what the run began with.
    """
    model, saved = checkpoint.load(path)
    if "optimizer" not in saved or "scaler" not in saved:
        raise UserError(f"{path} holds no optimizer state: it cannot be resumed from")
    if saved["data"]["files"] != facts["files"]:
        raise UserError(f"{path} was trained on other data than what {settings.data_dir} holds now")
    if settings.lr_schedule == "cosine":
        free = free - {"epochs"}  # they are part of the schedule
    if changed := differences(saved["settings"], vars(settings), free):
        raise UserError(f"cannot resume {path} with other settings: {changed}")
    return model, saved


def data_facts(folder: str, meta: dict[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint records of its data: from meta.json of a prepared folder."""
    return {
        "task": meta["task"],
        "label_names": meta["label_names"],
        "detokenized": meta["detokenized"],
        "folder": folder,
        "leading_space": meta["splits"]["train"]["leading_space"],
        "examples": {split: meta["splits"][split]["examples"] for split in ("train", "dev")},
        "files": training_files(meta),
    }
