"""What any classifier must beat: the majority class, and a linear one on TF-IDF.

python bench/baselines.py data/sst
"""

import sys
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from classifier import errors
from classifier.data.dataset import Split, load_split
from classifier.data.tokenizer import load_tokenizer


def main() -> None:
    parser = errors.argument_parser(__doc__)
    parser.add_argument("data_dir", help="a prepared folder")
    folder = parser.parse_args().data_dir
    train, dev = (load_split(folder, name) for name in ("train", "dev"))
    majority = np.bincount(train.labels).argmax()
    print(f"majority class of train: dev accuracy {np.mean(dev.labels == majority):.3f}")
    classifier = make_pipeline(TfidfVectorizer(), LogisticRegression(max_iter=1000))
    classifier.fit(sentences(train), train.labels)
    print(f"TF-IDF + logistic regression: dev accuracy {classifier.score(sentences(dev), dev.labels):.3f}")


def sentences(split: Split) -> list[str]:
    """Return a split's sentences, decoded from its tokens."""
    encoding = load_tokenizer()
    ends = zip(split.offsets[:-1], split.offsets[1:], strict=True)
    return [encoding.decode(split.tokens[start:end].tolist()) for start, end in ends]


if __name__ == "__main__":
    errors.run(main)
