"""One run: its folder, where it stands, and everything that it writes and obeys while finetune.py trains.

There is one way back from whatever ends it: --init_from=resume goes on from last.pt, to the same bits. It writes in one
order, log.csv's rows, last.pt, best.pt, run.json, each file whole or not at all. So only the last two can be behind
last.pt, and resuming puts them right.
"""

import csv
import gc
import math
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from classifier import checkpoint, distributed
from classifier.errors import UserError, in_words, is_out_of_memory, tell
from classifier.files import file_sha256, hold, is_held, write_json, written_whole
from classifier.settings import ARE_LOCAL
from classifier.training.display import Display, open_trackers, show_results
from classifier.training.predict import loss_and_accuracy, macro_f1
from classifier.training.progress import Progress
from classifier.training.seeds import STOPPING, ended_run
from classifier.training.start import load_resumable, now, run_facts
from model import GPT

SECONDS_BETWEEN_SAVES = 60
HOPELESS = 20  # steps skipped one after another, from the first on
LOG = ["step", "epoch", "split", "loss", "accuracy", "learning_rate", "grad_norm", "examples_per_second", "seconds"]
LOG += ["macro_f1"]  # where it is asked for
WHOLE_ROW = re.compile(r"([0-9]+),[0-9.e-]+,(train|dev)(,[^,]*){6,7}\n")  # logs of before had no macro_f1


