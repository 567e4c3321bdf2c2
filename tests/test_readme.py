"""Every command that README.md shows, run in the order of the page with small models: none can go stale."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPO, succeed, transformers_model

README = (REPO / "README.md").read_text(encoding="utf-8")
PROGRAMS = ("python", "make", "torchrun", "pip", "hf")
# shown, but not run here: what installs or needs a network, and what other tests run in full
ELSEWHERE = {
    "python -m venv .venv": "an installation",
    "pip install -r requirements.txt": "an installation",
    "pip install tensorboard": "an installation",
    "pip install wandb": "an installation",
    "hf download openai-community/gpt2 config.json model.safetensors --local-dir gpt2": "a download",
    "python bench/baselines.py data/sst": "run by test_baselines_of_the_results_table",
    "python finetune.py --help": "run by test_configurator.py",
}
FINETUNE = ["--max_steps=2", "--batch_size=4", "--gradient_accumulation_steps=1", "--device=cpu", "--dtype=float32"]


def shown_commands() -> list[str]:
    """The commands of the ```sh blocks, without comments, and of `code` in the text, each once."""
    found = []
    for block, code in re.findall(r"^```sh\n(.*?)^```$|`([^`]+)`", README, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines() or [" ".join(code.split())]:
            for command in re.sub(r"\s+#.*", "", line).split(" && "):
                words = command.split()
                if len(words) > 1 and words[0] in PROGRAMS:
                    found.append(" ".join(words))
    return list(dict.fromkeys(found))


COMMANDS = shown_commands()


def test_the_page_shows_the_commands_that_never_change():
    for command in (
        "python prepare_sst.py",
        "python finetune.py config/finetune_sst.py",
        "python evaluate.py --ckpt out/best.pt",
    ):
        assert command in COMMANDS
    assert len(COMMANDS) > 25 and set(ELSEWHERE) <= set(COMMANDS)


def test_every_file_of_the_repository_that_is_named_is_there():
    generated = {"config/finetune_mytask.py", "config.json", "model.safetensors", "seeds.json", "run.json", "log.csv"}
    generated |= {"my.tsv", "my_dev.tsv", "reviews.txt", "curves.png", "out/curves.png", "test.csv"}
    generated |= {f"ids-sst-{split}.csv" for split in ("train", "dev", "test-student")}
    names = set(re.findall(r"[\w/-]+\.(?:py|md|txt|json|csv|png|svg|tsv|safetensors)\b", README)) - generated
    missing = [name for name in names if not (REPO / name).exists()]
    assert not missing and len(names) > 30


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """The repository's files in a folder of their own, with the sample as data and a tiny GPT-2 where downloads go."""
    folder = tmp_path_factory.mktemp("readme")
    names = subprocess.run(["git", "ls-files", "-z"], cwd=REPO, capture_output=True, text=True, check=True).stdout
    for name in names.split("\0")[:-1]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPO / name, folder / name)
    for task in ("sst", "cfimdb"):
        (folder / "data" / task).mkdir()
        for split, source in (("train", "train"), ("dev", "dev"), ("test-student", "dev")):
            shutil.copy(
                folder / "data" / "sample" / f"{source}.tsv", folder / "data" / task / f"ids-{task}-{split}.csv"
            )
    transformers_model("GPT2LMHeadModel", folder / "gpt2", vocab_size=50257, n_positions=1024, n_embd=8, n_layer=1)
    rows = (REPO / "data" / "sample" / "train.tsv").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "my.tsv").write_text("".join(rows[:200]), encoding="utf-8")
    (folder / "my_dev.tsv").write_text("".join(rows[:1] + rows[200:240]), encoding="utf-8")
    (folder / "reviews.txt").write_text("A lovely film.\nA mess.\n", encoding="utf-8")
    return folder


def adapted(command: str, folder: Path) -> list[str]:
    """The same command for a small model, one machine and a new process."""
    command, _, stdin = command.partition(" < ")
    words = shlex.split(command.replace("DIR", "data/sst" if "prepare" in command or "make" in command else "gpt2"))
    if words[0] == "torchrun":
        words = [sys.executable, "-m", "torch.distributed.run", *words[1:]]
        words = [re.sub(r"nproc_per_node=\d+", "nproc_per_node=2", word) for word in words]
        if "--nnodes=2" in words:  # both machines here: this is the first, and the second is started beside it
            words = [word.replace("HOST", "127.0.0.1") for word in words]
    elif words[0] == "python":
        words[0] = sys.executable
    if "finetune.py" in words:
        steps = ["--max_steps=3"] if "--init_from=resume" in words else []
        words += [*FINETUNE, *steps]
        words += ["--overwrite=True"] if (folder / out_dir(words, folder) / "best.pt").exists() and not steps else []
    elif words[0] == "make":
        words.insert(1, "--dry-run")
    return words


def out_dir(words: list[str], folder: Path) -> str:
    """The folder that a finetune.py command writes."""
    (config,) = [word for word in words if word.startswith("config/")]
    named = [word.removeprefix("--out_dir=") for word in words if word.startswith("--out_dir=")]
    return named[0] if named else re.search(r'out_dir = "(.*)"', (folder / config).read_text())[1]


def test_every_command_works_in_the_order_of_the_page(clone):
    ran = 0
    for command in COMMANDS:
        if command in ELSEWHERE:
            continue
        words = adapted(command, clone)
        stdin = (clone / command.partition(" < ")[2]).read_text() if " < " in command else ""
        runs = [[word.replace("NODE", node) for word in words] for node in (("0", "1") if "NODE" in command else ("",))]
        processes = [subprocess.Popen(run, cwd=clone, stdin=-1, stdout=-1, stderr=-1, text=True) for run in runs]
        for process in processes:
            output, errors = process.communicate(stdin, timeout=600)
            assert process.returncode == 0, f"{command}\n{output}\n{errors}"
        if "--detokenize" in words:  # what is trained so far was trained on the other form, and so is the rest
            subprocess.run([sys.executable, "prepare_sst.py"], cwd=clone, check=True, capture_output=True)
        if words[0] == "make" and "help" not in words:
            assert_known(output)
        ran += 1
    assert ran + len(ELSEWHERE) == len(COMMANDS)
    for name in ("out/curves.png", "out/best.pt", "out/run.json", "plots/confusion.png", "out-hf/model.safetensors"):
        assert (clone / name).is_file()
    assert {path.name for path in (clone / "submission").iterdir()} == {
        "finetune-sst-dev-out.csv",
        "finetune-sst-test-out.csv",
    }


def assert_known(output: str) -> None:
    """That what a make target would run is what this page shows, or what CI runs."""
    for line in output.splitlines():
        command = line.replace(".venv/bin/", "").strip()
        if command.startswith("python ") and "-m" not in command:
            script = command.split()[1]
            assert (REPO / script).is_file(), line
            for word in re.findall(r"config/\S+", command):
                assert (REPO / word).is_file(), line


def test_baselines_of_the_results_table(tsv_dir, tmp_path):
    row = {"sst": ("0.253", "0.392"), "cfimdb": ("0.502", "0.914")}
    for task, (majority, regression) in row.items():
        succeed(f"prepare_{task}.py", "--source", tsv_dir, cwd=tmp_path)
        printed = succeed("bench/baselines.py", f"data/{task}", cwd=tmp_path)
        assert majority in printed and regression in printed
    assert re.search(r"majority class .*\| 0\.253 \| 0\.502 \|", README)
    assert re.search(r"TF-IDF .*\| 0\.392 \| 0\.914 \|", README)
