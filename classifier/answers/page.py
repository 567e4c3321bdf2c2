"""The page: a text, its classes' probabilities, its words tinted by what they contribute; and the surest mistakes.

All but show_exported know no model, only a function that gives the log-probabilities of texts: an exported folder
carries this file, too.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
from html import escape
from pathlib import Path
from textwrap import shorten
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # it would tell its maker of every start
import gradio as gr
import torch
from torch import Tensor

from classifier.answers.explain import explain, shades

MAX_CHARACTERS, MAX_WORDS = 20_000, 300  # of a text; of one whose words are weighed, which takes the square of its time
MAX_BARS = 10  # of many classes the likeliest
THEME = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])  # none from the net
STYLE = """
.gradio-container { max-width: 52rem !important; margin: auto; overflow-wrap: anywhere; }
#words .textfield { word-break: normal; line-height: 1.9; }
#numbers textarea { font-family: var(--font-mono); }
button.text { justify-content: flex-start; text-align: left; font-weight: 400; }
"""


def build(
    title: str,
    label_names: list[str],
    log_probabilities: Callable[[list[str]], Tensor],
    examples: list[str],
    mistakes: list[tuple[str, str]],
    answer_file: Callable[[str], tuple[str | None, str]] | None = None,
) -> gr.Blocks:
    """Return the page.

    Args:
        title: stands above.
        label_names: the classes, in the order of their numbers.
        log_probabilities: returns (texts, K) for a list of texts.
        examples: texts to begin with.
        mistakes: what the second tab says of each, and its text; without any there is no such tab.
        answer_file: what the third tab calls with an uploaded file's path: it returns the path of the answers, or None,
            and what is to be said of them.
    """
    with gr.Blocks(title=title, analytics_enabled=False) as page:
        gr.HTML(f"<h1>{escape(title)}</h1>")
        with gr.Tabs() as tabs, gr.Tab("Text", id="text"):
            box = gr.Textbox(label="Text", placeholder="Type a text, then Enter", max_lines=12, elem_id="box")
            run = gr.Button("Classify", variant="primary")
            found, note = gr.Label(visible=False, elem_id="found"), gr.Markdown(elem_id="note")
            colours = "Words for the prediction in red, against it in violet"
            words = gr.HighlightedText(label=colours, visible=False, elem_id="words")
            meaning = "What the log-probability of the prediction loses when a word is left out, in nats"
            numbers = gr.Textbox(label=meaning, max_lines=12, visible=False, elem_id="numbers")
            asked = {
                "fn": partial(answer, label_names=label_names, log_probabilities=log_probabilities),
                "inputs": box,
                "outputs": [found, note, words, numbers],
                "api_visibility": "private",
            }
            gr.on([box.submit, run.click], trigger_mode="always_last", **asked)
            if examples:
                gr.Markdown("## Examples")
                add_openers([(example, example) for example in examples], box, tabs, asked)
        if mistakes:
            with tabs, gr.Tab("Surest mistakes", id="mistakes"):
                add_openers(mistakes, box, tabs, asked)
        if answer_file:
            with tabs, gr.Tab("A file", id="file"):
                upload = gr.File(label="A file of texts: CSV, TSV, JSON, a workbook ...", elem_id="upload")
                ask = gr.Button("Answer all of its texts", variant="primary", elem_id="ask")
                answers = gr.File(label="The same with its answers", elem_id="answers")
                said = gr.Markdown(elem_id="said")
                ask.click(answer_file, upload, [answers, said], api_visibility="private")
    return page


def add_openers(texts: list[tuple[str, str]], box: gr.Textbox, tabs: gr.Tabs, asked: dict[str, Any]) -> None:
    """Add a button for each text, under what is said of it, that puts it into the box, where it is answered."""
    quiet = {"api_visibility": "private", "show_progress": "hidden"}
    for said, text in texts:
        button = gr.Button(shorten(said, 200, placeholder=" ..."), elem_classes="text", size="md")
        opened = button.click(lambda text=text: (text, gr.Tabs(selected="text")), outputs=[box, tabs], **quiet)
        opened.then(None, js="() => document.querySelector('#box textarea').focus()", **quiet).then(**asked)


def answer(
    text: str, label_names: list[str], log_probabilities: Callable[[list[str]], Tensor]
) -> Iterator[tuple[gr.Label, str, gr.HighlightedText, gr.Textbox]]:
    """Give the probabilities as soon as they are there, and again with the words; or a note on what is wrong."""
    text = " ".join(text.splitlines())  # as in training: a text is a line
    count, no_words = len(text.split()), (gr.HighlightedText(visible=False), gr.Textbox(visible=False))
    if not count:
        yield gr.Label(visible=False), "There is no text to classify: type one.", *no_words
        return
    if len(text) > MAX_CHARACTERS:
        problem = f"This text is too long: {len(text):,} characters, and the page takes {MAX_CHARACTERS:,}."
        yield gr.Label(visible=False), problem, *no_words
        return
    shares = log_probabilities([text])[0].exp().tolist()
    bars = dict(sorted(zip(label_names, shares, strict=True), key=lambda pair: -pair[1])[:MAX_BARS])
    found = gr.Label(bars, label=f"Probabilities, the largest {max(shares):.3f}", visible=True)
    if count == 1:
        yield found, "A single word cannot be left out: no text would remain.", *no_words
    elif count > MAX_WORDS:
        yield found, f"The words of a text are weighed up to {MAX_WORDS} words; this one has more.", *no_words
    else:
        yield found, "The words are being weighed ...", *no_words
        _, words, contributions = explain(text, log_probabilities)
        tints = [0.6 * share for share in shades(contributions)]  # in full colour they would be hard to read
        largest = sorted(zip(contributions, words, strict=True), key=lambda pair: -abs(pair[0]))
        numbers = "\n".join(f"{contribution:+.3f}  {word}" for contribution, word in largest)
        tinted = list(zip(words, tints, strict=True))
        yield found, "", gr.HighlightedText(tinted, visible=True), gr.Textbox(numbers, visible=True)


def show(page: gr.Blocks, **where: Any) -> None:
    """Serve the page until Ctrl-C; `where` is server_name and server_port, else Gradio's environment variables say."""
    quiet = {"quiet": True, "share": False, "ssr_mode": False, "footer_links": [], "run_history": False}
    _, url, _ = page.launch(theme=THEME, css=STYLE, prevent_thread_lock=True, **quiet, **where)
    print(f"the page is at {url} (Ctrl-C ends it)", flush=True)
    page.block_thread()


def show_exported(folder: Path) -> None:
    """Show the model in a folder that export_hf.py has written, as transformers computes it: for a Space's app.py."""
    from transformers import pipeline  # here: our own page does without

    classify = pipeline("text-classification", str(folder), truncation=True, top_k=None, batch_size=16)
    names = list(classify.model.config.id2label.values())

    def log_probabilities(texts: list[str]) -> Tensor:
        rows = [{found["label"]: found["score"] for found in row} for row in classify(texts)]
        return torch.tensor([[row[name] for name in names] for row in rows]).log()

    show(build("Text classifier", names, log_probabilities, [], []))
