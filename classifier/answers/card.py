"""The model card of an exported folder: what the model is, how good it is, how it was trained."""

import re
from typing import Any

from huggingface_hub import ModelCardData

from classifier.answers.models import Loaded
from classifier.answers.significance import wilson_interval
from classifier.errors import printable
from classifier.gpt2 import HUB_NAMES
from classifier.settings import MAY_CHANGE

CARD = """\
---
{header}
---

# {task}: a text classifier

{base}, {parameters:,} parameters in {config.n_layer} block(s) of width {config.n_embd}, fine-tuned into a classifier.

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
Nothing was measured on a test set, or on texts of another kind, time or language.

## Training

{training}
"""
PROMPT = " The prompt {} ends every text, cut or not."
SPACE = " A space is put in front of a text that has none, since all texts of the training data begin with one."
CALIBRATED = """\
The logits are divided by {temperature:.3f}, a temperature that was fitted on the dev split and changes no prediction.
There the loss went from {before[loss]:.4f} to {estimate[loss]:.4f}, and the expected calibration error from
{before[calibration_error]:.3f} to {estimate[calibration_error]:.3f}, each fifth with a temperature fitted to the rest.\
"""
NOT_CALIBRATED = "Whether the probabilities are calibrated was not measured."


def model_card(loaded: Loaded, prompt_length: int, space: dict[str, str]) -> str:
    """Return the text of README.md. What comes from the checkpoint is escaped, and none of it is in the YAML header.

    Args:
        prompt_length: of the prompt that ends every text, in tokens.
        space: what a Space has in the header besides.
    """
    config, saved = loaded.model.config, loaded.saved
    data, run = saved["data"], saved["run"]
    settings = run["settings"]  # of a resumed run: those that it began with
    init_from = str(settings.get("init_from"))
    hub_name = HUB_NAMES.get(init_from)
    header = {"library_name": "transformers", "pipeline_tag": "text-classification", "base_model": hub_name}
    license_name = "mit" if hub_name else None  # of GPT-2's weights
    other = "with random initial weights" if init_from == "scratch" else "from a folder, a file or the hub"
    left_out = {*MAY_CHANGE, "n_layer", "n_head", "n_embd"} - {"epochs", "max_steps"}  # its own shape stands above
    training = {name: repr(value) for name, value in settings.items() if name not in left_out}
    training |= {name: in_words(run[name]) for name in ("started", "git", "versions", "device", "dtype") if name in run}
    return CARD.format(
        header=ModelCardData(**header, license=license_name, **space).to_yaml(),
        task=plain(data["task"]),
        base=f"[{hub_name}](https://huggingface.co/{hub_name})" if hub_name else f"A GPT-2 {other}",
        parameters=sum(p.numel() for p in loaded.model.parameters()),
        config=config,
        classes=table("number", "class", dict(enumerate(data["label_names"]))),
        tokens=config.block_size - prompt_length,
        prompt=PROMPT.format(plain(repr(saved["settings"]["prompt"]))) if prompt_length else "",
        space=SPACE if data["leading_space"] else "",
        result=result(data["examples"]["dev"], saved["progress"]),
        calibration=CALIBRATED.format(**loaded.calibration) if loaded.calibration else NOT_CALIBRATED,
        training=table("", "in this run", training),
    )


def result(examples: int, progress: dict[str, Any]) -> str:
    """Return the card's sentence on the accuracy that was measured on the dev split for these very weights."""
    best = progress["best"]
    if not best or best["step"] != progress["step"]:
        return "No accuracy was measured for these weights."
    low, high = wilson_interval(round(best["accuracy"] * examples), examples)
    macro_f1 = f", macro-F1 {best['macro_f1']:.3f}" if "macro_f1" in best else ""
    return (
        f"Accuracy **{best['accuracy']:.3f}** (95% Wilson interval {low:.3f} to {high:.3f}, {examples:,} examples)"
        f"{macro_f1} and loss {best['loss']:.4f} on the dev split, measured in the run after epoch "
        f"{best['epoch']:.4g}, which was chosen on this very split: that flatters it."
    )


def table(first: str, second: str, rows: dict[Any, Any]) -> str:
    """Return a Markdown table of two columns."""
    lines = [f"| {first} | {second} |", "|---|---|"]
    return "\n".join(lines + [f"| {plain(key)} | {plain(value)} |" for key, value in rows.items()])


def in_words(fact: Any) -> str:
    """Return a run's fact on one line."""
    return ", ".join(f"{key} {part}" for key, part in fact.items()) if isinstance(fact, dict) else str(fact)


def plain(value: Any) -> str:
    """Return text that Markdown shows as it is, on one line and in a table, too."""
    return re.sub(r"([\\`*_\[\]<>|~&$#])", r"\\\1", printable(str(value)))
