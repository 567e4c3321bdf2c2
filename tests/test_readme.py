"""Run every command and every Python code of README.md and docs/, in their order, with small models."""

import csv
import io
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPO, here, succeed, transformers_model

# in the order in which their commands are run
DOCS = ["own-data", "answers", "settings", "several-gpus", "troubleshooting", "how-it-works", "reliability"]
NAMES = ["README.md", *(f"docs/{name}.md" for name in DOCS)]
PAGES = {name: (REPO / name).read_text(encoding="utf-8") for name in NAMES}
README, TEXT = PAGES["README.md"], "\n".join(PAGES.values())
PROGRAMS = ("python", "make", "torchrun")  # pip and hf need a network
ELSEWHERE = {  # shown, but not run here
    "python -m venv .venv": "an installation",
    "python bench/baselines.py data/sst": "run by test_baselines_of_the_results_table",
    "python finetune.py --help": "run by test_settings.py",
    "python app.py --ckpt out/best.pt": "run by test_page.py",
    "python evaluate.py --ckpt out/best.pt --calibrate calibrated.pt": "run by test_calibration.py: these know nothing",
}
SCRIPTS = [path for path in sorted([*REPO.glob("*.py"), *REPO.glob("bench/*.py")]) if '"__main__"' in path.read_text()]
ROWS = 60  # of each file of the sample: as many as show that a command works
FINETUNE = ["--batch_size=4", "--gradient_accumulation_steps=1", "--device=cpu", "--dtype=float32"]


