"""What a run keeps in its out_dir: checkpoints, log.csv, a row a step, run.json, all its facts, and curves.png."""

import gc
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

from tqdm import tqdm

from classifier import checkpoint, distributed
from classifier.errors import UserError
from classifier.facts import now
from classifier.files import file_sha256, hold, is_held, to_disk, written_whole
from classifier.log import append_to_log, begin_log
from classifier.progress import Progress
from classifier.schema import read_json
from classifier.trackers import open_trackers
from model import GPT


def refuse_another_run(out: Path, overwrite: bool) -> None:
    """Raise a UserError where out_dir holds another run, unless that may be replaced."""
    found = [name for name in ("best.pt", "last.pt") if (out / name).exists()]
    if found and not overwrite:
        raise UserError(
            f"{out} holds another run ({', '.join(found)}): go on with it by --init_from=resume, "
            f"choose another --out_dir, or replace it by --overwrite=True"
        )


class Record:
    """The files of a run and its trackers, in a folder that this process holds.

    What cannot be written is said, noted, does not end the training, and is written with what comes next. Of several
    processes only the first writes.
    """

    def __init__(self, settings: SimpleNamespace, facts: dict[str, Any], lock: IO | None, progress: Progress) -> None:
        """Begin a record, or take up that of a resumed run.

        Args:
            lock: of files.hold; the first process has it.
            progress: whose seconds it keeps up to date.
        """
        self.out, self.facts, self.lock, self.progress = Path(settings.out_dir), facts, lock, progress
        self.reference_accuracy = settings.reference_accuracy
        self.failed: dict[str, str] = {}  # what could not be written at the last attempt, and why
        self.rows: list[dict[str, float | str]] = []  # which log.csv has yet to get
        # up to which step and evaluation log.csv stays: the rest is cut off with its next row
        self.log_goes_to: tuple[int, int] | None = progress.step, progress.evaluated
        self.trackers = open_trackers(settings, facts, self.out, progress.step) if distributed.rank() == 0 else []

    def begin(self) -> None:
        """Take away what a run before this one has left, and write what a new run begins with.

        Not sooner than after its first step, so that failing changes nothing.
        """
        for name in ("run.json", "curves.png", "best.pt", "last.pt"):
            self._write(name, lambda path: path.unlink(missing_ok=True))
        self.write_facts()

    def is_held(self) -> bool:
        """Return whether the folder is still the one that this process holds."""
        return distributed.rank() > 0 or is_held(self.out, self.lock)

    def move_to(self, out: Path) -> None:
        """Go on in a new folder, where the one before was removed; what was in that is gone.

        Raises:
            UserError: another run is in there.
        """
        out.mkdir(parents=True, exist_ok=True)
        lock = hold(out)
        refuse_another_run(out, overwrite=False)
        self.lock.close()
        self.out, self.lock, self.log_goes_to = out, lock, (0, 0)
        self.write_facts()

    def start_clock(self) -> None:
        """Count the seconds from now on, beyond those of the earlier parts of a resumed run."""
        self.began_at = time.monotonic() - self.progress.seconds
        self.begin_row()

    def begin_row(self) -> None:
        """Count for the next row's speed what is done from now on."""
        self.row_began_at = time.monotonic()

    def add_row(self, split: str, examples: int, **figures: float) -> float:
        """Add a row of what has been done with so many examples to log.csv and the trackers; return examples a second.

        Args:
            split: train or dev.
            figures: by their names in log.COLUMNS.
        """
        progress, done_at = self.progress, time.monotonic()
        progress.seconds, speed = done_at - self.began_at, examples / (done_at - self.row_began_at)
        row = {"step": progress.step, "epoch": progress.epoch, "split": split, **figures}
        row |= {"examples_per_second": speed, "seconds": progress.seconds}
        if distributed.rank() == 0:
            self.rows.append(row)
            self._write("log.csv", self._write_log)
        for track in self.trackers:
            self._write("trackers", lambda _, track=track: track(row), "cannot track the run")
        return speed

    def write_best(self, model: GPT, evaluation: dict[str, Any], **parts: dict[str, Any]) -> dict[str, Any]:
        """Write best.pt; return the evaluation with the file's sha256, or {} where it could not be written."""
        written = {}

        def write(path: Path) -> None:
            checkpoint.save(path, model, run=self.facts | {"best": evaluation}, **parts)
            written.update(evaluation, sha256=file_sha256(path))

        self._write("best.pt", write)
        return written

    def write_last(self, model: GPT, best: dict[str, Any], **parts: dict[str, Any]) -> None:
        """Write last.pt; the log, which must not know of fewer steps, goes to the disk before it."""
        self._write("log.csv", lambda path: (self._write_log(path), to_disk(path)))
        facts = self.facts | ({"best": best} if best else {})
        self._write("last.pt", lambda path: checkpoint.save(path, model, run=facts, **parts))

    def write_facts(self, **more: Any) -> None:
        """Write run.json, with more than was known at the beginning."""
        self._write("run.json", lambda path: write_json(path, self.facts | more))

    def complete(self, **outcome: dict[str, Any]) -> None:
        """Draw the curves and write run.json as they are at the end of a run."""
        self.draw_curves()
        ended = self.facts.pop("ended", None) or now()  # a complete run that is resumed has ended before
        self.write_facts(**{name: fact for name, fact in outcome.items() if fact}, ended=ended)
        self.lock.close()

    def draw_curves(self) -> None:
        """Draw curves.png from log.csv."""
        self._write("curves.png", self._draw, f"cannot draw {self.out / 'curves.png'}")

    def _draw(self, path: Path) -> None:
        from classifier.plots import draw_curves  # here, since importing matplotlib takes a second

        draw_curves(path, self.out / "log.csv", self.progress.best.get("step", 0), self.reference_accuracy)
        gc.collect()  # figures are cycles of megabytes, which else pile up

    def _write_log(self, path: Path) -> None:
        """Bring log.csv up to date."""
        if self.log_goes_to or not path.exists():
            begin_log(path, *(self.log_goes_to or (0, 0)))
            self.log_goes_to = None
        append_to_log(path, self.rows)
        self.rows.clear()

    def _write(self, name: str, action: Callable[[Path], None], failure: str = "") -> None:
        """Call action(path). A failure of any kind is forgiven where words for it are given: it is no checkpoint."""
        if distributed.rank() > 0:
            return
        try:
            if not self.is_held():
                raise UserError(f"{self.out} was removed or replaced")
            action(self.out / name)
            self.failed.pop(name, None)
        except Exception as error:
            if not failure and not isinstance(error, UserError | OSError):
                raise
            message = f"{failure}: {error}" if failure else str(error)
            if name not in self.failed:
                tqdm.write(f"warning: {message}; training goes on", file=sys.stderr)
            self.failed[name] = message


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON for people to read, too."""
    with written_whole(path, "w") as f:
        json.dump(content, f, indent=2, ensure_ascii=False)
        f.write("\n")


def when_ended(path: Path, started: str) -> str | None:
    """Return when a run that was started then has ended, where a whole run.json says so."""
    try:
        before = read_json(path, {"started": str, "ended": str})
    except UserError:
        return None
    return before["ended"] if before["started"] == started else None
