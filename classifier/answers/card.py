"""The model card of an exported folder: what the model reads, how good it is, how it was trained."""

import re

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
Classes: {{ classes }}. The last {{ tokens }} tokens of a text are read; an empty text cannot be classified.
{% if columns %}A text is its columns {{ columns }}: those that are not blank, in this order, joined by line ends.
{% endif %}{{ result }} Nothing was measured on a test set, or on texts of another kind, time or language.

{% for name, value in facts %}- {{ name }}: {{ value }}
{% endfor %}"""


def model_card(classifier: Classifier, tokens: int) -> str:
    """Return the text of README.md, for a model that reads so many tokens of a text."""
    data, run, progress = (classifier.saved[part] for part in ("data", "run", "progress"))
    best, measured, result = progress["best"], [], "No accuracy was measured for these weights."
    if best and best["step"] == progress["step"]:
        accuracy, examples = best["accuracy"], data["examples"]["dev"]
        low, high = wilson_interval(round(accuracy * examples), examples)
        result = (
            f"Accuracy **{accuracy:.3f}** (95% Wilson interval {low:.3f} to {high:.3f}, {examples:,} examples) on the "
        )
        result += "dev split, an optimistic figure: the best epoch was chosen on it."
        names = {"dataset_type": "text", "dataset_name": printable(data["task"]), "metric_type": "accuracy"}
        measured = [EvalResult(task_type="text-classification", dataset_split="dev", metric_value=accuracy, **names)]
    base = HUB_NAMES.get(run["settings"].get("init_from"))  # GPT-2's weights have the MIT license
    hub = {"library_name": "transformers", "pipeline_tag": "text-classification", "base_model": base}
    hub |= {"license": "mit" if base else None, "model_name": printable(data["task"]), "eval_results": measured}
    facts = {name: value for name, value in run["settings"].items() if name not in MAY_CHANGE}
    facts |= {name: run[name] for name in ("started", "git", "versions", "device", "dtype") if name in run}
    columns = classifier.text_columns if len(classifier.text_columns) > 1 else []
    words = {"task": data["task"], "classes": ", ".join(data["label_names"]), "columns": ", ".join(columns)}
    words = {name: escaped(word) for name, word in words.items()} | {"tokens": tokens, "result": result}
    words["facts"] = [(escaped(name), escaped(value)) for name, value in facts.items()]
    return str(ModelCard.from_template(ModelCardData(**hub), template_str=TEMPLATE, **words))


def escaped(value: object) -> str:
    """Return text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_\[\]<>|~&$#])", r"\\\1", printable(str(value)))
