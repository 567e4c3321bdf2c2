"""Several processes on one job: the gradient of one process, work in equal parts, and one fate for all."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPO, command, random_model, random_split, refuse, save, succeed
from runs import patched, read_log
from torch import multiprocessing
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

from classifier import checkpoint, distributed
from classifier.training.batches import Texts, collate
from classifier.training.predict import predict
from classifier.training.start import freeze_all_but_last
from finetune import accumulate_gradient
from model import GPT, GPTConfig

NO_SCALER = torch.amp.GradScaler("cpu", enabled=False)
LOCAL = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
RUN = ["--data_dir=data/sample", "--init_from=scratch", "--n_layer=1", "--n_head=2", "--n_embd=16", "--block_size=32"]
RUN += ["--gradient_accumulation_steps=2", "--dtype=float32", "--epochs=2", "--dropout=0.0", "--device=cpu"]


# -----------------------------------------------------------------------------
# the mathematics, in processes of our own


def gradients(seed: int) -> list[dict]:
    """What one process computes of several steps: gradient, loss, tokens, reductions."""
    split = random_split(60, 40, 97, 5)
    results, lengths = [], split.lengths(np.arange(len(split)), 24)
    for examples, budget, change in [
        (51, 100, lambda model: None),
        (2, 100, lambda model: None),  # fewer than three processes
        (51, 100, lambda model: freeze_all_but_last(model, 1)),
        (51, 333, lambda model: setattr(model, "activation_checkpointing", True)),
    ]:
        torch.manual_seed(seed)  # of each process its own: the first's weights must win
        model = GPT(GPTConfig(5, 24, 97, 2, 2, 16))
        change(model)
        texts, replica, reductions = Texts(split, model), distributed.parallel(model), []
        if replica is not model:

            def hook(group, bucket, reductions=reductions):
                reductions.append(bucket.index())
                return default_hooks.allreduce_hook(group, bucket)

            replica.register_comm_hook(None, hook)
        indices = np.random.default_rng(0).permutation(60)[:examples]
        # no two machines hold as many tokens: what each cuts must not change how often they talk to each other
        step = collate(texts, indices, budget // (1 + distributed.rank()))
        loss = distributed.sum_over_processes(accumulate_gradient(replica, NO_SCALER, step, torch.float32))
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])
        mine = distributed.share(indices, lengths[indices])
        result = {"gradient": gradient, "loss": loss, "logits": predict(model, texts, torch.float32)}
        result |= {"examples": mine.tolist(), "tokens": int(lengths[mine].sum()), "reductions": len(reductions)}
        results.append(result)
    return results


def process(rank: int, size: int, port: int, folder: str) -> None:
    os.environ.update(LOCAL, MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size))
    torch.set_num_threads(1)
    with distributed.joined("cpu"):
        torch.save(gradients(seed=rank), f"{folder}/{rank}.pt")
    if sys.platform == "linux":  # a thread of gloo's that frees a tensor while Python ends would abort the process
        threads = [task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")]
        assert not [name for name in threads if "gloo" in name], threads


@pytest.mark.parametrize("size", [1, 3])
def test_the_gradient_is_that_of_one_process(size, tmp_path):
    alone = gradients(seed=0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(process, (size, port, str(tmp_path)), nprocs=size)
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(size)]
    for case, expected in enumerate(alone):
        for result in (of_rank[case] for of_rank in results):
            assert (result["gradient"] - expected["gradient"]).abs().max() < 1e-6
            assert result["loss"].item() == pytest.approx(expected["loss"].item(), abs=1e-6)
            torch.testing.assert_close(result["logits"], expected["logits"], atol=1e-5, rtol=1e-5)
            assert torch.equal(result["gradient"], results[0][case]["gradient"])  # replicas stay replicas
            assert result["reductions"] == (1 if size > 1 else 0)  # one bucket, once a step
        shares = [of_rank[case]["examples"] for of_rank in results]
        assert sorted(sum(shares, [])) == sorted(expected["examples"])
        tokens = [of_rank[case]["tokens"] for of_rank in results]
        assert max(tokens) - min(tokens) <= 24  # one sequence at most


# -----------------------------------------------------------------------------
# the command


def start(processes: int, *words: str, cwd, script=REPO / "finetune.py", restarts: int = 0) -> subprocess.Popen:
    options = ["--standalone", f"--nproc_per_node={processes}", f"--max_restarts={restarts}"]
    words = ["-m", "torch.distributed.run", *options, str(script), *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *words], cwd=cwd, env=os.environ | LOCAL, **pipes)


def torchrun(processes: int, *words: str, status: int = 0, **options) -> tuple[str, str]:
    """What processes that end with this status print, on stdout and on stderr."""
    process = start(processes, *words, **options)
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == status, errors
    return printed, errors


def assert_same_course(folder, expected) -> None:
    """That two logs tell of the same steps on the same examples, up to the order of summation."""
    ours, theirs = read_log(folder / "log.csv"), read_log(expected / "log.csv")
    assert [(row["step"], row["split"]) for row in ours] == [(row["step"], row["split"]) for row in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert float(one["loss"]) == pytest.approx(float(other["loss"]), abs=2e-5)


def test_two_processes_train_as_one_and_one_or_three_go_on_from_there(workspace):
    succeed("finetune.py", *RUN, "--out_dir=alone", cwd=workspace)
    printed, _ = torchrun(2, *RUN, "--out_dir=out", "--max_steps=10", cwd=workspace)
    assert printed.count("device: cpu") == 1 and printed.count("best: epoch") == 1  # one process speaks
    assert checkpoint.load(workspace / "out" / "last.pt")[1]["run"]["processes"] == 2
    torchrun(3, *RUN, "--out_dir=out", "--init_from=resume", "--max_steps=12", cwd=workspace)
    succeed("finetune.py", *RUN, "--out_dir=out", "--init_from=resume", cwd=workspace)
    assert_same_course(workspace / "out", workspace / "alone")


def test_the_head_alone_is_trained_by_two_processes_as_by_one(workspace):
    frozen = [*RUN, "--trainable_blocks=0", "--learning_rate=1e-3"]
    succeed("finetune.py", *frozen, "--out_dir=alone", cwd=workspace)
    torchrun(2, *frozen, cwd=workspace)
    assert_same_course(workspace / "out", workspace / "alone")


def test_one_process_that_fails_ends_all_with_its_message(workspace):
    patch = """
