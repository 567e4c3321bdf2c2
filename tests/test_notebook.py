"""Run notebooks/quickstart.ipynb as Jupyter does, in a copy of the repository, without a network."""

import base64
import csv
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from conftest import REPO

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

NOTEBOOK = REPO / "notebooks" / "quickstart.ipynb"


def printed(cell) -> str:
    """Return what a cell printed."""
    text = "".join(output.text for output in cell.outputs if output.output_type == "stream")
    return text.replace("\r\n", "\n")  # `!` runs a command in a terminal


def installed() -> list[str]:
    """Return the names of everything that is installed, with versions."""
    return sorted(path.name for path in Path(sysconfig.get_path("purelib")).iterdir())


def test_the_notebook_is_short_and_has_no_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert len(notebook.cells) <= 12 and all(cell.id for cell in notebook.cells)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)


@pytest.mark.parametrize("has_torch", [True, False])
def test_the_first_cell_clones_and_keeps_a_torch_that_is_there(has_torch, tmp_path, monkeypatch):
    commands = []

    def run(words: list[str], check: bool) -> None:
        commands.append(words)
        if words[0] == "git":
            Path(words[-1]).mkdir()
            shutil.copy(REPO / "requirements.txt", words[-1])

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: has_torch and name == "torch")
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setenv("PATH", os.environ["PATH"])
    monkeypatch.chdir(tmp_path)
    first = next(cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code")
    for _ in range(2):  # the second time in the clone
        exec(first.source, {})
        assert Path.cwd() == tmp_path / "finetune-gpt2"
        shutil.copy(REPO / "finetune.py", ".")
    (clone, install, again) = commands
    assert (
        clone[:2] == ["git", "clone"] and install == again and install[:4] == [sys.executable, "-m", "pip", "install"]
    )
    names = [re.match(r"[\w-]+", word).group() for word in install[5:]]
    assert ("torch" in names) is not has_torch and {"transformers", "numpy", "matplotlib"} < set(names)


def test_every_cell_of_the_notebook_works(tmp_path, monkeypatch):
    names = subprocess.run(["git", "ls-files", "-z"], cwd=REPO, capture_output=True, text=True, check=True).stdout
    for name in names.split("\0")[:-1]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPO / name, tmp_path / name)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    before = installed()
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    where = {"metadata": {"path": str(tmp_path / NOTEBOOK.parent.name)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where).execute()
    assert installed() == before
    cells = {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}
    assert not [cell.id for cell in cells.values() if "error: " in printed(cell) or "Traceback" in printed(cell)]
    assert printed(cells["install"]) == ""

    best = json.loads((tmp_path / "out-sample" / "run.json").read_text())["best"]
    assert f"\ndev accuracy: {best['accuracy']:.3f} (95% Wilson interval " in printed(cells["evaluate"])
    (picture,) = [output.data["image/png"] for output in cells["evaluate"].outputs if "data" in output]
    assert base64.b64decode(picture) == (tmp_path / "plots" / "confusion.png").read_bytes()
    assert 'drop in the log-probability of "negative"' in printed(cells["explain"])

    with open(tmp_path / "answered.csv", newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    assert list(rows[0]) == ["number", "text", "prediction", "confidence", "p_billing", "p_delivery"]
    found = [(row["number"], row["text"], row["prediction"]) for row in rows]
    assert found == [
        ("1", "Where is the parcel?", "delivery"),
        ("2", "I paid the invoice, but it came twice.", "billing"),
    ]
    assert (tmp_path / "answered.csv").read_text(encoding="utf-8") in printed(cells["answer"])
    loaded = re.fullmatch(
        r"positive, confidence (0\.\d{3})\nnegative, confidence (0\.\d{3})\nclasses: .*\n", printed(cells["python"])
    )
    assert loaded and min(map(float, loaded.groups())) > 0.5
