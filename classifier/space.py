"""The end of an exported folder's app.py, which export_hf.py --space puts together: transformers' model on the page."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from classifier.page import build, show

FOLDER = Path(__file__).resolve().parent
AT_ONCE = 16  # texts


def main() -> None:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    model = AutoModelForSequenceClassification.from_pretrained(FOLDER).eval()

    @torch.no_grad()
    def log_probabilities(texts: list[str]) -> Tensor:
        parts = []
        for start in range(0, len(texts), AT_ONCE):
            batch = tokenizer(texts[start : start + AT_ONCE], truncation=True, padding=True, return_tensors="pt")
            parts.append(model(**batch).logits.log_softmax(-1))
        return torch.cat(parts)

    names = [model.config.id2label[number] for number in range(model.config.num_labels)]
    show(build("Text classifier", names, log_probabilities, [], []))


if __name__ == "__main__":
    main()
