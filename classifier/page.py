"""The page: a text, its classes' probabilities as bars, its words tinted by what they contribute; the surest mistakes.

It knows no model, only a function that gives the log-probabilities of texts: an exported folder carries it, too.
"""

import os
from collections.abc import Callable, Iterator
from html import escape
from typing import Any, NamedTuple

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # it would tell its maker of every start
import gradio as gr
from torch import Tensor

from classifier.explain import Explanation, explain, shades

MAX_CHARACTERS, MAX_WORDS = 20_000, 300  # of a text; of one whose words are weighed, which takes the square of its time
# Okabe and Ito 2008, "Color Universal Design": told apart with any kind of colour vision
FOR, AGAINST = "0, 114, 178", "230, 159, 0"
THEME = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])  # none from the net
STYLE = f"""
.gradio-container {{ max-width: 52rem !important; margin: auto; }}
.bars, .words, .legend, .contributions {{ color: var(--body-text-color); }}
.bars {{ width: 100%; border-collapse: collapse; --bar: rgb({FOR}); }}
.dark .bars {{ --bar: #56b4e9; }}
.bars, .bars tr {{ border: 0 !important; }}
.bars th, .bars td {{ border: 0 !important; padding: 0.2rem 0; font-weight: 400; text-align: left; }}
.bars th {{ padding-right: 0.8rem; overflow-wrap: break-word; }}
.bars td:nth-child(2) {{ width: 70%; }}
.bars td:last-child {{ padding-left: 0.8rem; font-variant-numeric: tabular-nums; }}
.bars .predicted > * {{ font-weight: 700; }}
.bars div {{ height: 1rem; min-width: 2px; border-radius: 2px; background: var(--bar); opacity: 0.6; }}
.bars .predicted div {{ opacity: 1; }}
.words {{ line-height: 1.9; overflow-wrap: anywhere; }}
.words span, .legend span {{ padding: 0.1rem 0.2rem; border-radius: 3px; }}
.legend, .contributions {{ font-size: 0.9rem; }}
.contributions summary {{ cursor: pointer; }}
.contributions ol {{ max-height: 20rem; overflow: auto; padding-left: 2.5rem; list-style: decimal; }}
button.text {{ justify-content: flex-start; text-align: left; font-weight: 400; white-space: normal; }}
button.text {{ overflow-wrap: anywhere; }}
"""


class Mistake(NamedTuple):
    """An example of the dev set that is predicted wrongly."""

    text: str
    label: str
    prediction: str
    probability: float


def build(
    title: str,
    label_names: list[str],
    log_probabilities: Callable[[list[str]], Tensor],
    examples: list[str],
    mistakes: list[Mistake],
) -> gr.Blocks:
    """Return the page.

    Args:
        title: stands above.
        label_names: the classes, in the order of their numbers.
        log_probabilities: returns (texts, K) for a list of texts.
        examples: texts to begin with.
        mistakes: what the second tab lists; without any there is no such tab.
    """

    def answer(text: str) -> Iterator[tuple[str, str]]:
        """Give the bars as soon as they are there, and again with the words."""
        text = " ".join(text.splitlines())  # as in training: a text is a line
        if problem := trouble(text):
            yield sentence(problem), ""
            return
        shown = bars(label_names, log_probabilities([text])[0].exp().tolist())
        yield shown, sentence("The words are being weighed ...")
        is_short = len(text.split()) <= MAX_WORDS
        too_long = f"The words of a text are weighed up to {MAX_WORDS:,} words; this one has more."
        yield shown, tinted(explain(text, log_probabilities), label_names) if is_short else sentence(too_long)

    with gr.Blocks(title=title, analytics_enabled=False) as page:
        gr.HTML(f"<h1>{escape(title)}</h1>")
        with gr.Tabs() as tabs, gr.Tab("Text", id="text"):
            box = gr.Textbox(label="Text", placeholder="Type a text, then Enter", max_lines=12, elem_id="box")
            run = gr.Button("Classify", variant="primary")
            found, words = gr.HTML(elem_id="found"), gr.HTML(elem_id="words")
            shown = {"fn": answer, "inputs": box, "outputs": [found, words], "api_visibility": "private"}
            gr.on([box.submit, run.click], trigger_mode="always_last", **shown)
            if examples:
                gr.HTML("<h2>Examples</h2>")
                openers(examples, examples, box, tabs, shown)
        if mistakes:
            with tabs, gr.Tab("Surest mistakes", id="mistakes"):
                names = [f"{m.label}, taken for {m.prediction} ({m.probability:.3f}): {m.text}" for m in mistakes]
                openers(names, [mistake.text for mistake in mistakes], box, tabs, shown)
    return page


