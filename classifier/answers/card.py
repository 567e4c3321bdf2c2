"""The model card of an exported folder: what the model reads, how good it is, how it was trained."""

import re
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from classifier.answers.models import Classifier
from classifier.answers.significance import wilson_interval
from classifier.errors import printable
from classifier.gpt2 import HUB_NAMES
from classifier.settings import MAY_CHANGE

TEMPLATE = """\
---
{{ card_data }}
---
# {{ task }}: a text classifier

```python
from transformers import pipeline

classify = pipeline("text-classification", model="path/to/this/folder", truncation=True)
classify(["A lovely film.", "A dull mess."], batch_size=16, top_k=None)  # the probability of every class
```
Classes: {{ classes }}. The {{ tokens }} tokens of a text are read; an empty text cannot be classified.
{% if columns %}Join the columns of a text by line ends, in this order, without blank ones: {{ columns }}.
{% endif %}{{ result }} Nothing was measured on a test set, or on texts of another kind, time or language.

{% for name, value in facts %}- {{ name }}: {{ value }}
{% endfor %}"""


def model_card(classifier: Classifier, tokens: str) -> str:
    """Return the text of README.md, for a model that reads these tokens of a text, such as "last 64"."""
    data, run, progress = (classifier.saved[part] for part in ("data", "run", "progress"))
    task, best = data["task"], progress["best"]
    base = HUB_NAMES.get(run.get("initial_weights") or run["settings"].get("init_from"))
    header = ModelCardData(library_name="transformers", pipeline_tag="text-classification", base_model=base)
    header.license = "mit" if base else None  # of GPT-2's weights
    result = "No accuracy was measured for these weights."
    if best and best["step"] == progress["step"]:
        accuracy, examples = best["accuracy"], data["examples"]["dev"]
        low, high = wilson_interval(round(accuracy * examples), examples)
        result = f"Accuracy **{accuracy:.3f}** (95% Wilson interval {low:.3f} to {high:.3f}, {examples:,} examples) on "
        result += "the dev split, an optimistic figure: the best epoch was chosen on it."
        measured = EvalResult("text-classification", "text", printable(task), "accuracy", accuracy, dataset_split="dev")
        header.model_name, header.eval_results = printable(task), [measured]
    hidden = MAY_CHANGE - {"epochs", "max_steps"}  # paths, and what changes no result
    facts = {name: value for name, value in run["settings"].items() if name not in hidden}
    facts |= {name: getattr(classifier.model.config, name) for name in ("n_layer", "n_head", "n_embd")}
    facts |= {name: run[name] for name in ("started", "git", "versions", "device", "dtype") if name in run}
    words: dict[str, Any] = {"task": escaped(task), "tokens": tokens}
    words["classes"] = escaped(", ".join(data["label_names"]))
    if len(classifier.text_columns) > 1:
        words["columns"] = escaped(", ".join(classifier.text_columns))
    words["facts"] = [(escaped(name), escaped(repr(value))) for name, value in facts.items()]
    return str(ModelCard.from_template(header, template_str=TEMPLATE, result=result, **words))


def escaped(text: str) -> str:
    """Return text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_\[\]<>|~&$#])", r"\\\1", printable(text))
