r"""Compare jobs that were run with several seeds each; others gain on the first.

for s in 1 2 3; do python finetune.py config/finetune_sst.py --seed=$s \
    --out_dir=out-reference/seed-$s; done
python bench/seeds.py out-reference out-phrases
python bench/seeds.py out-reference out-phrases --data_dir data/sst

The runs of a job must only differ in their seed. Mean and standard deviation
are over the seeds. A run's best evaluation was chosen on the dev set itself,
its last one was not. A gain's interval is from 10,000 resamples of seeds and
dev examples; p is McNemar's, of the ensembles.
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from classifier import errors
from classifier.answers.models import Classifier
from classifier.answers.significance import RESAMPLES, paired_difference
from classifier.data.dataset import load_meta, load_split, training_files
from classifier.errors import UserError
from classifier.files import file_sha256
from classifier.settings import MAY_CHANGE, differences
from classifier.training.predict import average

# a job's runs may differ in these: they change no result
FREE = (MAY_CHANGE | {"seed"}) - {"epochs", "max_steps", "patience", "init_from", "new_head"}
HEADER = """\
| job | seeds | best evaluation | last evaluation | ensemble of the best | gain, best | gain, last | p |
|---|---:|---:|---:|---:|---:|---:|---:|"""


class Job(NamedTuple):
    """What the runs of a job get right on the dev set."""

    best: np.ndarray  # (seeds, examples) bool, with each run's best.pt
    last: np.ndarray  # (seeds, examples) bool, with each run's last.pt
    ensemble: np.ndarray  # (examples,) bool, by the mean probabilities of the best


def main() -> None:
    parser = errors.argument_parser(__doc__)
    parser.add_argument("jobs", nargs="+", metavar="DIR", help="a folder with the out_dirs seed-1, seed-2 ... of a job")
    parser.add_argument("--data_dir", metavar="DIR", help="prepared folder (default: the first job's)")
    arguments = parser.parse_args()
    folders = [seed_folders(Path(job)) for job in arguments.jobs]
    for runs in folders:
        print_seeds(runs)
    data_dir = arguments.data_dir or ended_run(folders[0][0])["data"]["folder"]
    jobs = [answers(runs, data_dir) for runs in folders]
    print(HEADER)
    for name, job in zip(arguments.jobs, jobs, strict=True):
        print(row(name, job, jobs[0]))


def seed_folders(job: Path) -> list[Path]:
    """Find the folders of a job's runs, in the order of their seeds.

    Raises:
        UserError: there are none, one has not ended, or they differ in more than their seed.
    """
    folders = [path for path in job.glob("seed-*") if path.name.removeprefix("seed-").isdecimal()]
    if not folders:
        raise UserError(f"{job} has no folders seed-N, each the out_dir of a run of finetune.py")
    folders.sort(key=lambda path: int(path.name.removeprefix("seed-")))
    first = ended_run(folders[0])
    for folder in folders:
        run = ended_run(folder)
        if folder.name != f"seed-{run['seed']}":
            raise UserError(f"{folder} is a run with seed {run['seed']}: rename it, or run it with --seed=N again")
        unlike = differences(first["settings"], run["settings"], FREE)
        if run["data"]["files"] != first["data"]["files"]:
            unlike = "they were trained on different data"
        if unlike:
            raise UserError(f"{folder} and {folders[0]} cannot have one mean: {unlike}")
    return folders


def ended_run(folder: Path) -> dict[str, Any]:
    """Read the record of the run that has ended in a folder.

    Raises:
        UserError: there is none, or best.pt is not the file that it describes.
    """
    try:
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        ended, sha256 = run["ended"], run["best"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{folder / 'run.json'} is no record of a run that has ended: resume the run first") from None
    path = folder / "best.pt"
    if not ended or not path.is_file() or sha256 != file_sha256(path):
        raise UserError(f"{path} does not match the checksum in {folder / 'run.json'}")
    return run


def print_seeds(folders: list[Path]) -> None:
    """Print the best evaluation of each run of a job, and their mean."""
    runs = [ended_run(folder) for folder in folders]
    measure = runs[0]["settings"].get("best_by", "accuracy")
    best = [run["best"] for run in runs]
    values = [evaluation[measure] for evaluation in best]
    print(f"{'run':<40}{'best epoch':>12}{f'dev {measure}':>14}{'dev loss':>10}")
    for folder, evaluation, value in zip(folders, best, values, strict=True):
        print(f"{str(folder):<40}{evaluation['epoch']:>12.4g}{value:>14.3f}{evaluation['loss']:>10.4f}")
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    best_run = max(range(len(runs)), key=lambda run: (values[run], -best[run]["loss"]))
    print(f"mean {statistics.mean(values):.4f}, standard deviation {deviation:.4f}; best: {folders[best_run]}\n")


def answers(folders: list[Path], data_dir: str) -> Job:
    """Return what the runs in these folders have right on data_dir's dev set, which must be that of their record.

    Each computes in the format of numbers that it was trained in, so that its accuracies are those of its record.
    """
    dev, dev_files = load_split(data_dir, "dev"), training_files(load_meta(data_dir))["dev"]
    logits = {"best.pt": [], "last.pt": []}
    for folder in folders:
        run = ended_run(folder)
        if run["data"]["files"]["dev"] != dev_files:
            raise UserError(f"{folder} was evaluated on another dev set than {data_dir}'s")
        for name, found in logits.items():
            found.append(Classifier.load(folder / name, dtype=run["dtype"]).logits(dev))
    best, last = (np.stack([each.argmax(-1).numpy() == dev.labels for each in found]) for found in logits.values())
    return Job(best, last, average(logits["best.pt"]).argmax(-1).numpy() == dev.labels)


def row(name: str, job: Job, first: Job) -> str:
    """Return a job's row of the table."""
    cells = [name, str(len(job.best)), *(mean(right) for right in job[:2]), f"{job.ensemble.mean():.3f}"]
    if job is first:
        return f"| {' | '.join([*cells, '', '', ''])} |"
    for right, other in zip(job[:2], first[:2], strict=True):
        gain, low, high = mean_difference(right, other)
        cells.append(f"{gain:+.3f} ({low:+.3f} to {high:+.3f})")
    return f"| {' | '.join([*cells, f'{paired_difference(job.ensemble, first.ensemble).p:.2g}'])} |"