class Run:
    """A run, which finetune.py tells in this order that it began, is ready, stepped and evaluated, again and again.

    Of several processes only the first one writes.
    """

    def __init__(self, settings: SimpleNamespace, data: dict[str, Any]) -> None:
        """Begin a run, or take up the one that --init_from=resume goes on with; nothing is written yet.

        Args:
            data: the facts that start.load_data returns.

        Raises:
            UserError: out_dir holds another run or is in use, or there is nothing to resume.
        """
        self.settings, self.data, self.out = settings, data, Path(settings.out_dir)
        self.progress = Progress.planned(settings, data["examples"]["train"])
        self.is_first = distributed.rank() == 0
        self.model = self.saved = None  # of a resumed run: its model, and the content of its last.pt
        self.display, self.signals = None, []
        if settings.init_from == "resume":
            if self.is_first and self.out.is_dir():
                self.lock = hold(self.out)  # until the process ends
            self.model, self.saved = load_resumable(settings, self.out / "last.pt", data)
            return
        names, record = ["best.pt", "last.pt"], self.out / "run.json"
        if not record.is_file() or '"initial_weights_sha256"' not in record.read_text("utf-8", "replace"):
            names += ["run.json", "log.csv", "curves.png"]  # not of a run that ended before its first checkpoint
        found = [name for name in names if (self.out / name).is_file()]
        if found and self.is_first and not settings.overwrite:
            raise UserError(
                f"{self.out} holds another run ({', '.join(found)}): go on with it by --init_from=resume, "
                f"choose another --out_dir, or replace it by --overwrite=True"
            )

    def began(
        self, model: GPT, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, device_reason: str
    ) -> None:
        """Take possession of out_dir, or take up everything where the resumed run left it."""
        settings, progress = self.settings, self.progress
        self.model, self.optimizer, self.scaler = model, optimizer, scaler
        if self.saved:
            checkpoint.load_training_state(optimizer, scaler, self.saved, self.out / "last.pt")
            progress.restore(self.saved["progress"])
            self.facts = {name: fact for name, fact in self.saved["run"].items() if name != "best"}
        else:
            if self.is_first:
                self.out.mkdir(parents=True, exist_ok=True)
                self.lock = hold(self.out)
            self.facts = run_facts(vars(settings), self.data, model, device_reason)
        self.facts["settings"] |= {"epochs": settings.epochs, "max_steps": settings.max_steps}  # may differ on resume
        self.facts["processes"] = distributed.size()
        common = {name: value for name, value in vars(settings).items() if name not in ARE_LOCAL}
        distributed.refuse_differences(common | {"data": self.data["files"], "step of last.pt": progress.step})
        self.trackers = open_trackers(settings, self.facts, self.out, progress.step) if self.is_first else []
        if self.saved and self.is_first:
            self._put_best_right()
        if self.saved and progress.is_done:
            has_ended = settings.lr_schedule == "cosine" and progress.step == progress.all_steps
            how = "its cosine has ended, so begin a new run" if has_ended else "raise epochs or max_steps to go on"
            tell(f"note: {self.out / 'last.pt'} is at step {progress.step} of {progress.last_step} already: {how}")

    def _put_best_right(self) -> None:
        """Write best.pt where the run ended before it could.

        Raises:
            UserError: another best.pt is there than last.pt tells of, and last.pt does not have its weights.
        """
        path, step, told = self.out / "best.pt", self.progress.step, self.progress.best.get("step")
        found = checkpoint.step_of_best(path, self.facts)
        if found == told:
            return
        if told == step:
            self._write("best.pt")
        elif found is None:
            tell(f"note: {path} is gone, and with it the best weights up to here")
            self.progress.best = {}
        else:
            raise UserError(f"{path} is of step {found}, and last.pt tells of one of step {told}: move it elsewhere")

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to train or evaluate."""
        return self.progress.is_done and not self.progress.evaluation_is_due

    def ready(self) -> None:
        """Start the clock, show the progress and heed signals: the training begins."""
        self.display = Display(self.progress, is_hidden=not self.is_first)
        self.saved_at = self.row_began_at = time.monotonic()
        self.began_at = self.saved_at - self.progress.seconds
        for number in STOPPING:
            if not self.is_first:  # it heeds them, and its end is the others' end
                signal.signal(number, signal.SIG_IGN)
            elif signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                signal.signal(number, self._note_signal)
        if self.saved and self.is_first:
            self._open_record()

    def _note_signal(self, number: int, _: FrameType | None) -> None:
        """Have the run stop at the next point where nothing is half done; a second Ctrl-C ends it at once."""
        if self.signals and number == signal.SIGINT:
            os._exit(128 + number)
        self.signals.append(number)
        with suppress(OSError):  # os.write: print may be in the middle of something
            os.write(2, b"\nstopping, without the step at hand (Ctrl-C again: at once, without saving)\n")

    @contextmanager
    def underway(self) -> Iterator[None]:
        """Train for the length of a block, and complete the record; whatever ends it early, say how to go on."""
        try:
            yield
            if self.is_first:
                self._finish()
        except OSError as error:
            self.stop_if_asked()  # a terminal that is closed takes no more output, and sends SIGHUP
            raise UserError(f"{in_words(error)}; {self._stopped()}") from None
        except RuntimeError as error:
            if distributed.is_lost_peer(error):
                self._save_what_there_is()
            raise
        finally:
            if self.display:
                self.display.bar.close()

    def computed(self, examples: int) -> None:
        """Note that so many examples more are done in this process; stop if a signal has asked for it."""
        self.display.bar.update(examples * distributed.size())
        self.stop_if_asked()

    def stop_if_asked(self, *_: Any) -> None:
        """Stop if a signal has come: called where nothing is half done that could not be dropped."""
        if self.signals:
            self._save_what_there_is()
            sys.exit(128 + self.signals[0])

    def _save_what_there_is(self) -> None:
        """Save, without the step at hand, and say how to go on."""
        self._save()
        self.display.bar.close()
        with suppress(OSError):  # of a closed terminal
            if self.is_first:
                print(self._stopped(), file=sys.stderr)

    def _stopped(self) -> str:
        """Return in words where the run has stopped, and how to go on."""
        steps, last = f"stopped after {self.progress.step} steps", self.out / "last.pt"
        if not (self.progress.step and last.is_file()):  # before the first step, it is that of a run to be replaced
            return f"{steps}: no last.pt was written yet"
        return f"{steps}: --init_from=resume, with the same settings, goes on from {last}"

    def halve_micro_batches_after(self, error: Exception, longest: int) -> None:
        """Have the same step taken again in smaller micro-batches, if memory ran out; say so.

        Args:
            error: what was raised; if it is another one, it is raised again.
            longest: the tokens of the longest sequence.

        Raises:
            UserError: a micro-batch of that sequence alone did not fit, or several processes would have to agree.
        """
        if not is_out_of_memory(error):
            raise error
        before, after = self.progress.token_budget, max(self.progress.token_budget // 2, longest)
        if distributed.size() > 1:
            raise UserError(f"out of memory: try --token_budget={after}") from None
        if before <= longest:
            raise UserError(
                "out of memory with one sequence in memory at a time: try --activation_checkpointing=True, "
                "a smaller block_size, --trainable_blocks=0 or a smaller model"
            ) from None
        self.progress.token_budget = after
        tqdm.write(f"out of memory: the step is taken again in micro-batches of {after:,} tokens, not {before:,}")
        self.display.set_back()

    def stepped(self, loss: float, grad_norm: float, learning_rate: float) -> None:
        """Count a step that was taken, log it, and save last.pt if that is due."""
        progress = self.progress
        examples = progress.examples_before(progress.step + 1) - progress.examples_before(progress.step)
        was_skipped = not math.isfinite(grad_norm)  # by the scaler, in float16
        progress.step += 1
        progress.skipped += was_skipped
        if progress.step == 1 and self.is_first:  # not sooner, so that failing takes nothing away
            self._open_record()
        speed = self._add_row("train", examples, loss=loss, learning_rate=learning_rate, grad_norm=grad_norm)
        self.display.show_step(loss, learning_rate, speed)
        if progress.skipped == progress.step and (progress.step >= HOPELESS or progress.is_done):
            raise UserError(
                f"no step of {progress.step} was taken: no gradient was finite in float16. Try dtype=float32"
            )
        if self._save_is_due and not progress.evaluation_is_due:
            self._save()
        self.stop_if_asked()
        self.row_began_at = time.monotonic()

    def evaluated(self, logits: Tensor, labels: np.ndarray) -> None:
        """Log an evaluation on the dev set; save if it is the best so far or that is due, and draw the curves.

        Args:
            logits: (examples, K) on the CPU.
            labels: (examples,) int16.
        """
        progress = self.progress
        figures = dict(zip(("loss", "accuracy"), loss_and_accuracy(logits, labels), strict=True))
        if progress.best_by == "macro_f1":
            figures["macro_f1"] = macro_f1(logits, labels)
        self._add_row("dev", len(labels), **figures)
        evaluation = {"step": progress.step, "epoch": progress.epoch, **figures}  # of the weights as they are now
        if is_best := progress.is_better(evaluation, progress.best):
            progress.best = evaluation
        if progress.is_regular(progress.step):
            progress.evaluated = progress.step
        if is_saved := is_best or progress.is_done or self._save_is_due:
            self._save(is_best)
        self.display.show_evaluation(figures, is_best)
        if is_saved and not progress.is_done:  # else at the very end
            self._draw_curves()
        self.row_began_at = time.monotonic()

    def _finish(self) -> None:
        """Draw the curves, call the run ended, and print the results."""
        self._draw_curves()
        try:
            ended = ended_run(self.out)["ended"]  # a complete run that is resumed has ended before
        except UserError:
            ended = now()
        best = self.progress.best
        outcome = {"best": best | {"sha256": file_sha256(self.out / "best.pt")}} if best else {}
        write_json(self._place("run.json"), self.facts | outcome | {"ended": ended})
        if self.display:
            self.display.bar.close()
        show_results(self.progress, self.out)
        if best:
            print(f"next: python evaluate.py --ckpt {self.out / 'best.pt'}")

    # -------------------------------------------------------------------------
    # what it writes

    def _open_record(self) -> None:
        """Take away what a run before this one has left, and begin log.csv and run.json, or go on with them."""
        if not self.saved:
            for name in ("last.pt", "best.pt", "run.json", "curves.png"):  # last.pt first: half a run cannot be resumed
                (self.out / name).unlink(missing_ok=True)
        write_json(self.out / "run.json", self.facts)
        rows_until = (self.progress.step, self.progress.evaluated) if self.saved else (0, 0)
        self.log = open_log(self.out / "log.csv", *rows_until)

    def _add_row(self, split: str, examples: int, **figures: float) -> float:
        """Add a row of what was done with so many examples to log.csv and the trackers; return examples a second."""
        progress, done_at = self.progress, time.monotonic()
        progress.seconds, speed = done_at - self.began_at, examples / (done_at - self.row_began_at)
        row = {"step": progress.step, "epoch": progress.epoch, "split": split, **figures}
        row |= {"examples_per_second": speed, "seconds": progress.seconds}
        if self.is_first:
            try:
                csv.DictWriter(self.log, LOG, lineterminator="\n").writerow(row)
            except OSError as error:
                raise OSError(f"cannot write {self.out / 'log.csv'}: {error.strerror}") from None
        for track in self.trackers:
            track(row)
        return speed

    @property
    def _save_is_due(self) -> bool:
        if interval := self.settings.save_interval:
            return self.progress.step % interval == 0
        return time.monotonic() - self.saved_at > SECONDS_BETWEEN_SAVES

    def _save(self, is_best: bool = False) -> None:
        """Write last.pt, and best.pt where these weights are the best."""
        if self.is_first and self.progress.step:
            os.fsync(self.log.fileno())  # the log must not know of fewer steps than last.pt
            self._write("last.pt", optimizer=self.optimizer.state_dict(), scaler=self.scaler.state_dict())
            if is_best:
                self._write("best.pt")
        self.saved_at = time.monotonic()

    def _place(self, name: str) -> Path:
        """Return where a file of this run goes.

        Raises:
            UserError: the folder was removed, and another run may have its place.
        """
        if not is_held(self.out, self.lock):
            raise UserError(f"{self.out} was removed or replaced, so the run has stopped: nothing is written there")
        return self.out / name

    def _write(self, name: str, **state: dict[str, Any]) -> None:
        """Write a checkpoint."""
        facts = self.facts | ({"best": self.progress.best} if self.progress.best else {})
        parts = {"data": self.data, "settings": vars(self.settings), "progress": self.progress.stored(), "run": facts}
        checkpoint.save(self._place(name), self.model, **parts, **state)

    def _draw_curves(self) -> None:
        if self.is_first:
            from classifier.training.curves import draw_curves  # here, since importing matplotlib takes a second

            best_step, reference = self.progress.best.get("step", 0), self.settings.reference_accuracy
            draw_curves(self._place("curves.png"), self.out / "log.csv", best_step, reference)
            gc.collect()  # figures are cycles of megabytes, which else pile up


def open_log(path: Path, step: int, evaluated: int) -> IO[str]:
    """Open log.csv for rows; of a resumed run, those up to its step and its last evaluation stay."""
    rows = []
    if step and path.is_file():
        with open(path, encoding="utf-8", errors="replace", newline="") as f:
            found = [(line, WHOLE_ROW.fullmatch(line)) for line in f]  # a killed run may have left half a line
        rows = [row for row, whole in found if whole and int(whole[1]) <= (step if whole[2] == "train" else evaluated)]
    rows = [row.rstrip("\n") + "," * (len(LOG) - 1 - row.count(",")) + "\n" for row in rows]
    with written_whole(path, "w") as f:
        f.writelines([",".join(LOG) + "\n", *rows])
    return open(path, "a", buffering=1, newline="", encoding="utf-8")
