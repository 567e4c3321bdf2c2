"""The temperature is the likeliest, by a search and by scikit-learn; what uses it, and what does not fit it."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from conftest import random_model, refuse, save, succeed
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from classifier.answers import models as answers
from classifier.answers.calibration import calibrate, calibrated_by_folds, calibration_error, fit_temperature
from classifier.data.dataset import load_meta, load_split, training_files
from classifier.errors import UserError
from classifier.training.batches import Texts
from classifier.training.predict import cached_features
from model import GPT

EVALUATE = ["evaluate.py", "--ckpt", "best.pt", "--dtype=float32"]


def drawn(temperature: float, examples: int = 3000, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """Logits, and labels drawn from the probabilities that the logits have at a temperature."""
    random = np.random.default_rng(seed)
    logits = torch.from_numpy(random.normal(scale=3, size=(examples, 4))).float()
    shares = (logits.double() / temperature).softmax(-1).numpy().cumsum(1)
    return logits, (random.random((examples, 1)) > shares[:, :-1]).sum(1).astype(np.int16)


@pytest.mark.parametrize("true", [0.4, 1.0, 2.5])
def test_the_temperature_is_that_of_a_search_and_of_the_data(true):
    logits, labels = drawn(true)
    found = fit_temperature(logits, labels)

    def loss(temperature: float) -> float:
        scaled = logits.double().numpy() / temperature
        return (logsumexp(scaled, axis=1) - scaled[np.arange(len(labels)), labels]).mean()

    grid = np.linspace(0.9 * found, 1.1 * found, 201)
    assert abs(grid[np.argmin([*map(loss, grid)])] - found) <= 0.001 * found
    assert found == pytest.approx(true, rel=0.08)


def test_what_is_measured_in_folds_has_not_been_fitted_to():
    logits, labels = drawn(2.0, examples=53)
    folds = calibrated_by_folds(logits, labels)
    used = (logits.double() / folds).mean(1).numpy()  # the temperature of each example
    temperatures, counts = np.unique(used.round(9), return_counts=True)
    assert sorted(counts) == [10, 10, 11, 11, 11]
    for temperature in temperatures:
        others = np.abs(used - temperature) > 1e-8
        assert fit_temperature(logits[others], labels[others]) == pytest.approx(temperature, abs=1e-7)
    found = calibrate(logits, labels)
    assert found["after"]["loss"] < found["before"]["loss"] and found["after"]["loss"] < found["estimate"]["loss"]
    assert found["estimate"]["calibration_error"] == calibration_error(folds, labels)


def test_what_no_temperature_fits_is_refused():
    logits, _ = drawn(1.0)
    for wrong in (logits.argmax(-1), logits.argmin(-1)):
        with pytest.raises(UserError, match="no temperature from 0.01 to 100 fits these 3,000 examples best"):
            calibrate(logits, wrong.numpy())
    with pytest.raises(UserError, match="fits these 4 examples best: they are too few"):
        calibrate(logits[:4], np.array([0, 1, 0, 1]))


# -----------------------------------------------------------------------------
# the commands


@pytest.fixture
def place(prepared_sample, tmp_path):
    """The prepared sample with a checkpoint, too sure of itself, that may be spoilt."""
    shutil.copytree(prepared_sample / "data", tmp_path / "data")
    meta, model = load_meta(tmp_path / "data" / "sample"), random_model(2)
    folder, files = str(tmp_path / "data" / "sample"), training_files(meta)
    leading_space = meta["splits"]["train"]["leading_space"]
    data = {"task": "sample", "label_names": meta["label_names"], "folder": folder, "files": files}
    save(tmp_path / "best.pt", sure_of_itself(model, folder, meta), data | {"leading_space": leading_space})
    return tmp_path


def sure_of_itself(model: GPT, folder: str, meta: dict) -> GPT:
    """The same model with the head of a logistic regression on the dev set, four times as steep as it should be."""
    dev = load_split(folder, "dev", meta)
    features = cached_features(model, Texts(dev, model), torch.float32).features.numpy()
    regression = LogisticRegression(max_iter=500).fit(features, dev.labels)
    with torch.no_grad():
        model.head.weight.copy_(torch.from_numpy(np.stack([0 * regression.coef_[0], 4 * regression.coef_[0]])))
        model.head.bias.copy_(torch.tensor([0, 4 * regression.intercept_[0]]))
    return model


def predictions(place, *words) -> np.ndarray:
    succeed(*EVALUATE, "--predictions=p.csv", "--overwrite", *words, cwd=place)
    with open(place / "p.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    numbers = {"negative": 0, "positive": 1}
    labels = [[numbers[row["label"]], numbers[row["prediction"]]] for row in rows]
    return np.hstack([labels, [[float(row["p_negative"]), float(row["p_positive"])] for row in rows]])


def test_the_temperature_is_used_by_all_and_changes_no_prediction(place):
    before = predictions(place)
    printed = succeed(*EVALUATE, "--calibrate", cwd=place)
    stored = json.loads((place / "best.temperature.json").read_text())
    temperature, after = stored["temperature"], predictions(place)
    assert temperature > 2 and f"temperature {temperature:.3f}" in printed and "no prediction changes" in printed
    assert (after[:, :2] == before[:, :2]).all()
    expected = 1 / (1 + (before[:, 2] / before[:, 3]) ** (1 / temperature))
    np.testing.assert_allclose(after[:, 3], expected, atol=2e-5)
    for stage, rows in (("before", before), ("after", after)):
        loss, error = stored[stage]["loss"], stored[stage]["calibration_error"]
        assert loss == pytest.approx(log_loss(rows[:, 0], rows[:, 2:] / rows[:, 2:].sum(1, keepdims=True)), abs=2e-4)
        assert f"{loss:.4f}{error:>20.4f}" in printed
    report = succeed(*EVALUATE, cwd=place)
    assert f"expected calibration error {stored['after']['calibration_error']:.4f} (15 bins)" in report
    assert f"temperature {temperature:.3f}, fitted on" in report
    text = "A lovely film."
    line = succeed(*EVALUATE, "--text", text, cwd=place).splitlines()[1].split()
    exported = succeed("export_hf.py", "--ckpt=best.pt", "--out=hf", cwd=place)
    assert f"divided by the temperature {temperature:.3f}" in exported
    import transformers

    classify = transformers.pipeline("text-classification", model=str(place / "hf"), device="cpu")
    theirs = {entry["label"]: entry["score"] for entry in classify(text, top_k=None)}
    expected = [theirs["negative"], theirs["positive"]]
    assert [float(share) for share in line[1:3]] == pytest.approx(expected, abs=6e-4)
    card = " ".join((place / "hf" / "README.md").read_text().split())
    estimate = stored["estimate"]["calibration_error"]
    assert f"{stored['before']['calibration_error']:.3f} to {estimate:.3f}, each fifth" in card


def test_of_an_ensemble_each_has_its_own(place):
    shutil.copy(place / "best.pt", place / "cold.pt")
    succeed(*EVALUATE, "--calibrate", cwd=place)
    hot, cold = predictions(place), predictions(place, "--ckpt", "cold.pt")
    assert np.abs(hot - cold).max() > 0.05
    both = predictions(place, "--ckpt", "best.pt", "cold.pt")
    np.testing.assert_allclose(both[:, 3], (hot + cold)[:, 3] / 2, atol=2e-6)


def test_a_temperature_is_neither_replaced_nor_used_unasked(place, capsys):
    succeed(*EVALUATE, "--calibrate", cwd=place)
    before = (place / "best.temperature.json").read_bytes()
    assert "best.temperature.json exists already" in refuse(*EVALUATE, "--calibrate", cwd=place)
    for other in ("--errors=3", "--split=train"):
        assert "does nothing else" in refuse(*EVALUATE, "--calibrate", other, "--overwrite", cwd=place)
    succeed(*EVALUATE, "--calibrate", "--overwrite", cwd=place)
    assert (place / "best.temperature.json").read_bytes() == before  # fitted to the same bits
    content = torch.load(place / "best.pt", weights_only=True)
    torch.save(content | {"model": content["model"] | {"head.bias": torch.ones(2)}}, place / "best.pt")
    assert answers.load(str(place / "best.pt")).temperature == 1
    assert "best.temperature.json was fitted for other weights than" in capsys.readouterr().err


def test_a_broken_file_is_refused(place):
    for content in ("", "[]", '{"temperature": 1.5}'):
        (place / "best.temperature.json").write_text(content)
        message = refuse(*EVALUATE, cwd=place)
        assert "best.temperature.json is damaged or of another program: remove it" in message