def openers(names: list[str], texts: list[str], box: gr.Textbox, tabs: gr.Tabs, shown: dict[str, Any]) -> None:
    """Add a button for each text that puts it into the box, where the answer to it appears."""
    quiet = {"api_visibility": "private", "show_progress": "hidden"}
    for name, text in zip(names, texts, strict=True):
        button = gr.Button(shortened(name), elem_classes="text")
        opened = button.click(lambda text=text: (text, gr.Tabs(selected="text")), outputs=[box, tabs], **quiet)
        opened.then(None, js="() => document.querySelector('#box textarea').focus()", **quiet).then(**shown)


def show(page: gr.Blocks, **where: Any) -> None:
    """Serve the page until Ctrl-C; `where` is server_name and server_port, else Gradio's environment variables say."""
    quiet = {"quiet": True, "share": False, "ssr_mode": False, "footer_links": [], "run_history": False}
    _, url, _ = page.launch(theme=THEME, css=STYLE, prevent_thread_lock=True, **quiet, **where)
    print(f"the page is at {url} (Ctrl-C ends it)", flush=True)
    page.block_thread()


# -----------------------------------------------------------------------------
# what stands on it


def trouble(text: str) -> str:
    """Return why a text cannot be classified, or nothing."""
    if not text.strip():
        return "There is no text to classify: type one."
    if len(text) > MAX_CHARACTERS:
        return f"This text is too long: {len(text):,} characters, and the page takes {MAX_CHARACTERS:,}."
    return ""


def shortened(text: str) -> str:
    """Return the beginning of a text that is long for a button."""
    return text if len(text) <= 200 else text[:200] + " ..."


def sentence(text: str) -> str:
    """Return a sentence as HTML."""
    return f"<p role='status'>{escape(text)}</p>"


def bars(label_names: list[str], probabilities: list[float]) -> str:
    """Return the classes' probabilities as the bars of a table."""
    rows = []
    for name, probability in zip(label_names, probabilities, strict=True):
        kind = " class='predicted'" if probability == max(probabilities) else ""
        bar = f"<div style='width: {100 * probability:.1f}%'></div>"
        rows.append(f"<tr{kind}><th scope='row'>{escape(name)}</th><td>{bar}</td><td>{probability:.3f}</td></tr>")
    return f"<table class='bars' aria-label='probabilities'>{''.join(rows)}</table>"


def tinted(explanation: Explanation, label_names: list[str]) -> str:
    """Return a text's words on colours for what they contribute, and their numbers in a list to be opened."""
    if not explanation.contributions:
        return sentence("A single word cannot be left out: no text would remain.")
    name = f"<b>{escape(label_names[explanation.log_probabilities.argmax()])}</b>"
    pairs = list(zip(explanation.words, explanation.contributions, strict=True))
    spans = [
        span(word, shade, each) for (word, each), shade in zip(pairs, shades(explanation.contributions), strict=True)
    ]
    legend = f"Without a {span('blue', 1)} word {name} is less likely, without an {span('orange', -1)} one more."
    items = [f"<li>{escape(word)} {each:+.3f}</li>" for word, each in sorted(pairs, key=lambda pair: -abs(pair[1]))]
    return (
        f"<p class='words'>{' '.join(spans)}</p><p class='legend'>{legend}</p>"
        f"<details class='contributions'><summary>The words' numbers</summary>"
        f"<p>What the log-probability of {name} loses when the word is left out:</p>"
        f"<ol>{''.join(items)}</ol></details>"
    )


def span(word: str, shade: float, contribution: float | None = None) -> str:
    """Return a word on a colour for a share of -1 to 1."""
    colour = f"rgba({FOR if shade > 0 else AGAINST}, {0.6 * abs(shade):.2f})"
    title = "" if contribution is None else f" title='{contribution:+.3f}'"
    return f"<span style='background: {colour}'{title}>{escape(word)}</span>"
