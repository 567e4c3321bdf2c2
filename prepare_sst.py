"""Prepare SST, film reviews' sentences in five classes: data/sst/*.bin.

python prepare_sst.py                # downloads the files that are missing
python prepare_sst.py --source DIR   # takes the TSV files from DIR
python prepare_sst.py --detokenize   # "It 's fun ." becomes "It's fun."
python prepare_sst.py --phrases      # the labelled phrases of the training
                                     # sentences, too: data/sst-phrases/*.bin
"""

from pathlib import Path

from classifier import errors
from classifier.data.download import find_files
from classifier.data.prepare import course_parser, prepare_course

FILES = {  # split: (file name, sha256)
    "train": ("ids-sst-train.csv", "03b2b625c090f94a6afd59f114cde5282e2053aab0b101e87ed695d8a0c5b1df"),
    "dev": ("ids-sst-dev.csv", "a186ce94577635fbe10beaaddd50f16cccf6c30973221cefdf90deed2a584bfe"),
    "test": ("ids-sst-test-student.csv", "bdd5a767faa0c26782117e37767ece154c30d5d04fb8727d09c71e3850a55c7b"),
}
TREES_URL = "https://nlp.stanford.edu/sentiment/trainDevTestTrees_PTB.zip"
TREES = {"trees": ("trees/train.txt", "e2f3f41b0b1e6d4dddc0effe3bfc2d27ed8928079aa9a03d652311614fc5feb7")}
LABEL_NAMES = ["very negative", "negative", "neutral", "positive", "very positive"]
FOLDER = Path("data/sst")
BLOCK_SIZE = 64  # as in config/finetune_sst.py; only the table uses it


def main() -> None:
    parser = course_parser(__doc__)
    parser.add_argument("--phrases", action="store_true", help="with the sentences' labelled phrases: data/sst-phrases")
    options, folder = parser.parse_args(), FOLDER
    files = find_files(FILES, options.source, FOLDER)
    tree_file = None
    if options.phrases:
        folder, tree_file = Path(f"{FOLDER}-phrases"), find_files(TREES, options.source, FOLDER, TREES_URL)["trees"]
    prepare_course("sst", files, LABEL_NAMES, BLOCK_SIZE, folder, options.detokenize, tree_file)


if __name__ == "__main__":
    errors.run(main)
