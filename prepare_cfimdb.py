"""Prepare CFIMDB, highly polar film reviews in two classes: TSV files -> data/cfimdb/*.bin.

python prepare_cfimdb.py                # downloads the course's files, unless they are in data/cfimdb/ already
python prepare_cfimdb.py --source DIR   # takes them from DIR
python prepare_cfimdb.py --detokenize   # turns "It 's fun ." into "It's fun.", as GPT-2 knows text
"""

from classifier import errors
from classifier.prepare import prepare_course_task

URL = "https://raw.githubusercontent.com/gpoesia/minbert-default-final-project/7ac8260577fc12a86c7aaf38918056c30054ef39/data/"
FILES = {  # split: (file name, sha256)
    "train": ("ids-cfimdb-train.csv", "140fc513045a966109faed46a5c7a898767b96714d71bcb9c15f659129fadcea"),
    "dev": ("ids-cfimdb-dev.csv", "3087f571b66860fe5d035b5a018d08202ad3fd3720e4821c04b2acf6c7ded559"),
    "test": ("ids-cfimdb-test-student.csv", "7ae611548c9eac879e9ebb406cc9f8ae68ff12f78090e4965af5cbdfa06240f4"),
}
LABEL_NAMES = ["negative", "positive"]
BLOCK_SIZE = 512  # as in config/finetune_cfimdb.py; only the table uses it

if __name__ == "__main__":
    errors.run(lambda: prepare_course_task(__doc__, "cfimdb", URL, FILES, LABEL_NAMES, BLOCK_SIZE))
