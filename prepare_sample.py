"""Prepare the sample, short film reviews that come with this repository: TSV files -> data/sample/*.bin.

python prepare_sample.py

For data of your own, prepare_tsv.py does the same and more.
"""

from pathlib import Path

import errors
from dataset import prepare

LABEL_NAMES = ["negative", "positive"]
BLOCK_SIZE = 64  # as in config/finetune_sample.py; only the table uses it
FOLDER = Path("data/sample")


def main() -> None:
    errors.argument_parser(__doc__).parse_args()
    files = {"train": FOLDER / "train.tsv", "dev": FOLDER / "dev.tsv"}
    prepare("sample", files, LABEL_NAMES, BLOCK_SIZE, FOLDER)


if __name__ == "__main__":
    errors.run(main)
