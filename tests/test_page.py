"""app.py in a real browser: the page says what evaluate.py says, of the very texts of training, and asks nobody else.

The servers are real processes on 127.0.0.1, the browser is a headless Chromium.
"""

import csv
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.request import urlopen

import pytest
from conftest import REPO, random_model, refuse, save, succeed

import app
from classifier.answers import models as answers
from classifier.answers.explain import explain
from classifier.answers.models import Classifier
from classifier.data.dataset import load_meta, load_split, training_files

pytest.importorskip("gradio", reason="needs Gradio: pip install -r requirements-app.txt")
NAMES = ["negative", "positive"]
TEXT = "A lovely film, though its <b>plot</b> is ${1 + 1} {{value}} <img src=x> dull."
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --window-size=1100,900""".split()
ENTER, SHIFT_ENTER = "\ue007", "\ue008\ue007\ue008"  # as WebDriver has them
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


ROWS = [(f"Title {n}", f"the body of {n},\nin two lines", NAMES[n % 2]) for n in range(60)]
ROWS += [("", "a body alone", NAMES[0]), ("A title alone", " ", NAMES[1])]


@pytest.fixture(scope="module")
def place(prepared_sample, tmp_path_factory):
    """The prepared sample with one.pt and two.pt; rows of a title and a body, prepared, with columns.pt."""
    place = tmp_path_factory.mktemp("page")
    shutil.copytree(prepared_sample / "data", place / "data")
    with open(place / "rows.csv", "w", newline="") as f:
        csv.writer(f).writerows([("title", "body", "label"), *ROWS])
    succeed("prepare_own.py", "--train=rows.csv", "--text_column", "title", "body", "--name=rows", cwd=place)
    models = {"one": ("sample", 24), "two": ("sample", 40), "columns": ("rows", 40)}
    for name, (task, block_size) in models.items():
        meta = load_meta(place / "data" / task)
        data = {"task": task, "label_names": meta["label_names"], "text_columns": meta["text_columns"]}
        data |= {"folder": f"data/{task}", "files": training_files(meta)}
        data |= {"leading_space": meta["splits"]["train"]["leading_space"]}
        save(place / f"{name}.pt", random_model(2, block_size=block_size), data)
    (place / "sitecustomize.py").write_text(RECORDER)
    (place / "temporary").mkdir()
    return place


def start(port: int, *words: str, cwd: Path) -> subprocess.Popen:
    """Start a server."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GRADIO", "PYTHON"))}
    kept |= {"PYTHONPATH": str(cwd), "RECORD": str(cwd / "connected"), "TMPDIR": str(cwd / "temporary")}
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    command = [sys.executable, str(REPO / "app.py"), "--port", str(port), "--ckpt", *words]
    return subprocess.Popen(command, cwd=cwd, env=kept, **streams)


def address(server: subprocess.Popen) -> str:
    """Where a server listens, once it does."""
    printed = []
    for line in server.stdout:
        printed.append(line)
        if found := re.fullmatch(r"the page is at (http://127\.0\.0\.1:\d+)/? \(press Ctrl-C to stop it\)\n", line):
            return found[1]
    raise AssertionError("".join(printed))


@pytest.fixture(scope="module")
def pages(place):
    """The addresses of two pages: an ensemble, and the model that reads a title and a body."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        ports = [listener.getsockname()[1] for listener in (one, other)]  # free ones
    servers = [start(ports[0], "one.pt", "two.pt", cwd=place), start(ports[1], "columns.pt", cwd=place)]
    try:
        urls = dict(zip(("app", "columns"), map(address, servers), strict=True))
        for server in servers:  # Windows could not replace a checkpoint that is mapped
            assert ".pt\n" not in Path(f"/proc/{server.pid}/maps").read_text()
        yield urls
    finally:
        for server in servers:
            server.terminate()
            server.wait(30)
    assert not [*(place / "temporary").rglob("*rows.csv")]  # no upload outlives its server


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


def load(place: Path, *names: str) -> list[Classifier]:
    return answers.load_all([str(place / f"{name}.pt") for name in names])[0]


def assert_shown(browser, text: str, models: list[Classifier]) -> None:
    """That all is that of the models' explanation, as far as bfloat16 says the same on any number of threads."""
    found = explain(text, partial(answers.log_probabilities, models))
    wait(browser, lambda: find(browser, "#words") and [word for word, _ in read_words(browser)] == text.split())
    bars = read_bars(browser)
    assert [bars[name] for name in NAMES] == pytest.approx(found.log_probabilities.exp().tolist(), abs=0.004)
    answer, _, *lines = find(browser, "#numbers textarea")[0].get_property("value").splitlines()
    assert answer == ", ".join(f"{name} {share:.3f}" for name, share in bars.items())
    assert len(find(browser, "#numbers button")) == len(find(browser, "#box button")) == 1  # copy
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