def shown_commands() -> list[str]:
    """Return the commands of the ```sh blocks, without comments, and of `code` in the text, each once, in order."""
    text = re.sub(r"^```(?:python|text)\n.*?^```$", "", TEXT, flags=re.DOTALL | re.MULTILINE)
    found = []
    for block, code in re.findall(r"^```sh\n(.*?)^```$|`([^`]+)`", text, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines() or [" ".join(code.split())]:
            for command in re.sub(r"\s+#.*", "", line).split(" && "):
                words = command.replace("$s", "1").split()  # of a loop over seeds, the first
                if len(words) > 1 and words[0] in PROGRAMS:
                    found.append(" ".join(words))
    return list(dict.fromkeys(found))


COMMANDS = shown_commands()


def test_the_pages_show_the_commands_that_never_change():
    stable = {"make demo", "make test", "python prepare_sst.py", "python finetune.py config/finetune_sst.py"}
    assert stable | {"python evaluate.py --ckpt out/best.pt"} <= set(COMMANDS)
    assert len(COMMANDS) > 25 and set(ELSEWHERE) <= set(COMMANDS)


def test_every_page_is_tested_and_linked_from_the_readme():
    assert sorted(f"docs/{path.name}" for path in (REPO / "docs").glob("*.md")) == sorted(NAMES[1:])
    for name, page in PAGES.items():
        links = [link for link in re.findall(r"\]\(([^)]+)\)", page) if not link.startswith("https://")]
        files = [link.partition("#")[0] for link in links]
        missing = [file for file in files if not (REPO / name).parent.joinpath(file).is_file()]
        assert not missing, name
        assert name == "README.md" or name in re.findall(r"\]\(([^)]+)\)", README)


def test_every_file_of_the_repository_that_is_named_is_there():
    generated = {"config/finetune_mytask.py", "config.json", "model.safetensors", "run.json", "log.csv"}
    generated |= {"trees/train.txt", "my.csv", "my_dev.csv", "reviews.txt", "new.csv", "test.csv"}
    generated |= {"answered.csv", "curves.png", "out/curves.png"}
    generated |= {f"ids-sst-{split}.csv" for split in ("train", "dev", "test-student")}
    text = re.sub(r"\]\([^)]+\)", "]", TEXT)  # links stand in the test above
    text = text.replace("prepare_*.py", "")
    names = set(re.findall(r"[\w/-]+\.(?:py|md|txt|json|csv|png|svg|tsv|safetensors)\b", text)) - generated
    missing = [name for name in names if not (REPO / name).exists()]
    assert not missing and len(names) > 20


def test_every_module_of_the_package_is_named():
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", PAGES["docs/how-it-works.md"], re.MULTILINE)
    named = re.findall(r"`(\w+)`", " ".join(rows))
    modules = [path.stem for path in (REPO / "classifier").rglob("*.py") if path.stem != "__init__"]
    assert sorted(named) == sorted(modules)


def first_rows(name: str, count: int, skipped: int = 0) -> str:
    """The header of one of the sample's files and some of its rows."""
    header, *rows = (REPO / "data" / "sample" / f"{name}.tsv").read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join([header, *rows[skipped : skipped + count]])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_help_fits_a_terminal(script, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = succeed(script, "--help", cwd=tmp_path).splitlines()
    assert len(lines) > 5 and not [line for line in lines if len(line) > 80]


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
            rows = first_rows(source, ROWS)
            (folder / "data" / task / f"ids-{task}-{split}.csv").write_text(rows, encoding="utf-8")
    write_trees(folder / "data" / "sst")
    transformers_model("GPT2LMHeadModel", folder / "gpt2", vocab_size=50257, n_positions=1024, n_embd=8, n_layer=1)
    write_csv(folder / "my.csv", first_rows("train", ROWS))
    write_csv(folder / "my_dev.csv", first_rows("train", ROWS, skipped=ROWS))
    (folder / "new.csv").write_text("text,when\nA lovely film.,today\n,never\n", encoding="utf-8")
    (folder / "reviews.txt").write_text("A lovely film.\nA mess.\n", encoding="utf-8")
    return folder


def write_csv(path: Path, tsv: str) -> None:
    """Write rows of the sample as a spreadsheet does."""
    with open(path, "w", encoding="utf-8-sig", newline="") as f:
        csv.writer(f, delimiter=";").writerows(csv.reader(io.StringIO(tsv), delimiter="\t"))


def write_trees(folder: Path) -> None:
    """Write trees for the rows that stand in for SST's training sentences, and give these their leading space."""
    path = folder / "ids-sst-train.csv"
    header, *rows = (row.split("\t") for row in path.read_text(encoding="utf-8").splitlines())
    rows = [[*row[:2], " " + row[2], row[3]] for row in rows if not set(row[2]) & set('()"')]
    path.write_text("".join("\t".join(row) + "\n" for row in [header, *rows]), encoding="utf-8")
    (folder / "trees").mkdir()
    trees = [f"({row[3]} {' '.join(f'(2 {word})' for word in row[2].split())})\n" for row in rows]
    (folder / "trees" / "train.txt").write_text("".join(trees), encoding="utf-8")


def adapted(command: str) -> list[str]:
    """The same command for a small model and one machine."""
    command = command.partition(" < ")[0]
    words = shlex.split(command.replace("DIR", "data/sst" if "prepare" in command or "make" in command else "gpt2"))
    if words[0] == "torchrun":
        words = [sys.executable, "-m", "torch.distributed.run", *words[1:]]
        # both machines here: the first, and the second is started beside it; two processes in all
        processes = 1 if "--nnodes=2" in words else 2
        words = [re.sub(r"nproc_per_node=\d+", f"nproc_per_node={processes}", word) for word in words]
        words = [word.replace("HOST", "127.0.0.1") for word in words]
    if "finetune.py" in words:
        is_resume = "--init_from=resume" in words
        words = [re.sub(r"--n_embd=\d+", "--n_embd=8", word) for word in words]
        words += [*FINETUNE, "--max_steps=2"] if is_resume else [*FINETUNE, "--max_steps=1", "--overwrite=True"]
    elif words[0] == "make":
        words.insert(1, "--dry-run")
    return words


def run(command: str, folder: Path) -> str:
    """Run a command that must succeed: a script in this process, which has PyTorch, anything else in its own."""
    words = adapted(command)
    if words[0] == "python":
        stdin = (folder / command.partition(" < ")[2]).read_text() if " < " in command else ""
        done = here(*words[1:], cwd=folder, stdin=stdin)
        assert done.returncode == 0, f"{command}\n{done.stdout.decode()}\n{done.stderr.decode()}"
        return done.stdout.decode()
    runs = [[word.replace("NODE", node) for word in words] for node in (("0", "1") if "NODE" in command else ("",))]
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    processes = [subprocess.Popen(run, cwd=folder, text=True, **streams) for run in runs]
    for process in processes:
        output, errors = process.communicate(timeout=600)
        assert process.returncode == 0, f"{command}\n{output}\n{errors}"
    return output


def test_every_command_works_in_the_order_of_the_pages(clone, monkeypatch):
    for command in COMMANDS:
        if command in ELSEWHERE:
            continue
        output = run(command, clone)
        if command.startswith("make "):
            assert_known(output)
    for name in ("out/curves.png", "out/best.pt", "out/run.json", "plots/confusion.png", "out-hf/model.safetensors"):
        assert (clone / name).is_file()
    submitted = {f"finetune-sst-{split}-out.csv" for split in ("dev", "test")}
    assert {path.name for path in (clone / "submission").iterdir()} == submitted
    monkeypatch.chdir(clone)  # out/best.pt and gpt2 are there
    names = {}
    for code in re.findall(r"^```python\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE):
        exec(code, names)
    assert len(names["labels"]) == 2 and names["probabilities"].shape == (2, len(names["classifier"].label_names))
    assert names["logits"].shape == (1, 2) and str(names["logits"].dtype) == "torch.float32"


def assert_known(output: str) -> None:
    """That what a make target would run is there: scripts, and config files."""
    for line in output.splitlines():
        command = line.replace(".venv/bin/", "").strip()
        if command.startswith("python ") and command.split()[1] not in ("-m", "-c"):
            for name in (command.split()[1], *re.findall(r"config/\S+", command)):
                assert (REPO / name).is_file(), line


def test_baselines_of_the_results_table(tsv_dir, tmp_path):
    row = {"sst": ("0.253", "0.392"), "cfimdb": ("0.502", "0.914")}
    for task, (majority, regression) in row.items():
        succeed(f"prepare_{task}.py", "--source", tsv_dir, cwd=tmp_path)
        printed = succeed("bench/baselines.py", f"data/{task}", cwd=tmp_path)
        assert majority in printed and regression in printed
    assert re.search(r"majority class .*\| 0\.253 \| 0\.502 \|", README)
    assert re.search(r"TF-IDF .*\| 0\.392 \| 0\.914 \|", README)