import os
from classifier.errors import UserError
clip, steps = torch.nn.utils.clip_grad_norm_, []
def failing_clip(*args):
    steps.append(1)
    if os.environ["RANK"] == "1" and len(steps) == 3:
        raise UserError("this machine is on fire")
    return clip(*args)
torch.nn.utils.clip_grad_norm_ = failing_clip
"""
    (workspace / "failing.py").write_text(patched(patch, "finetune.py", *RUN))
    _, errors = torchrun(2, status=1, cwd=workspace, script=workspace / "failing.py")
    assert re.search(r"^error: process 1: this machine is on fire$", errors, re.MULTILINE), errors
    assert "Traceback" not in errors.partition("torch/distributed")[0]


def test_a_signal_stops_all_and_the_run_goes_on(workspace):
    process = start(2, *RUN, "--epochs=1000", cwd=workspace)
    while "epoch 1:" not in (line := process.stdout.readline()):
        assert line, process.stderr.read()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    stopped = re.search(r"stopped after ([0-9]+) steps: to resume from out/last.pt", errors)
    assert stopped, errors
    end = int(stopped[1]) + 2
    succeed("finetune.py", *RUN, "--init_from=resume", "--epochs=1000", f"--max_steps={end}", cwd=workspace)
    rows = read_log(workspace / "out" / "log.csv")
    assert [int(row["step"]) for row in rows if row["split"] == "train"] == list(range(1, end + 1))


def test_what_several_processes_cannot_do_is_refused(workspace):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        alone = os.environ | LOCAL | {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": port}
        message = refuse("finetune.py", *RUN, cwd=workspace, run=command, env=alone)
    assert "cannot join the other processes" in message and "check torchrun's options" in message


# -----------------------------------------------------------------------------
# files answered by several processes

ANSWER = ["--ckpt=best.pt", "--device=cpu", "--dtype=float32", "--file=parts", "--predictions"]
DIES = """
import os, signal
from pathlib import Path
from classifier.answers import parts
write, calls = parts.write_table, []
def dying(path, *rest):
    write(path, *rest)
    calls.append(path)
    if os.environ["RANK"] == "1" and len(calls) == 2 and not Path("dead").exists():
        Path("dead").touch()
        os.truncate(path, path.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)
