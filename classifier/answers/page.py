"""The page: a text, its classes' probabilities, its words tinted by what they contribute; mistakes; files."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from html import escape
from textwrap import shorten
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # otherwise Gradio reports every start to its makers
import gradio as gr

from classifier.answers.explain import explain
from classifier.answers.models import Classifier, answer_texts, log_probabilities

MAX_CHARACTERS = 20_000  # of a text
MAX_WORDS = 300  # of a text whose words are left out in turn, which takes time that grows with their square
MAX_BARS = 10  # of many classes, the most probable
THEME = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])  # nothing to download
STYLE = """
.gradio-container { max-width: 52rem !important; margin: auto; overflow-wrap: anywhere; }
#words .textfield { word-break: normal; line-height: 1.9; }
#numbers textarea { font-family: var(--font-mono); }
button.text { justify-content: flex-start; text-align: left; font-weight: 400; }
"""


def build(
    title: str,
    classifiers: list[Classifier],
    examples: list[str],
    mistakes: list[tuple[str, str]],
    answer_file: Callable[[str | None], tuple[str | None, str, list[list[str]]]],
) -> gr.Blocks:
    """Build the page.

    Args:
        examples: texts to begin with.
        mistakes: for each, what its button says, and its text; without any, there is no tab for them.
        answer_file: takes the path of an uploaded file, and returns the path of the answers, or None, a message, and
            text, prediction and confidence of the first rows.
    """
    with gr.Blocks(title=title, analytics_enabled=False) as page:
        gr.HTML(f"<h1>{escape(title)}</h1>")
        with gr.Tabs() as tabs, gr.Tab("Text", id="text"):
            columns, label = classifiers[0].text_columns, "Text"
            if len(columns) > 1:
                label = f"Text: {', '.join(columns)}, in this order, each on a line of its own (Shift+Enter begins one)"
            ask_for = "Type a text, then press Enter"
            box = gr.Textbox(label=label, placeholder=ask_for, max_lines=12, buttons=["copy"], elem_id="box")
            run = gr.Button("Classify", variant="primary")
            found, note = gr.Label(visible=False, elem_id="found"), gr.Markdown(elem_id="note")
            colours = "Words that speak for the prediction in red, against it in violet"
            words = gr.HighlightedText(label=colours, visible=False, elem_id="words")
            meaning = "Probabilities; drop in log-probability without each word, in nats"
            numbers = gr.Textbox(label=meaning, max_lines=14, visible=False, buttons=["copy"], elem_id="numbers")
            shown: list[gr.blocks.Block] = [found, note, words, numbers]
            ask = partial(answer, classifiers)
            asked = [box.submit, run.click]
            gr.on(asked, ask, box, shown, trigger_mode="always_last", api_visibility="private")
            if examples:
                gr.Markdown("## Examples")
                for example in examples:
                    add_opener(example, example, box, tabs, ask, shown)
        if mistakes:
            with tabs, gr.Tab("Mistakes", id="mistakes"):
                gr.Markdown("The most confident mistakes on the dev set")
                for label, text in mistakes:
                    add_opener(label, text, box, tabs, ask, shown)
        with tabs, gr.Tab("File", id="file"):
            upload = gr.File(label="A file of texts: CSV, TSV, JSON, a workbook ...", elem_id="upload")
            classify = gr.Button("Classify every row", variant="primary", elem_id="ask")
            answers = gr.File(label="The file with predictions", elem_id="answers")
            message = gr.Markdown(elem_id="said")
            heads = ["text", "prediction", "confidence"]
            widths: list[str | int] = ["60%", "22%", "18%"]
            rows = gr.Dataframe(
                headers=heads, column_widths=widths, label="The first rows", wrap=True, visible=False, elem_id="rows"
            )

            def answered(path: str | None) -> tuple[str | None, str, gr.Dataframe]:
                found, said, first_rows = answer_file(path)
                return found, said, gr.Dataframe(first_rows, visible=bool(first_rows))

            classify.click(answered, upload, [answers, message, rows], api_visibility="private")
    return page


def add_opener(label: str, text: str, box: gr.Textbox, tabs: gr.Tabs, ask: Callable, shown: list[Any]) -> None:
    """Add a button that puts a text into the box and classifies it."""
    button = gr.Button(shorten(label, 200, placeholder=" ..."), elem_classes="text", size="md")
    into_box = lambda: (text, gr.Tabs(selected="text"))  # noqa: E731
    opened = button.click(into_box, outputs=[box, tabs], api_visibility="private", show_progress="hidden")
    focus = "() => document.querySelector('#box textarea').focus()"
    focused = opened.then(None, js=focus, api_visibility="private", show_progress="hidden")
    # the text itself: a browser's box changes some line ends
    focused.then(partial(ask, text), outputs=shown, api_visibility="private")


def answer(classifiers: list[Classifier], text: str) -> Iterator[tuple[gr.Label, str, gr.HighlightedText, gr.Textbox]]:
    """Yield the probabilities as soon as they are known, and again with the words; or a note on what is wrong."""
    no_words = gr.HighlightedText(visible=False), gr.Textbox(visible=False)
    problem, count = "", len(text.split())
    if not count:
        problem = "There is no text to classify: type one."
    elif len(text) > MAX_CHARACTERS:
        problem = f"This text is too long: {len(text):,} characters, and the page takes {MAX_CHARACTERS:,}."
    if problem:
        yield gr.Label(visible=False), problem, *no_words
        return
    first = classifiers[0]
    (chunk,) = answer_texts(classifiers, [text])
    names, shares = first.label_names, chunk.log_probabilities[0].exp().tolist()
    bars = dict(sorted(zip(names, shares, strict=True), key=lambda pair: -pair[1])[:MAX_BARS])
    title = f"Probabilities, the largest {max(shares):.3f}"
    if len(names) > MAX_BARS:
        title += f"; shown: {MAX_BARS} of {len(names):,} classes"
    found = gr.Label(bars, label=title, visible=True)
    cut = ""
    if chunk.longer[0]:
        cut = f"This text is long: only its {first.keep} {first.tokens_read} tokens are read."
    said = ", ".join(f"{name} {share:.3f}" for name, share in bars.items()) + "\n"
    no_words = gr.HighlightedText(visible=False), gr.Textbox(said, visible=True)
    if count == 1:
        yield found, "A one-word text has nothing to leave out.", *no_words
    elif count > MAX_WORDS:
        note = f"This text has {count:,} words; their contributions are computed for up to {MAX_WORDS}."
        yield found, f"{cut} {note}".strip(), *no_words
    else:
        yield found, f"{cut} Computing what each word contributes ...".strip(), *no_words
        _, words, contributions = explain(text, partial(log_probabilities, classifiers))
        largest = max(0.01, *map(abs, contributions))  # what is next to nothing gets no colour
        tints = [0.6 * contribution / largest for contribution in contributions]  # full colour would be hard to read
        ordered = sorted(zip(contributions, words, strict=True), key=lambda pair: -abs(pair[0]))
        numbers = "\n".join(f"{contribution:+.3f}  {word}" for contribution, word in ordered)
        tinted: list[tuple[str, str | float | None]] = list(zip(words, tints, strict=True))
        yield found, cut, gr.HighlightedText(tinted, visible=True), gr.Textbox(f"{said}\n{numbers}", visible=True)


def show(page: gr.Blocks, host: str, port: int) -> None:
    """Serve the page until Ctrl-C."""
    _, url, _ = page.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        ssr_mode=False,
        footer_links=[],
        run_history=False,
        theme=THEME,
        css=STYLE,
    )
    print(f"the page is at {url} (press Ctrl-C to stop it)", flush=True)
    page.block_thread()
