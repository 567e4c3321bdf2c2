"""Which columns of a file of one's own hold texts, labels and ids: as the options name them, else by their names."""

from argparse import Namespace
from pathlib import Path

from classifier.errors import UserError
from classifier.formats import format_of
from classifier.tables import Source, as_source, describe_header

USUAL_NAMES = {  # in lower case
    "text": ("text", "sentence", "review", "content", "comment"),
    "label": ("label", "sentiment", "category", "class", "target"),
}
INDEX_NAMES = ("", "unnamed: 0", "index", "__index_level_0__")  # as pandas writes its row numbers


def find_sources(files: dict[str, str | None], options: Namespace) -> tuple[dict[str, Source], str]:
    """Return split -> Source of each file that is given, and in words which columns were chosen and why.

    The training file decides; the others have columns of the same names, whatever their case.

    Args:
        files: split -> file, or None.
        options: with text_column, label_column and id_column, each a name or None.

    Raises:
        UserError: there is no such file, its name tells no format, or its columns do not tell what they hold.
    """
    sources = {split: as_source(Path(file)) for split, file in files.items() if file is not None}
    sources = {split: source._replace(format=format_of(source.path)) for split, source in sources.items()}
    columns = {split: source.format.columns(source.path) for split, source in sources.items()}
    options = {"text": options.text_column, "label": options.label_column, "id": options.id_column}
    chosen = choose_columns(sources["train"], columns["train"], options)
    text, label = (name for name, _ in chosen.values())
    for split, source in sources.items():
        id = match(columns[split], options["id"] or "id")
        sources[split] = source._replace(
            sentence=match(columns[split], text),
            label=match(columns[split], label),
            id=id if options["id"] is not None or id in columns[split] else None,
        )
    train = sources["train"]
    three = [train.sentence, train.label, train.id or "id"]
    if len(set(three)) < 3:
        raise UserError(f"text, label and id must be three columns, not {', '.join(three)}")
    return sources, ", ".join(f"{role}s in {name!r} ({reason})" for role, (name, reason) in chosen.items())


def match(columns: list[str], name: str) -> str:
    """Return the column of that name: as it is written, or else the only one that differs in case or spaces alone."""
    alike = [column for column in columns if plain(column) == plain(name)]
    return alike[0] if name not in columns and len(alike) == 1 else name


def plain(column: str) -> str:
    """Return a column's name in lower case and without spaces around it."""
    return column.strip().lower()


def choose_columns(source: Source, columns: list[str], options: dict[str, str | None]) -> dict[str, tuple[str, str]]:
    """Return the column of the texts and that of the labels, each with the reason: "text" and "label" -> both.

    A column that an option names; else the one with a usual name; else, of the columns that are left, the only one, or
    the two of a lone pair, texts first.

    Raises:
        UserError: no column is the one, or several could be.
    """
    found, missing = {}, []
    for role, usual in USUAL_NAMES.items():
        named = [column for column in dict.fromkeys(columns) if plain(column) in usual]
        if options[role] is not None:
            found[role] = match(columns, options[role]), f"--{role}_column"
        elif len(named) > 1:
            raise _unclear(source, columns, f"{' and '.join(map(repr, named))} could both be the {role}s", role)
        elif named:
            found[role] = named[0], "by its name"
        else:
            missing.append(role)
    taken = {plain(options["id"] or "id"), *INDEX_NAMES, *(plain(name) for name, _ in found.values())}
    taken.update(*USUAL_NAMES.values())
    left = [column for column in columns if plain(column) not in taken]
    if missing and len(left) != len(missing):
        raise _unclear(source, columns, f"no column's name tells that it holds the {missing[0]}s", missing[0])
    reason = "the only other column" if len(missing) == 1 else "of two columns"
    found |= {role: (column, reason) for role, column in zip(missing, left, strict=False)}
    return {role: found[role] for role in USUAL_NAMES}


def _unclear(source: Source, columns: list[str], problem: str, role: str) -> UserError:
    header = describe_header(source.format, columns)
    return UserError(f"{source.place(1)}: {problem}: choose one with --{role}_column; {header}")
