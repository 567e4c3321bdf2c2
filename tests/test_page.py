"""app.py and the Space's app.py in a real browser: they say what evaluate.py says, and nobody else is asked.

Both servers are real processes on 127.0.0.1, the browser is a headless Chromium.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import yaml
from conftest import REPO, random_model, refuse, save, succeed

import app
from classifier.answers import models as answers
from classifier.answers.explain import explain
from classifier.data.dataset import load_meta, load_split, training_files

pytest.importorskip("gradio", reason="needs Gradio: pip install -r requirements-app.txt")
NAMES = ["negative", "positive"]
TEXT = "A lovely film, though its <b>plot</b> is ${1 + 1} {{value}} <img src=x> dull."
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --window-size=1100,900""".split()
ENTER = "\ue007"  # as WebDriver has it
# before anything else in a Python process: write down whom it connects to, and whom it looks up
RECORDER = """
import os, sys

def note(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        address = arguments[1] if event == "socket.connect" else arguments
        with open(os.environ["RECORD"], "a") as f:
            f.write(f"{address[0] if isinstance(address, tuple) else address}\\n")

sys.addaudithook(note)
"""


@pytest.fixture(scope="module")
def place(prepared_sample, tmp_path_factory):
    """The prepared sample, two checkpoints, one.pt and two.pt, and the first exported with its page."""
    place = tmp_path_factory.mktemp("page")
    shutil.copytree(prepared_sample / "data", place / "data")
    meta = load_meta(place / "data" / "sample")
    data = {"task": "sample", "label_names": meta["label_names"], "folder": "data/sample"}
    data |= {"files": training_files(meta), "leading_space": meta["splits"]["train"]["leading_space"]}
    for name, block_size in (("one", 24), ("two", 40)):
        save(place / f"{name}.pt", random_model(2, block_size=block_size), data)
    succeed("export_hf.py", "--ckpt=one.pt", "--out=hf", "--space", cwd=place)
    (place / "sitecustomize.py").write_text(RECORDER)
    return place


def start(script: Path, *words: str, cwd: Path, **environment: str) -> subprocess.Popen:
    """Start one of the two servers."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GRADIO", "PYTHON"))}
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, str(script), *words], cwd=cwd, env=kept | environment, **streams)


def address(server: subprocess.Popen) -> str:
    """Where a server listens, once it does."""
    printed = []
    for line in server.stdout:
        printed.append(line)
        if found := re.fullmatch(r"the page is at (http://127\.0\.0\.1:\d+)/? \(Ctrl-C ends it\)\n", line):
            return found[1]
    raise AssertionError("".join(printed))


@pytest.fixture(scope="module")
def pages(place):
    """The addresses of app.py, of both checkpoints, and of the exported folder's app.py."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        ports = [str(listener.getsockname()[1]) for listener in (one, other)]  # free ones
    app_py = start(REPO / "app.py", "--ckpt", "one.pt", "two.pt", "--port", ports[0], cwd=place,
                   PYTHONPATH=str(place), RECORD=str(place / "connected"))  # fmt: skip
    space = start(place / "hf" / "app.py", cwd=place / "hf", PYTHONPATH="", GRADIO_SERVER_PORT=ports[1])
    try:
        yield {"app": address(app_py), "space": address(space)}
    finally:
        for process in (app_py, space):
            process.terminate()
            process.wait(30)