parts.write_table = dying
"""


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Five files of 30 rows; what one process makes of them, in `one`."""
    tmp_path = tmp_path_factory.mktemp("parts")
    save(tmp_path / "best.pt", random_model(3))
    (tmp_path / "parts").mkdir()
    random = np.random.default_rng(0)
    for part in range(5):
        rows = [f"{' film' * random.integers(1, 9)} {i},class {random.integers(3)}\n" for i in range(30)]
        (tmp_path / "parts" / f"{part}.csv").write_text("text,label\n" + "".join(rows))
    printed = succeed("evaluate.py", *ANSWER, "one", cwd=tmp_path, run=command, env=os.environ | LOCAL)
    (tmp_path / "report").write_text(printed[printed.index("\nloss ") :])
    return tmp_path


def answers_in(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_two_processes_answer_files_as_one(parts):
    words = {"cwd": parts, "script": REPO / "evaluate.py"}
    printed, _ = torchrun(2, *ANSWER, "two", **words)
    assert answers_in(parts / "two") == answers_in(parts / "one")
    assert (parts / "report").read_text() in printed and printed.count(" accuracy: ") == 1
    again, _ = torchrun(2, *ANSWER, "two", **words)
    assert "answered already: 3 of 3 files" in again and "answered already: 2 of 2 files" in again
    assert again.count(" accuracy: ") == 1
    one_file = [*ANSWER[:-2], "--file=parts/0.csv", "--predictions=0.csv"]
    _, errors = torchrun(2, *one_file, status=1, **words)
    assert "several processes share several files" in " ".join(errors.split())


def test_torchrun_restarts_after_a_process_was_killed(parts):
    (parts / "dying.py").write_text(patched(DIES, "evaluate.py", *ANSWER, "restarted"))
    printed, errors = torchrun(2, cwd=parts, script=parts / "dying.py", restarts=1)
    assert (parts / "dead").exists() and "failed (exitcode: -9) local_rank: 1" in errors
    assert answers_in(parts / "restarted") == answers_in(parts / "one")
    assert (parts / "report").read_text() in printed


def test_independent_processes_go_on_when_another_is_killed(parts):
    def run(rank: int, patch: str = "") -> subprocess.CompletedProcess:
        env = os.environ | LOCAL | {"RANK": str(rank), "WORLD_SIZE": "2"}
        words = [sys.executable, "-c", patched(patch, "evaluate.py", *ANSWER, "alone")]
        return subprocess.run(words, cwd=parts, env=env, capture_output=True, text=True)

    one = answers_in(parts / "one")
    (parts / "dead").unlink(missing_ok=True)
    assert run(1, DIES).returncode == -signal.SIGKILL
    assert answers_in(parts / "alone") == {"1.csv": one["1.csv"]}
    first = run(0)
    assert "left to other processes, the last of which prints the report: 1 of 5 files\n" in first.stdout
    assert answers_in(parts / "alone") == {name: content for name, content in one.items() if name != "3.csv"}
    last = run(1)
    assert "answered already: 1 of 2 files\n" in last.stdout and (parts / "report").read_text() in last.stdout
    assert answers_in(parts / "alone") == one
