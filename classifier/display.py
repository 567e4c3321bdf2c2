"""What a person sees of a training while it runs: a progress bar, or lines where there is no terminal."""

import os
import sys
import time
from collections import deque
from pathlib import Path

from tqdm import tqdm

from classifier.progress import Progress

SECONDS_BETWEEN_LINES = 5


class Display:
    """Shows a Progress, and the speed since the display was made."""

    def __init__(self, progress: Progress, is_hidden: bool) -> None:
        self.progress, self.first_step, self.began_at, self.line_due = progress, progress.step, time.monotonic(), 0.0
        done, total = (progress.examples_before(step) for step in (progress.step, progress.last_step))
        self.lately: deque[bool] = deque(maxlen=20)  # whether each of the last steps was skipped
        is_disabled = is_hidden or not sys.stderr.isatty()
        self.bar = tqdm(total=total, initial=done, unit="ex", disable=is_disabled, dynamic_ncols=True)

    def add(self, examples: int) -> None:
        """Show that so many examples of the step at hand are computed."""
        self.bar.update(examples)

    def set_back(self) -> None:
        """Show only what is counted in progress: the steps that have been taken."""
        self.bar.n = self.progress.examples_before(self.progress.step)

    def show_step(self, loss: float, learning_rate: float, examples_per_second: float, was_skipped: bool) -> None:
        """Show a step that was taken."""
        progress = self.progress
        self.lately.append(was_skipped)
        if len(self.lately) == self.lately.maxlen and sum(self.lately) > len(self.lately) / 2:
            what = f"{sum(self.lately)} of the last {len(self.lately)} steps were skipped"
            tqdm.write(f"warning: {what}: the gradient is not finite in float16; try dtype=float32", file=sys.stderr)
            self.lately.clear()
        self.set_back()
        self.bar.set_description(f"epoch {min(int(progress.epoch) + 1, progress.epochs)}/{progress.epochs}", False)
        self.bar.set_postfix(loss=f"{loss:.3f}")
        if self.bar.disable and time.monotonic() > self.line_due:
            taken, left = progress.step - self.first_step, progress.last_step - progress.step
            time_left = _duration((time.monotonic() - self.began_at) / taken * left)
            step = f"step {progress.step}/{progress.last_step}: loss {loss:.4f}, lr {learning_rate:.1e}"
            print(f"{step}, {examples_per_second:.1f} examples/s, {time_left} left", flush=True)
            self.line_due = time.monotonic() + SECONDS_BETWEEN_LINES

    def show_evaluation(self, loss: float, accuracy: float, is_best: bool) -> None:
        """Show how good the model is on the dev set."""
        mark = ", the best so far" if is_best else ""
        tqdm.write(f"epoch {self.progress.epoch:.4g}: dev accuracy {accuracy:.3f}, dev loss {loss:.4f}{mark}")

    def close(self) -> None:
        """Leave the bar as it stands."""
        self.bar.close()


def show_results(progress: Progress, out: Path) -> None:
    """Print what came out of a run in a folder."""
    if best := progress.best:
        print(f"best: epoch {best['epoch']:.4g}, dev accuracy {best['accuracy']:.3f}, dev loss {best['loss']:.4f}")
    if progress.skipped:
        print(f"skipped: {progress.skipped} of {progress.step} steps, whose gradient was not finite in float16")
    print(f"wall time {_duration(progress.seconds)}; the results are in {out}{os.sep}")


def _duration(seconds: float) -> str:
    """Return h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
