"""Prepare SST, sentences of film reviews in five classes: data/sst/*.bin.

python prepare_sst.py                # downloads the files that are missing
python prepare_sst.py --source DIR   # reads the files from DIR
python prepare_sst.py --phrases      # also trains on the labelled phrases of
                                     # the sentences: data/sst-phrases/*.bin
"""

from pathlib import Path

from classifier import errors
from classifier.data.download import find_files
from classifier.data.prepare import course_parser, prepare_course

# a script for another TSV task is a copy of this one with other facts
URL = "https://raw.githubusercontent.com/gpoesia/minbert-default-final-project/7ac8260577fc12a86c7aaf38918056c30054ef39/data/"
FILES = {  # split: (file name, sha256)
    "train": ("ids-sst-train.csv", "03b2b625c090f94a6afd59f114cde5282e2053aab0b101e87ed695d8a0c5b1df"),
    "dev": ("ids-sst-dev.csv", "a186ce94577635fbe10beaaddd50f16cccf6c30973221cefdf90deed2a584bfe"),
    "test": ("ids-sst-test-student.csv", "bdd5a767faa0c26782117e37767ece154c30d5d04fb8727d09c71e3850a55c7b"),
}
TREES_URL = "https://nlp.stanford.edu/sentiment/trainDevTestTrees_PTB.zip"
TREES = {"trees": ("trees/train.txt", "e2f3f41b0b1e6d4dddc0effe3bfc2d27ed8928079aa9a03d652311614fc5feb7")}
COLUMNS = {"id": ["id"], "text": ["sentence"], "label": ["sentiment"]}  # several of text are joined by line ends
LABELS = {"0": "very negative", "1": "negative", "2": "neutral", "3": "positive", "4": "very positive"}
FOLDER = Path("data/sst")


def main() -> None:
    parser = course_parser(__doc__)
    parser.add_argument("--phrases", action="store_true", help="also train on the labelled phrases: data/sst-phrases")
    options, folder, tree_file = parser.parse_args(), FOLDER, None
    files = find_files(FILES, options.source, FOLDER, URL)
    if options.phrases:
        folder, tree_file = Path(f"{FOLDER}-phrases"), find_files(TREES, options.source, FOLDER, TREES_URL)["trees"]
    prepare_course(FOLDER.name, files, COLUMNS, LABELS, folder, tree_file)


if __name__ == "__main__":
    errors.run(main)
