"""The same job once for each of several seeds, and what came out: finetune.py --seeds=1,2,3."""

import json
import os
import signal
import statistics
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from classifier.data.dataset import load_meta, training_files
from classifier.errors import UserError
from classifier.files import file_sha256, write_json
from classifier.settings import MAY_CHANGE, differences

STOPPING = (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM))  # Windows has no SIGHUP


def run_seeds(script: str, settings: SimpleNamespace) -> None:
    """Run script with each of settings.seeds in out_dir/seed-N; print a table and write it to out_dir/seeds.json.

    The same command again goes on where it was stopped: done runs are skipped, begun ones resumed.

    Raises:
        UserError: a run was killed, or one that is there had other settings or other data.
        SystemExit: a run failed; it has said why.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise UserError("--seeds runs one job after the other, so not under torchrun: give each run its --seed")
    if settings.init_from == "resume":
        raise UserError("--seeds goes on where it was stopped by itself: leave out --init_from=resume")
    out = Path(settings.out_dir)
    results = {}
    for seed in settings.seeds:
        folder = out / f"seed-{seed}"
        if settings.overwrite or not _is_done(folder, settings):
            print(f"seed {seed}: {folder}", flush=True)
            resume = (folder / "last.pt").is_file() and not settings.overwrite
            _run([script, *sys.argv[1:], "--seeds=[]", f"--seed={seed}", f"--out_dir={folder}"], resume)
        results[seed] = ended_run(folder)["best"]
    measure = settings.best_by
    values = [best[measure] for best in results.values()]
    mean, deviation = statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0
    best_seed = max(results, key=lambda seed: (results[seed][measure], -results[seed]["loss"]))
    print(f"\n{'seed':>10}{'best epoch':>12}{f'dev {measure}':>14}{'dev loss':>10}")
    for seed, best in results.items():
        print(f"{seed:>10}{best['epoch']:>12.4g}{best[measure]:>14.3f}{best['loss']:>10.4f}")
    print(f"mean {mean:.4f}, standard deviation {deviation:.4f} ({len(results)} seeds); best: seed {best_seed}")
    summary = {"mean": mean, "standard_deviation": deviation, "best_seed": best_seed, "seeds": results}
    write_json(out / "seeds.json", summary)


def ended_run(folder: Path) -> dict[str, Any]:
    """Return the record of the ended run in a folder, whose best.pt is the file that it tells of.

    Raises:
        UserError: there is none.
    """
    try:
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        ended, sha256 = run["ended"], run["best"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{folder / 'run.json'} tells of no run that has ended: --init_from=resume ends it") from None
    path = folder / "best.pt"
    if not ended or not path.is_file() or sha256 != file_sha256(path):
        raise UserError(f"{path} is not the file that {folder / 'run.json'} tells of")
    return run


def _is_done(folder: Path, settings: SimpleNamespace) -> bool:
    """Return whether a run of the same length has ended in a folder.

    Raises:
        UserError: it had other settings, among them the name of its initial weights, or other data.
    """
    if not (folder / "last.pt").is_file():
        return False
    try:
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        before, files = run["settings"], run["data"]["files"]
    except (OSError, ValueError, KeyError, TypeError):  # resuming writes it anew
        return False
    now = dict(vars(settings))
    for each in (before, now):
        each["init_from"] = each["init_from"].removeprefix("./")  # as start.new_model notes a folder down
    free = (MAY_CHANGE | {"seed"}) - {"init_from", "new_head"}
    free |= {"dtype"} if settings.dtype == "auto" else set()
    other = differences(before, now, free)
    if training_files(load_meta(settings.data_dir)) != files:
        other = f"it was trained on other data than what {settings.data_dir} holds now"
    if other:
        raise UserError(
            f"{folder} holds a run that was another one: {other}. Name another --out_dir, or --overwrite=True"
        )
    try:
        ended_run(folder)
    except UserError:
        return False
    return (before["epochs"], before["max_steps"]) == (settings.epochs, settings.max_steps)


def _run(words: list[str], resume: bool) -> None:
    """Run a job to its end; a signal to this process stops it as it stops a run, and then this process."""
    process = subprocess.Popen([sys.executable, *words, *(["--init_from=resume"] if resume else [])])
    received = []

    def pass_on(number: int, _: Any) -> None:
        received.append(number)
        process.terminate()  # not SIGINT: Ctrl-C in a terminal has reached it already, and a second one would kill it

    old = {number: signal.signal(number, pass_on) for number in STOPPING}
    status = process.wait()
    for number, handler in old.items():
        signal.signal(number, handler)
    if received:
        print("stopped: the same command goes on from here", file=sys.stderr)
        sys.exit(128 + received[0])
    if status > 0:  # it has said why
        sys.exit(status)
    if status < 0:
        raise UserError(f"the run was killed by signal {-status}: the same command goes on from here")