def mean_difference(first_right: np.ndarray, second_right: np.ndarray) -> tuple[float, float, float]:
    """Return the difference of two jobs' mean accuracies over their seeds, and its 95% bootstrap interval's ends.

    Drawn anew, 10,000 times, are each job's seeds and, for all of them in common, the examples: both are samples.

    Args:
        first_right: (seeds, examples) bool, whether each run of the first job is right.
        second_right: (seeds, examples) bool, the same of the second job; the seeds may be fewer or more.
    """
    rng = np.random.default_rng(0)
    examples, both = first_right.shape[1], (first_right, second_right)
    at_once = max(1, 10_000_000 // examples)  # resamples in memory
    differences: list[np.ndarray] = []
    for start in range(0, RESAMPLES, at_once):
        count = min(at_once, RESAMPLES - start)
        share = rng.multinomial(examples, np.full(examples, 1 / examples), count) / examples  # (resamples, examples)
        weights = [
            rng.multinomial(len(right), np.full(len(right), 1 / len(right)), count) / len(right) for right in both
        ]
        means = [(share @ right.T * weight).sum(1) for right, weight in zip(both, weights, strict=True)]
        differences.append(means[0] - means[1])
    low, high = np.quantile(np.concatenate(differences), (0.025, 0.975))
    return float(first_right.mean() - second_right.mean()), float(low), float(high)


def mean(right: np.ndarray) -> str:
    """Return the mean accuracy over the seeds, and its standard deviation."""
    accuracies = right.mean(1)
    deviation = accuracies.std(ddof=1) if len(accuracies) > 1 else 0.0
    return f"{accuracies.mean():.3f} ± {deviation:.3f}"


if __name__ == "__main__":
    errors.run(main)
