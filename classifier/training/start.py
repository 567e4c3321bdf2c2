"""What a new run starts from: the prepared data, and the model that init_from names."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from classifier import distributed
from classifier.data.dataset import Split, count_longer, load_meta, load_split, long_note, training_files
from classifier.data.table import counted
from classifier.data.tokenizer import check_vocabulary, encode_label_words, encode_prompt
from classifier.errors import UserError, tell
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
    splits = [load_split(settings.data_dir, name, meta) for name in ("train", "dev")]
    train, dev = (replace(split, prompt=prompt, keep=settings.keep) for split in splits)
    sources = {split: meta["splits"][split]["source"].get("sha256s", []) for split in ("train", "dev")}
    facts = {
        "task": meta["task"],
        "label_names": meta["label_names"],
        "labels": meta.get("labels", meta["label_names"]),  # as the files spell them; missing from older data
        "text_columns": meta.get("text_columns", []),
        "folder": settings.data_dir,
        "leading_space": meta["splits"]["train"]["leading_space"],
        "examples": {split: meta["splits"][split]["examples"] for split in ("train", "dev")},
        "files": training_files(meta),
        "sources": sources,  # the sha256 of each file that was read; missing from older data
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


def print_job(settings: Any, data: dict[str, Any], model: GPT, train: Split, dev: Split) -> None:
    """Print what is trained, and on what; data: load_data's facts."""
    parameters = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = f", {trained:,} of them trained" if trained < parameters else ""
    print(f"model: {parameters:,} parameters{frozen}, init_from {initial_weights(settings.init_from)}")
    print(f"data: {settings.data_dir}, {len(train):,} train and {len(dev):,} dev examples", flush=True)
    for split in (train, dev):
        longer, room = count_longer(split, model.config.block_size), model.config.block_size - len(split.prompt)
        if note := long_note(longer, len(split), f"{split.name} texts", room, settings.keep):
            columns = data["text_columns"] if settings.keep == "last" else []
            how = f", and {columns[0]!r}, the first column, is cut first" if len(columns) > 1 else ""
            other = "first" if settings.keep == "last" else "last"
            tell(f"{note}{how} (--keep={other} reads the {other} ones)")
    if distributed.size() > 1:
        print(f"processes: {distributed.size()}, each with its share of every step")


def tell_what_teaches_little(settings: Any, steps: int) -> None:
    """Print a note if a run of so many steps will hardly be better than chance, with the flags that mend it."""
    is_scratch, problems = settings.init_from == "scratch", []
    if is_scratch and settings.learning_rate < 3e-4:
        problems.append(f"learning_rate={settings.learning_rate:g} is for pretrained weights")
    if settings.warmup_steps >= steps:
        problems.append(f"the warm-up, warmup_steps={settings.warmup_steps}, ends after the last step")
    if is_scratch and steps < 50:
        problems.append("so few steps teach random weights little")
    if problems:
        flags = "--learning_rate=1e-3 --gradient_accumulation_steps=1 --batch_size=8 --warmup_steps=0"
        how = f"try {flags}" if is_scratch else "lower warmup_steps"
        tell(f"note: {counted(steps, 'step')} in all; {'; '.join(problems)}: {how}")


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