def test_columns_go_on_lines_of_their_own(place, pages, browser):
    open_page(browser, pages["app"])
    assert find(browser, "#box label > span")[0].text == "Text"
    title, body, _ = ROWS[0]
    first, second = body.split("\n")
    open_page(browser, pages["columns"], title, SHIFT_ENTER, first, SHIFT_ENTER, second, ENTER)
    label = find(browser, "#box label > span")[0].text
    assert label == "Text: title, body, in this order, each on a line of its own (Shift+Enter begins one)"
    assert_shown(browser, f"{title}\n{body}", load(place, "columns"))


def test_a_file_is_classified(place, pages, browser):
    open_page(browser, pages["columns"])
    (tab,) = [each for each in find(browser, "button[role=tab]") if each.text == "File"]
    tab.click()
    browser.find_element("css selector", "#upload input[type=file]").send_keys(str(place / "rows.csv"))
    wait(browser, lambda: "rows" in find(browser, "#upload")[0].text)
    find(browser, "#ask")[0].click()
    (link,) = wait(browser, lambda: find(browser, "#answers a[href]"))
    facts = [each.text for each in find(browser, "#said li")]
    assert facts[0] == "rows: 62, without a text: 0" and facts[1].startswith("texts in 'title' + 'body'")
    words = ["evaluate.py", "--ckpt=columns.pt", "--file=rows.csv", "--predictions=answered.csv"]
    succeed(*words, "--overwrite", cwd=place)
    with open(place / "answered.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    counts = Counter(row["prediction"] for row in rows).most_common()
    assert facts[2] == "predicted: " + ", ".join(f"{name} {count}" for name, count in counts)
    right = sum(row["prediction"] == row["label"] for row in rows)
    assert facts[3] == f"accuracy {right / 62:.3f} on 62 rows with a label in 'label'; always 'negative' 0.500"
    shown = wait(browser, lambda: [each.text for each in find(browser, "#rows [role=gridcell][data-row='0']")])
    text = " ".join([rows[0]["title"], *rows[0]["body"].split()])
    assert shown == [text, rows[0]["prediction"], f"{float(rows[0]['confidence']):.3f}"]
    with urlopen(link.get_attribute("href")) as answered:
        assert answered.read() == (place / "answered.csv").read_bytes()
    assert {path.name for path in (place / "temporary").rglob("*.csv")} == {"rows.csv", "answered-rows.csv"}


@pytest.mark.parametrize("page, with_keys", [("app", True), ("columns", False)])
def test_a_mistake_opens_with_a_click_or_the_keyboard_alone(place, pages, browser, page, with_keys):
    def press(element) -> None:
        element.send_keys(ENTER) if with_keys else element.click()

    models = load(place, *{"app": ("one", "two"), "columns": ("columns",)}[page])
    dev = load_split(place / models[0].saved["data"]["folder"], "dev")
    mistakes = answers.most_confident_mistakes(answers.predict_all(models, dev), dev.labels)
    open_page(browser, pages[page])
    (tab,) = [each for each in find(browser, "button[role=tab]") if each.text == "Mistakes"]
    press(tab)
    buttons = wait(browser, lambda: find(browser, "button.text"))
    assert len(buttons) == min(20, len(mistakes))
    label, prediction, probability = re.match(r"(\w+), predicted (\w+) \((0\.\d+)\): ", buttons[0].text).groups()
    assert {label, prediction} == set(NAMES)
    press(buttons[0])
    box = wait(browser, lambda: find(browser, "#box textarea"))[0]
    text = wait(browser, lambda: box.get_property("value"))
    assert text in [answers.example_text(dev, i) for i in mistakes[:3]]  # the order of close ones may differ
    assert_shown(browser, text, models)
    assert read_bars(browser)[prediction] == pytest.approx(float(probability), abs=0.004)
    assert browser.switch_to.active_element == box


def test_what_cannot_be_classified_gets_a_sentence(pages, browser):
    open_page(browser, pages["app"])
    (button,) = [each for each in find(browser, "button") if each.text == "Classify"]
    for value, message in [
        (" \n ", "There is no text to classify: type one."),
        ("Mess", "A one-word text has nothing to leave out."),
        ("x" * 20_001, "This text is too long: 20,001 characters, and the page takes 20,000."),
        (
            "so " * 301,
            "This text is long: only its last 24 tokens are read. This text has 301 words; their contributions are "
            "computed for up to 300.",
        ),
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


@pytest.mark.parametrize("title, body, label", [ROWS[0], *ROWS[-2:]])
def test_page_text_and_file_give_one_row_the_same_probabilities(place, title, body, label):
    from classifier.answers import page

    with open(place / "row.csv", "w", newline="") as f:
        csv.writer(f).writerows([("body", "title"), (body, title)])
    exact = ["evaluate.py", "--ckpt=columns.pt", "--device=cpu", "--dtype=float32"]
    succeed(*exact, "--file=row.csv", "--predictions=row-answered.csv", "--overwrite", cwd=place)
    with open(place / "row-answered.csv", newline="") as f:
        (row,) = csv.DictReader(f)
    from_file = [float(row[f"p_{name}"]) for name in NAMES]
    assert max(from_file) < 0.999

    classifier = Classifier.load(place / "columns.pt", "cpu", "float32")
    text = "\n".join(part for part in (title, body) if part.strip())
    found, *_ = next(page.answer([classifier], text))
    shown = {each["label"]: each["confidence"] for each in found.value["confidences"]}
    assert [round(shown[name], 6) for name in NAMES] == from_file
    labels, probabilities = classifier([[title, body]])
    assert labels == [row["prediction"]] and probabilities[0].round(6).tolist() == pytest.approx(from_file, abs=1e-7)

    printed = succeed(*exact, "--text", title, body, cwd=place).splitlines()
    assert printed[1].split()[:3] == [row["prediction"], *(f"{share:.3f}" for share in from_file)] and len(printed) == 2
    explained = succeed(*exact, "--explain", "--text", title, body, cwd=place).splitlines()
    assert explained[:2] == printed


def test_text_of_another_number_of_columns_is_refused(place):
    words = ["evaluate.py", "--ckpt=columns.pt", "--text"]
    for given in (["both\nin one"], ["a", "b", "c"]):
        message = refuse(*words, *given, cwd=place)
        assert f"2 columns, title, body, and this text has {len(given)}: give one part for each" in message
        assert message.endswith('as in --text "TITLE" "BODY"\n')
    assert "columns.pt was trained on the columns title, body: --text - cannot" in refuse(*words, "-", cwd=place)
    message = refuse("evaluate.py", "--ckpt=one.pt", "--text", "A", "mess.", cwd=place)
    assert 'one.pt reads one text, not 2: quote it, as in --text "A lovely film."' in message
    assert "the text is blank" in refuse(*words, " ", "\n", cwd=place)
    assert "the text is not valid UTF-8" in refuse(*words, "caf\udce9", "b", cwd=place)


def test_without_the_dev_set_of_its_training_a_page_lists_none(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    one = Classifier.load("one.pt")
    assert len(app.dev_split([one], None)) == 240
    gone = {"folder": "gone"}, "one.pt was trained on gone, and there is no such"
    for change, message in (gone, ({"files": {}}, "is not the data that")):
        changed = replace(one, saved=one.saved | {"data": one.saved["data"] | change})
        assert app.dev_split([changed], None) is None
        printed = " ".join(capsys.readouterr().out.split())
        assert re.match(f"note: a page without examples and mistakes: .*{message}", printed)
    assert len(app.dev_split([changed], "data/sample")) == 240  # asked for by name
    assert "note: data/sample is not the data" in capsys.readouterr().out


def test_what_stops_the_page_is_said_in_one_line(place, monkeypatch):
    assert "there is no checkpoint nowhere.pt" in refuse("app.py", "--ckpt", "nowhere.pt", cwd=place)
    assert "elsewhere was not prepared" in refuse("app.py", "--ckpt=one.pt", "--data_dir=elsewhere", cwd=place)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        in_use = f"--port={taken.getsockname()[1]}", "Address already in use"
        for option, problem in (in_use, ("--port=70000", "port must be 0-65535")):
            message = refuse("app.py", "--ckpt=one.pt", option, cwd=place)
            assert problem in message and message.endswith(": choose another --port or --host\n")
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "classifier.answers.page", raising=False)
    monkeypatch.delattr("classifier.answers.page", raising=False)
    assert "the package gradio is not installed" in refuse("app.py", cwd=place)