@pytest.fixture(scope="module")
def browser():
    if not (CHROMIUM and DRIVER):
        pytest.skip("needs chromium and chromedriver: Debian's packages chromium and chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER)) as browser:
        yield browser


def wait(browser, condition):
    """What a condition gives, once that is something."""
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.support.wait import WebDriverWait

    return WebDriverWait(browser, 60, 0.05, [StaleElementReferenceException]).until(lambda _: condition())


def find(browser, selector: str) -> list:
    return [each for each in browser.find_elements("css selector", selector) if each.is_displayed()]


def open_page(browser, url: str, *keys: str):
    """Open a page, type into its text box and return the box."""
    browser.get(url)
    (box,) = wait(browser, lambda: find(browser, "#box textarea"))
    box.send_keys(*keys)
    return box


def read_bars(browser) -> dict[str, float]:
    """The classes and their probabilities, whose numbers are checked."""
    rows = browser.execute_script("""return [...document.querySelectorAll('#found .confidence-set')].map(row =>
        [row.querySelector('dt').innerText, row.querySelector('dd').innerText, row.querySelector('meter').value])""")
    assert all(float(percent.rstrip("%")) == pytest.approx(100 * share, abs=0.51) for _, percent, share in rows)
    assert f"the largest {rows[0][2]:.3f}" in find(browser, "#found")[0].text
    return {name: share for name, _, share in rows}


def read_words(browser) -> list[tuple[str, float]]:
    """The words and the shares of the strongest that their tints stand for."""
    found = []
    for word, colour in browser.execute_script("""return [...document.querySelectorAll('#words .score-token')].map(
            token => [token.innerText.trim(), token.style.backgroundColor])"""):
        red, _, blue, *alpha = map(float, re.findall(r"[\d.]+", colour))
        found.append((word, (alpha or [1])[0] / 0.6 * (1 if red > blue else -1)))  # red or violet
    return found


def load(place: Path, *names: str, dtype: str = "auto") -> list[answers.Loaded]:
    return answers.load_all([str(place / f"{name}.pt") for name in names], "cpu", dtype)[0]


def assert_shown(browser, text: str, models: list[answers.Loaded]) -> None:
    """That all is that of the models' explanation, as far as bfloat16 says the same on any number of threads."""
    found = explain(text, partial(answers.log_probabilities, models))
    wait(browser, lambda: find(browser, "#words") and [word for word, _ in read_words(browser)] == text.split())
    bars = read_bars(browser)
    assert [bars[name] for name in NAMES] == pytest.approx(found.log_probabilities.exp().tolist(), abs=0.004)
    lines = find(browser, "#numbers textarea")[0].get_property("value").splitlines()
    listed = [re.fullmatch(r"([+-]\d+\.\d{3})  (\S+)", line).groups() for line in lines]
    numbers = [float(number) for number, _ in listed]
    assert numbers == sorted(numbers, key=lambda number: -abs(number))
    listed = sorted((word, float(number)) for number, word in listed)
    words, contributions = zip(*sorted(zip(found.words, found.contributions, strict=True)), strict=True)
    assert [word for word, _ in listed] == list(words)
    assert [number for _, number in listed] == pytest.approx(contributions, abs=0.02)
    tints = [share for _, share in sorted(read_words(browser))]
    assert tints == pytest.approx([number / abs(numbers[0]) for _, number in listed], abs=0.02)


def test_the_page_shows_what_evaluate_says(place, pages, browser):
    open_page(browser, pages["app"], TEXT, ENTER)
    assert_shown(browser, TEXT, load(place, "one", "two"))
    assert not browser.find_elements("css selector", "#words img, #words b")
    # without mistakes, and by transformers in an exported folder
    open_page(browser, pages["space"], TEXT, ENTER)
    assert_shown(browser, TEXT, load(place, "one", dtype="float32"))
    assert not [each for each in find(browser, "button[role=tab]") if each.text == "Surest mistakes"]


@pytest.mark.parametrize("with_keys", [True, False])
def test_a_mistake_opens_with_a_click_or_the_keyboard_alone(place, pages, browser, with_keys):
    def press(element) -> None:
        element.send_keys(ENTER) if with_keys else element.click()

    models, dev = load(place, "one", "two"), load_split(place / "data" / "sample", "dev")
    surest = answers.surest_mistakes(answers.predict_all(models, dev), dev.labels)
    open_page(browser, pages["app"])
    (tab,) = [each for each in find(browser, "button[role=tab]") if each.text == "Surest mistakes"]
    press(tab)
    buttons = wait(browser, lambda: find(browser, "button.text"))
    assert len(buttons) == min(20, len(surest))
    label, prediction, probability = re.match(r"(\w+), taken for (\w+) \((0\.\d+)\): ", buttons[0].text).groups()
    assert {label, prediction} == set(NAMES)
    press(buttons[0])
    box = wait(browser, lambda: find(browser, "#box textarea"))[0]
    text = wait(browser, lambda: box.get_property("value"))
    assert text in [answers.text_of(dev, i) for i in surest[:3]]  # the order of close ones may differ
    assert_shown(browser, text, models)
    assert read_bars(browser)[prediction] == pytest.approx(float(probability), abs=0.004)
    assert browser.switch_to.active_element == box


def test_what_cannot_be_classified_gets_a_sentence(pages, browser):
    open_page(browser, pages["app"])
    (button,) = [each for each in find(browser, "button") if each.text == "Classify"]
    for value, message in [
        (" \n ", "There is no text to classify: type one."),
        ("Mess", "A single word cannot be left out: no text would remain."),
        ("x" * 20_001, "This text is too long: 20,001 characters, and the page takes 20,000."),
        ("so " * 301, "The words of a text are weighed up to 300 words; this one has more."),
    ]:
        browser.execute_script(
            "let box = document.querySelector('#box textarea'); box.value = arguments[0];"
            "box.dispatchEvent(new Event('input', {bubbles: true}))", value
        )  # fmt: skip
        button.click()
        wait(browser, lambda message=message: message in [each.text for each in find(browser, "#note p")])
        wait(browser, lambda value=value: bool(find(browser, "#found")) == (value[0] in "Ms"))
        assert not find(browser, "#words")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_light_and_dark(pages, browser, scheme):
    preferred = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", preferred)
    phone = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    open_page(browser, pages["app"], TEXT, ENTER)
    wait(browser, lambda: find(browser, "#words"))
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
    colours = browser.execute_script("""let word = document.querySelector('#words .text');
        return [getComputedStyle(document.body).backgroundColor, getComputedStyle(word).color]""")
    ground, letters = (sum(map(int, re.findall(r"\d+", colour)[:3])) / 765 for colour in colours)
    assert (ground > 0.9 and letters < 0.3) if scheme == "light" else (ground < 0.1 and letters > 0.8)


def test_neither_server_nor_browser_asks_anyone_else(place, pages, browser):
    open_page(browser, pages["app"])
    requests = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [each["params"]["request"]["url"] for each in requests if each["method"] == "Network.requestWillBeSent"]
    asked = {re.match(r"\w+://[^/:]+", url)[0] for url in urls if url.startswith(("http", "ws"))}
    assert asked == {"http://127.0.0.1"}
    assert set((place / "connected").read_text().split()) <= {"127.0.0.1", "localhost", "::1"}


# -----------------------------------------------------------------------------
# without a browser


def test_the_exported_folder_is_a_space(place):
    import gradio

    header = yaml.safe_load((place / "hf" / "README.md").read_text().split("---\n")[1])
    assert (header["sdk"], header["app_file"]) == ("gradio", "app.py")
    assert header["sdk_version"] == gradio.__version__
    names = [line.split("=")[0].rstrip("<>") for line in (place / "hf" / "requirements.txt").read_text().splitlines()]
    assert names == ["torch", "transformers", "gradio"]


def test_without_the_dev_set_of_its_training_a_page_lists_none(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    one = answers.load("one.pt")
    assert len(app.dev_split([one], None)) == 240
    gone = {"folder": "gone"}, "one.pt was trained on gone, and there is no such"
    for change, message in (gone, ({"files": {}}, "is not the data that")):
        changed = one._replace(saved=one.saved | {"data": one.saved["data"] | change})
        assert app.dev_split([changed], None) is None
        assert re.match(f"note: a page without examples and mistakes: .*{message}", capsys.readouterr().out)
    assert len(app.dev_split([changed], "data/sample")) == 240  # asked for by name
    assert "note: data/sample is not the data" in capsys.readouterr().out


def test_what_stops_the_page_is_said_in_one_line(place, monkeypatch):
    assert "there is no checkpoint nowhere.pt" in refuse("app.py", "--ckpt", "nowhere.pt", cwd=place)
    assert "elsewhere was not prepared" in refuse("app.py", "--ckpt=one.pt", "--data_dir=elsewhere", cwd=place)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        in_use = f"--port={taken.getsockname()[1]}", "Address already in use"
        for option, problem in (in_use, ("--port=70000", "port must be 0-65535")):
            message = refuse("app.py", "--ckpt=one.pt", option, cwd=place)
            assert problem in message and message.endswith(": name another --port or --host\n")
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "classifier.answers.page", raising=False)
    monkeypatch.delattr("classifier.answers.page", raising=False)
    assert "the package gradio is not installed" in refuse("app.py", cwd=place)
