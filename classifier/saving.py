"""best.pt and last.pt of a run: what they hold is what its Progress says, whatever happens to them."""

import secrets
from typing import Any

import torch
from tqdm import tqdm

from classifier import checkpoint, distributed
from classifier.errors import UserError
from classifier.files import file_sha256
from classifier.progress import Progress
from classifier.record import Record
from model import GPT


class Checkpoints:
    """Writes both files. What cannot be written to best.pt waits in memory, and is written with the next last.pt."""

    def __init__(
        self,
        record: Record,
        progress: Progress,
        model: GPT,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        **parts: dict[str, Any],
    ) -> None:
        """Begin with none; a resumed run's call take_up.

        Args:
            parts: data and settings, which both files hold.
        """
        self.record, self.progress, self.parts = record, progress, parts
        self.model, self.optimizer, self.scaler = model, optimizer, scaler
        self.waiting: tuple[GPT, dict[str, Any]] | None = None  # for best.pt: a model, and its progress

    def take_up(self) -> None:
        """Take up what is there of a resumed run: the best.pt, or weights in last.pt that should be in best.pt."""
        self.follow_best()
        if self.progress.unsaved.get("step") == self.progress.step:
            self.offer_best(self.progress.unsaved)

    def follow_best(self) -> None:
        """Have progress tell of the best.pt that is there, whatever it told of before.

        Raises:
            UserError: it is damaged, or of another run.
        """
        path, told = self.record.out / "best.pt", self.progress.best
        if told and path.is_file() and file_sha256(path) == told.get("sha256"):
            return
        self.progress.best = found = checkpoint.evaluation_in(path, self.record.facts)
        if told and not found:
            print(f"note: {path} is gone, and with it the best weights up to here")
        elif found.get("step") != told.get("step"):
            print(f"note: {path} is of epoch {found['epoch']:.4g}, which the record did not know: it is put right")

    @property
    def best(self) -> dict[str, Any]:
        """The best evaluation whose weights are at hand, in best.pt or waiting for it."""
        return self.waiting[1]["best"] if self.waiting else self.progress.best

    def offer_best(self, evaluation: dict[str, Any]) -> None:
        """Let the model as it is now, with its evaluation, go to best.pt with the next save."""
        self.waiting = self.model, self.progress.stored() | {"best": evaluation, "unsaved": {}}

    def save(self) -> None:
        """Write best.pt, if something waits for it, and last.pt, which knows whether that could be done.

        Of several processes only the first writes, and keeps a copy of what it could not write.
        """
        if distributed.rank() > 0:
            return
        progress = self.progress
        if self.waiting:
            self._write_best(*self.waiting)
        state = {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}
        self.record.write_last(self.model, progress.best, progress=progress.stored(), **self.parts, **state)

    def _write_best(self, model: GPT, at_its_time: dict[str, Any]) -> None:
        progress, evaluation = self.progress, at_its_time["best"]
        if written := self.record.write_best(model, evaluation, progress=at_its_time, **self.parts):
            progress.best, self.waiting = written, None
        else:
            if model is self.model:  # the training goes on with it
                self.waiting = checkpoint.copied(model), at_its_time
            if progress.is_better(evaluation, progress.unsaved):
                progress.unsaved = evaluation
        if not progress.is_better(progress.unsaved, progress.best):
            progress.unsaved = {}

    def complete(self) -> None:
        """Write what could not be written before, and note what is missing at the end of a run as not written."""
        progress, failed = self.progress, self.record.failed
        self.keep_folder()
        if self.waiting or failed.keys() & {"log.csv", "last.pt"}:
            self.save()
        path = self.record.out / "best.pt"
        try:
            self.follow_best()
        except UserError as error:
            progress.best, failed["best.pt"] = {}, str(error)
        if not progress.best:
            failed.setdefault("best.pt", f"{path} is missing")
        if lost := progress.unsaved:
            failed["best.pt"] = (
                f"{path} lacks the best weights, of epoch {lost['epoch']:.4g}: they could not be written"
            )

    def keep_folder(self) -> None:
        """Go on in a new folder where the run's was removed; where another run has taken its place, save beside.

        Raises:
            UserError: another run has taken its place.
        """
        record = self.record
        if record.is_held():
            return
        if self.progress.best:
            tqdm.write(f"note: {record.out} was removed, and with it the best weights up to here")
        self.progress.best = {}
        try:
            record.move_to(record.out)
        except OSError:  # what is written next will meet it again, and tell
            pass
        except UserError:
            taken = record.out
            record.move_to(taken.with_name(f"{taken.name}-{secrets.token_hex(4)}"))
            self.save()
            raise UserError(
                f"{taken} was removed, and another run has its place. Stopped after {self.progress.step} steps: "
                f"--init_from=resume --out_dir={record.out} goes on"
            ) from None
