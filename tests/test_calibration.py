"""The temperature is the likeliest, by a search and by scikit-learn; the calibrated checkpoint, and what is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import make_split, random_model, refuse, save, succeed
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

import evaluate
from classifier import checkpoint
from classifier.answers.calibration import calibrate, calibrated_by_folds, calibration_error, fit_temperature
from classifier.answers.models import Classifier
from classifier.data.dataset import load_meta, load_split, training_files
from classifier.errors import UserError
from classifier.training.batches import Texts
from classifier.training.predict import cached_features
from model import GPT

EVALUATE = ["evaluate.py", "--dtype=float32", "--ckpt"]


def drawn(temperature: float, examples: int = 3000) -> tuple[torch.Tensor, np.ndarray]:
    """Logits, and labels drawn from the probabilities that the logits have at a temperature."""
    random = np.random.default_rng(0)
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


def test_the_cross_validated_figures_are_of_examples_that_no_temperature_has_seen():
    logits, labels = drawn(2.0, examples=53)
    folds = calibrated_by_folds(logits, labels)
    used = (logits.double() / folds).mean(1).numpy()  # the temperature of each example
    temperatures, counts = np.unique(used.round(9), return_counts=True)
    assert sorted(counts) == [10, 10, 11, 11, 11]
    for temperature in temperatures:
        others = np.abs(used - temperature) > 1e-8
        assert fit_temperature(logits[others], labels[others]) == pytest.approx(temperature, abs=1e-7)
    found = calibrate(logits, labels)
    assert found["after"]["loss"] < min(found["before"]["loss"], found["cross_validated"]["loss"])
    assert found["cross_validated"]["calibration_error"] == calibration_error(folds, labels)


def test_what_no_temperature_fits_is_refused():
    logits, _ = drawn(1.0)
    for wrong in (logits.argmax(-1), logits.argmin(-1)):
        with pytest.raises(UserError, match="no temperature from 0.01 to 100 fits these 3,000 examples: "):
            calibrate(logits, wrong.numpy())
    with pytest.raises(UserError, match="fits these 4 examples: there are too few"):
        calibrate(logits[:4], np.array([0, 1, 0, 1]))


def test_a_temperature_that_makes_the_honest_loss_worse_is_refused(tmp_path, monkeypatch, capsys):
    # one mistake in 60: without its fold the others are all right, and get the lowest temperature
    labels = np.arange(60, dtype=np.int16) % 2
    logits = torch.from_numpy(np.stack([3.0 - 6 * labels, 6.0 * labels - 3], 1)).float()
    logits[0] = torch.tensor([-3.0, 3.0])
    found = calibrate(logits, labels)
    before, after = found["before"]["loss"], found["cross_validated"]["loss"]
    assert found["after"]["loss"] < before < 0.2 and after > 1
    classifier = Classifier.load(save(tmp_path / "best.pt", random_model(2)), "cpu", "float32")
    monkeypatch.setattr(evaluate, "predict_all", lambda *_: logits)
    dev = make_split([[1]] * 60, labels.tolist())
    with pytest.raises(UserError, match=f"worse, cross-validated \\({before:.4f} before, {after:.4f} after\\), so"):
        evaluate.write_calibrated(classifier, tmp_path / "calibrated.pt", "data/sample", dev)
    printed = capsys.readouterr().out.splitlines()
    assert [line[:31].rstrip() for line in printed[2:]] == ["before", "after", "cross-validated over five folds"]
    assert not (tmp_path / "calibrated.pt").exists()


# -----------------------------------------------------------------------------
# the command


@pytest.fixture
def place(prepared_sample, tmp_path):
    """The prepared sample, and a checkpoint, over-confident, that may be spoilt."""
    shutil.copytree(prepared_sample / "data", tmp_path / "data")
    meta, model = load_meta(tmp_path / "data" / "sample"), random_model(2)
    folder, files = str(tmp_path / "data" / "sample"), training_files(meta)
    leading_space = meta["splits"]["train"]["leading_space"]
    data = {"task": "sample", "label_names": meta["label_names"], "folder": folder, "files": files}
    save(tmp_path / "best.pt", over_confident(model, folder, meta), data | {"leading_space": leading_space})
    return tmp_path


def over_confident(model: GPT, folder: str, meta: dict) -> GPT:
    """The same model with the head of a logistic regression on the dev set, four times as steep as it should be."""
    dev = load_split(folder, "dev", meta)
    features = cached_features(model, Texts(dev, model), torch.float32).features.numpy()
    regression = LogisticRegression(max_iter=500).fit(features, dev.labels)
    with torch.no_grad():
        model.head.weight.copy_(torch.from_numpy(np.stack([0 * regression.coef_[0], 4 * regression.coef_[0]])))
        model.head.bias.copy_(torch.tensor([0, 4 * regression.intercept_[0]]))
    return model


def predictions(place, ckpt: str) -> np.ndarray:
    """Label, prediction and probabilities of each dev example: (240, 4)."""
    dev = load_split(place / "data" / "sample", "dev")
    probabilities = Classifier.load(place / ckpt, dtype="float32").logits(dev).softmax(-1).numpy()
    return np.column_stack([dev.labels, probabilities.argmax(1), probabilities])


def test_the_calibrated_checkpoint_is_the_same_but_for_its_head(place):
    before = predictions(place, "best.pt")
    printed = succeed(*EVALUATE, "best.pt", "--calibrate=new/calibrated.pt", cwd=place)
    (model, old), (calibrated, new) = (checkpoint.load(place / name) for name in ("best.pt", "new/calibrated.pt"))
    stored = new["run"].pop("calibration")
    temperature = stored["temperature"]
    assert temperature > 2 and f"\ntemperature {temperature:.3f}" in printed and stored["folder"].endswith("sample")
    for name, weights in model.state_dict().items():
        expected = weights / temperature if name.startswith("head.") else weights
        torch.testing.assert_close(calibrated.state_dict()[name], expected, atol=0, rtol=2e-7)
    assert {name: part for name, part in new.items() if name != "model"} == {
        name: part for name, part in old.items() if name != "model"
    }
    after = predictions(place, "new/calibrated.pt")
    assert (after[:, :2] == before[:, :2]).all()
    np.testing.assert_allclose(after[:, 3], 1 / (1 + (before[:, 2] / before[:, 3]) ** (1 / temperature)), atol=2e-5)
    for stage, rows in (("before", before), ("after", after)):
        loss, error = stored[stage]["loss"], stored[stage]["calibration_error"]
        assert loss == pytest.approx(log_loss(rows[:, 0], rows[:, 2:] / rows[:, 2:].sum(1, keepdims=True)), abs=2e-4)
        assert f"{stage:<40}{loss:>9.4f}{error:>20.4f}" in printed
    report = succeed(*EVALUATE, "new/calibrated.pt", cwd=place)
    assert f"\nloss {stored['after']['loss']:.4f}\n" in report
    assert f"expected calibration error {stored['after']['calibration_error']:.4f} (15 bins)" in report
    shown = json.loads(succeed("evaluate.py", "--info", "--ckpt", "new/calibrated.pt", cwd=place))
    assert shown == new["run"] | {"calibration": stored}


def test_a_calibrated_checkpoint_is_written_alone_and_replaces_nothing_unasked(place):
    words = [*EVALUATE, "best.pt", "--calibrate=calibrated.pt"]
    succeed(*words, cwd=place)
    before = (place / "calibrated.pt").read_bytes()
    assert "calibrated.pt exists already" in refuse(*words, cwd=place)
    for other in ("--errors=3", "--split=train"):
        message = refuse(*words, other, "--overwrite", cwd=place)
        assert f"{other.partition('=')[0]} cannot be combined with --calibrate" in message
    for wrong, problem in {"--ckpt=best.pt": "must name another file than the one", "new.pt": "one --ckpt"}.items():
        assert problem in refuse(*EVALUATE, "best.pt", wrong, "--calibrate=best.pt", "--overwrite", cwd=place)
    succeed(*words, "--overwrite", cwd=place)
    assert (place / "calibrated.pt").read_bytes() == before  # fitted to the same bits
