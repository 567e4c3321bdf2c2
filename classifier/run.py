"""One run: its folder, where it stands, and everything that it writes, prints and obeys while finetune.py trains."""

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from classifier import checkpoint, distributed
from classifier.display import Display, show_results
from classifier.errors import UserError
from classifier.facts import run_facts
from classifier.files import hold
from classifier.initial import load_resumable
from classifier.progress import Progress
from classifier.record import Record, refuse_another_run, when_ended
from classifier.saving import Checkpoints
from classifier.settings import ARE_LOCAL
from classifier.signals import Stopped, ignore_signals, note_signals
from model import GPT

SECONDS_BETWEEN_SAVES = 600  # where save_interval is 0


class Run:
    """A run, which finetune.py tells in this order that it began, is ready, stepped and evaluated, again and again."""

    def __init__(self, settings: SimpleNamespace, data: dict[str, Any]) -> None:
        self.settings, self.data, self.out = settings, data, Path(settings.out_dir)
        self.progress = Progress.planned(settings, data["examples"]["train"])
        self.is_first = distributed.rank() == 0
        self.lock = self.record = self.display = self.model = self.saved = None  # saved: a resumed run's last.pt

    @classmethod
    @contextmanager
    def open(cls, settings: SimpleNamespace, data: dict[str, Any]) -> Iterator["Run"]:
        """Give a new run, or the one that --init_from=resume goes on with; at the end of the block say how it ended.

        A signal, or the end of another process, stops it: last.pt is saved.

        Args:
            data: the facts that initial.load_data returns.

        Raises:
            UserError: out_dir holds another run or is in use, there is nothing to resume, or not all could be written.
        """
        run = cls(settings, data)
        if settings.init_from == "resume":
            if run.is_first and run.out.is_dir():
                run.lock = hold(run.out)  # until the process ends
            run.model, run.saved = load_resumable(settings, run.out / "last.pt", data)
        elif run.is_first:
            refuse_another_run(run.out, settings.overwrite)
        try:
            yield run
        except Stopped as signal:
            run._stop()
            sys.exit(128 + signal.args[0])
        except RuntimeError as error:
            if run.display and distributed.is_lost_peer(error):
                run._stop()
            raise
        run._finish()

    def began(
        self, model: GPT, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, device_reason: str
    ) -> None:
        """Take possession of out_dir and begin the record, or take up everything where the resumed run left it."""
        settings, progress = self.settings, self.progress
        if self.saved:
            facts = self._take_up(self.saved, optimizer, scaler)
        else:
            if self.is_first:
                self.out.mkdir(parents=True, exist_ok=True)
                self.lock = hold(self.out)
                refuse_another_run(self.out, settings.overwrite)  # one that has begun in the meantime
            facts = run_facts(vars(settings), self.data, model, device_reason)
        facts["settings"] |= {"epochs": settings.epochs, "max_steps": settings.max_steps}  # may differ on resume
        facts["processes"] = distributed.size()
        common = {name: value for name, value in vars(settings).items() if name not in ARE_LOCAL}
        distributed.refuse_differences(common | {"data": self.data["files"], "step of last.pt": progress.step})
        self.record = Record(settings, facts, self.lock, progress)
        parts = {"data": self.data, "settings": vars(settings)}
        self.checkpoints = Checkpoints(self.record, progress, model, optimizer, scaler, **parts)
        if self.saved and self.is_first:
            self.checkpoints.take_up()
        if self.saved and progress.is_done:
            has_ended = settings.lr_schedule == "cosine" and progress.step == progress.all_steps
            how = "its cosine has ended, so begin a new run" if has_ended else "raise epochs or max_steps to go on"
            print(f"note: {self.out / 'last.pt'} is at step {progress.step} of {progress.last_step} already: {how}")

    @property
    def is_complete(self) -> bool:
        """Whether the resumed run lacks nothing but, where it was killed in its last moment, a part of its record."""
        return self.progress.is_done and not self.progress.evaluation_is_due

    def ready(self) -> None:
        """Start the clock, show the progress and heed signals: the training begins."""
        self.display = Display(self.progress, is_hidden=not self.is_first)
        self.saved_at = time.monotonic()
        self.record.start_clock()
        self.signal_received = note_signals() if self.is_first else ignore_signals()
        if self.checkpoints.waiting:  # before a step changes the weights
            self._save()

    def _take_up(
        self, saved: dict[str, Any], optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
    ) -> dict[str, Any]:
        """Put a checkpoint's state into optimizer, scaler and progress; return the facts of its run."""
        checkpoint.load_optimizer_state(optimizer, saved["optimizer"], self.out / "last.pt")
        scaler.load_state_dict(saved["scaler"])
        self.progress.restore(saved["progress"])
        facts = {name: fact for name, fact in saved["run"].items() if name not in ("best", "unsaved")}
        if self.progress.is_done and (ended := when_ended(self.out / "run.json", facts["started"])):
            facts["ended"] = ended
        return facts

    def computed(self, examples: int) -> None:
        """Note that so many examples more are done in this process; stop if a signal has asked for it."""
        self.display.add(examples * distributed.size())
        self.stop_if_asked()

    def stop_if_asked(self, *_: Any) -> None:
        """Raise Stopped if a signal has come: called where nothing is half done that could not be dropped."""
        if number := self.signal_received():
            raise Stopped(number)

    def ran_out_of_memory(self, longest: int) -> None:
        """Have the same step taken again in smaller micro-batches; longest: the tokens of the longest sequence."""
        if distributed.size() > 1:  # all would have to agree, in the middle of a step
            raise UserError(f"out of memory: try --token_budget={self.progress.token_budget // 2}")
        self.progress.halve_token_budget(longest)
        self.display.set_back()

    def stepped(self, loss: float, grad_norm: float, learning_rate: float) -> None:
        """Count a step that was taken, log it, and save last.pt if that is due."""
        progress = self.progress
        examples = progress.examples_before(progress.step + 1) - progress.examples_before(progress.step)
        was_skipped = not math.isfinite(grad_norm)  # by the scaler, in float16
        progress.step += 1
        progress.skipped += was_skipped
        self.checkpoints.keep_folder()
        if progress.step == 1:
            self.record.begin()
        speed = self.record.add_row("train", examples, loss=loss, learning_rate=learning_rate, grad_norm=grad_norm)
        self.display.show_step(loss, learning_rate, speed, was_skipped)
        interval, time_is_up = self.settings.save_interval, time.monotonic() - self.saved_at > SECONDS_BETWEEN_SAVES
        is_due = progress.step % interval == 0 if interval else time_is_up
        if is_due and not progress.evaluation_is_due:
            self._save()
        self.stop_if_asked()
        self.record.begin_row()

    def evaluated(self, loss: float, accuracy: float) -> None:
        """Log an evaluation on the dev set; save last.pt, and best.pt if it is the best so far; draw the curves."""
        progress, checkpoints = self.progress, self.checkpoints
        checkpoints.keep_folder()
        self.record.add_row("dev", self.data["examples"]["dev"], loss=loss, accuracy=accuracy)
        evaluation = progress.evaluation(loss, accuracy)
        is_best = progress.is_better(evaluation, checkpoints.best)
        self.display.show_evaluation(loss, accuracy, is_best)
        if progress.is_regular(progress.step):
            progress.evaluated = progress.step
        if is_best:
            checkpoints.offer_best(evaluation)
        self._save()
        if not progress.is_done:  # else at the very end
            self.record.draw_curves()
        self.record.begin_row()

    def _save(self) -> None:
        self.checkpoints.save()
        self.saved_at = time.monotonic()

    def _stop(self) -> None:
        """Save what there is, without the step at hand, and say how to go on."""
        self.display.close()
        if self.progress.step > 0:
            self.checkpoints.keep_folder()
            self._save()
        is_saved = self.progress.step > 0 and "last.pt" not in self.record.failed
        if self.is_first:
            how = f": --init_from=resume goes on from {self.out / 'last.pt'}" if is_saved else ""
            print(f"stopped after {self.progress.step} steps{how}", file=sys.stderr)

    def _finish(self) -> None:
        """Complete the record, print the results, and tell of what is missing."""
        if self.display:
            self.display.close()
        if not self.is_first:
            return
        self.checkpoints.complete()
        self.record.complete(best=self.progress.best, unsaved=self.progress.unsaved)
        show_results(self.progress, self.out)
        if missing := list(self.record.failed.values()):
            raise UserError("the run is done, but not all of it could be written: " + "; ".join(missing))
        if self.progress.skipped == self.progress.step:
            raise UserError("no step was taken: the gradient was never finite in float16. Try dtype=float32")
        print(f"next: python evaluate.py --ckpt {self.out / 'best.pt'}")
