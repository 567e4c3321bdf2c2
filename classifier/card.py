"""The model card of an exported folder: what the model is, how good it is, how it was trained."""

import re
from typing import Any

from classifier.answers import Loaded
from classifier.errors import printable
from classifier.settings import MAY_CHANGE
from classifier.significance import wilson_interval
from classifier.weights import HUB_NAMES

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
NOT_MEASURED = "Nothing was measured on a test set, or on texts of another kind, time or language"
CALIBRATED = """\
The logits are divided by {temperature:.3f}, a temperature that was fitted on the dev split and changes no prediction.
There the loss went from {before[loss]:.4f} to {estimate[loss]:.4f}, and the expected calibration error from
{before[calibration_error]:.3f} to {estimate[calibration_error]:.3f}, each fifth with a temperature fitted to the rest.
"""


def model_card(loaded: Loaded, prompt_length: int, more_header: list[str]) -> str:
    """Return the text of README.md. What comes from the checkpoint is escaped, and none of it is in the YAML header.

    Args:
        prompt_length: of the prompt that ends every text, in tokens.
        more_header: lines for the YAML header.
    """
    model, saved = loaded.model, loaded.saved
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
        header="\n".join(header + more_header),
        task=plain(data["task"]),
        base=base,
        parameters=sum(p.numel() for p in model.parameters()),
        config=model.config,
        classes=table("number", "class", dict(enumerate(data["label_names"]))),
        tokens=model.config.block_size - prompt_length,
        prompt=PROMPT.format(plain(repr(saved["settings"]["prompt"]))) if prompt_length else "",
        space=SPACE if data["leading_space"] else "",
        result=result(data, saved["progress"]),
        calibration=calibration(loaded.calibration),
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


def calibration(found: dict[str, Any]) -> str:
    """Return the card's sentences on whether probabilities can be believed, and on what is not known."""
    if not found:
        return f"{NOT_MEASURED}, or on whether the\nprobabilities are calibrated."
    return f"{CALIBRATED.format(**found)}{NOT_MEASURED}."


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
