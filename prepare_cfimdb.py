"""Prepare CFIMDB, polar film reviews in two classes: data/cfimdb/*.bin.

python prepare_cfimdb.py                # downloads the files that are missing
python prepare_cfimdb.py --source DIR   # reads the files from DIR
"""

from pathlib import Path

from classifier import errors
from classifier.data.download import find_files
from classifier.data.prepare import course_parser, prepare_course

URL = "https://raw.githubusercontent.com/gpoesia/minbert-default-final-project/7ac8260577fc12a86c7aaf38918056c30054ef39/data/"
FILES = {  # split: (file name, sha256)
    "train": ("ids-cfimdb-train.csv", "140fc513045a966109faed46a5c7a898767b96714d71bcb9c15f659129fadcea"),
    "dev": ("ids-cfimdb-dev.csv", "3087f571b66860fe5d035b5a018d08202ad3fd3720e4821c04b2acf6c7ded559"),
    "test": ("ids-cfimdb-test-student.csv", "7ae611548c9eac879e9ebb406cc9f8ae68ff12f78090e4965af5cbdfa06240f4"),
}
COLUMNS = {"id": ["id"], "text": ["sentence"], "label": ["sentiment"]}
LABELS = {"0": "negative", "1": "positive"}
FOLDER = Path("data/cfimdb")


def main() -> None:
    options = course_parser(__doc__).parse_args()
    files = find_files(FILES, options.source, FOLDER, URL)
    prepare_course(FOLDER.name, files, COLUMNS, LABELS, FOLDER)


if __name__ == "__main__":
    errors.run(main)
