"""Run every command and every Python code of README.md and docs/, in their order, with small models."""

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
FINETUNE = ["--batch_size=4", "--gradient_accumulation_steps=1", "--device=cpu", "--dtype=float32"]


def shown_commands() -> list[str]:
    """Return the commands of the ```sh blocks, without comments, and of `code` in the text, each once, in order."""
    text = re.sub(r"^```(?:python|text|bash|powershell)\n.*?^```$", "", TEXT, flags=re.DOTALL | re.MULTILINE)
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
        files = [(REPO / name).parent / link.partition("#")[0] for link in links]
        assert all(file.is_file() for file in files), name
        assert name == "README.md" or name in re.findall(r"\]\(([^)]+)\)", README)


def test_windows_has_the_readmes_first_commands():
    block = re.search(r"^```powershell\n(.*?)^```$", PAGES["docs/troubleshooting.md"], re.DOTALL | re.MULTILINE).group(
        1
    )
    first = re.search(r"^```sh\n(.*?)^```$", README, re.DOTALL | re.MULTILINE).group(1)
    first = first.replace(" && . .venv/bin/activate", "\n.venv\\Scripts\\Activate.ps1")
    assert block.replace(" `\n", " \\\n") == first


def test_every_file_of_the_repository_that_is_named_is_there():
    generated = {"config/finetune_mytask.py", "config.json", "model.safetensors", "run.json", "log.csv"}
    generated |= {"trees/train.txt", "my.csv", "my_dev.csv", "reviews.txt", "new.csv", "test.csv"}
    generated |= {"answered.csv", "curves.png", "out/curves.png"}
    generated |= {f"ids-sst-{split}.csv" for split in ("train", "dev", "test-student")}
    text = re.sub(r"\]\([^)]+\)", "]", TEXT).replace("prepare_*.py", "")  # links: the test above
    names = set(re.findall(r"[\w/-]+\.(?:py|md|txt|json|csv|png|svg|tsv|safetensors)\b", text)) - generated
    assert not [name for name in names if not (REPO / name).exists()] and len(names) > 20


def test_every_module_of_the_package_is_named():
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", PAGES["docs/how-it-works.md"], re.MULTILINE)
    named = re.findall(r"`(\w+)`", " ".join(rows))
    modules = [path.stem for path in (REPO / "classifier").rglob("*.py") if path.stem != "__init__"]
    assert sorted(named) == sorted(modules)


def first_rows(name: str) -> str:
    """Return the header of one of the sample's files and as many rows as show that a command works."""
    lines = (REPO / "data" / "sample" / f"{name}.tsv").read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(lines[:61])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_help_fits_a_terminal(script, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = succeed(script, "--help", cwd=tmp_path).splitlines()
    assert len(lines) > 5 and not [line for line in lines if len(line) > 80]


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """Copy the repository's files; make the sample stand in for the tasks' data, and a tiny GPT-2 for the hub's."""
    folder = tmp_path_factory.mktemp("readme")
    names = subprocess.run(["git", "ls-files", "-z"], cwd=REPO, capture_output=True, text=True, check=True).stdout
    for name in names.split("\0")[:-1]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPO / name, folder / name)
    for task in ("sst", "cfimdb"):
        (folder / "data" / task).mkdir()
        for split, source in (("train", "train"), ("dev", "dev"), ("test-student", "dev")):
            (folder / "data" / task / f"ids-{task}-{split}.csv").write_text(first_rows(source), encoding="utf-8")
    write_trees(folder / "data" / "sst")
    transformers_model("GPT2LMHeadModel", folder / "gpt2", vocab_size=50257, n_positions=1024, n_embd=8, n_layer=1)
    (folder / "my.csv").write_text(first_rows("train"), encoding="utf-8")  # tabs, whatever its name says
    (folder / "my_dev.csv").write_text(first_rows("dev"), encoding="utf-8")
    (folder / "new.csv").write_text("text,when\nA lovely film.,today\n,never\n", encoding="utf-8")
    (folder / "parts").mkdir()
    for number in range(3):
        (folder / "parts" / f"{number}.csv").write_text("text\nA lovely film.\nA mess.\n", encoding="utf-8")
    (folder / "reviews.txt").write_text("A lovely film.\nA mess.\n", encoding="utf-8")
    return folder


def write_trees(folder: Path) -> None:
    """Write trees for the rows that stand in for SST's training sentences, and give the rows their leading space."""
    path = folder / "ids-sst-train.csv"
    header, *rows = (row.split("\t") for row in path.read_text(encoding="utf-8").splitlines())
    rows = [[*row[:2], " " + row[2], row[3]] for row in rows if not set(row[2]) & set('()"')]
    path.write_text("".join("\t".join(row) + "\n" for row in [header, *rows]), encoding="utf-8")
    (folder / "trees").mkdir()
    trees = [f"({row[3]} {' '.join(f'(2 {word})' for word in row[2].split())})\n" for row in rows]
    (folder / "trees" / "train.txt").write_text("".join(trees), encoding="utf-8")


def adapted(command: str) -> list[str]:
    """Return the words of the same command for a small model and one machine."""
    words = shlex.split(command.partition(" < ")[0].replace("DIR", "data/sst").replace("HOST", "127.0.0.1"))
    if words[0] == "torchrun":
        words = [sys.executable, "-m", "torch.distributed.run", *words[1:]]
        processes = 1 if "--nnodes=2" in words else 2  # the second machine is started beside the first: two in all
        words = [re.sub(r"nproc_per_node=\d+", f"nproc_per_node={processes}", word) for word in words]
    if "finetune.py" in words:
        words += FINETUNE
        words += ["--max_steps=2"] if "--init_from=resume" in words else ["--max_steps=1", "--overwrite=True"]
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
    """Assert that the scripts and config files that a make target would run exist."""
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
