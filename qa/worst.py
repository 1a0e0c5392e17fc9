"""The examples with the worst answers, marked in their contexts."""

import numpy as np

from qa.answer_table import AnswerTable


WORST = 50
NEIGHBOURHOOD = 250  # characters that are shown next to a marked answer
SHOWN = "id question gold predicted exact_match f1 probability null_odds row".split()  # columns of the table


def worst_examples(table: AnswerTable) -> list[dict]:
    """Return the examples with a wrong answer of the lowest F1, of equal ones those of which the model is surest."""
    f1, probability = table.numbers("f1"), np.nan_to_num(table.numbers("probability"))
    order = np.lexsort((-probability, f1))
    chosen = [place for place in order.tolist() if not table.columns["exact_match"][place]][:WORST]
    return [worst_example(table, place) for place in chosen]


def worst_example(table: AnswerTable, place: int) -> dict:
    row = {name: column[place] for name, column in table.columns.items()}
    marks = {"gold": (row["gold_start"], row["gold_end"]), "predicted": (row.get("start"), row.get("end"))}
    return {
        **{name: row[name] for name in SHOWN if name in row},
        "data": {name: row[name] for name in table.data_columns},
        "context": marked(row["context"], marks, row["context_start"], row["context_length"]),
        "others": [{"text": text, "probability": share} for text, share in table.choices.others.get(row["id"], ())],
    }


def marked(text: str, marks: dict[str, tuple], start: int, length: int) -> list[dict]:
    """Return the parts of an excerpt of a context, each with the names of its marks.

    Args:
        marks: characters of the context by name, None where there is nothing to mark.
        start: the first character of the excerpt.
        length: of the context.

    >>> marked("the old Cairo", {"gold": (8, 13), "predicted": (4, 13)}, start=0, length=13)
    [{'text': 'the ', 'marks': []}, {'text': 'old ', 'marks': ['predicted']}, {'text': 'Cairo', 'marks': ['gold', 'predicted']}]
    """
    spans = {name: (begin - start, end - start) for name, (begin, end) in marks.items() if begin is not None}
    edges = sorted({0, len(text), *(min(max(edge, 0), len(text)) for span in spans.values() for edge in span)})
    parts = [
        {
            "text": text[begin:end],
            "marks": [name for name, span in spans.items() if span[0] <= begin and end <= span[1]],
        }
        for begin, end in zip(edges, edges[1:])
    ]
    for number, part in enumerate(parts):
        if not part["marks"]:
            part["text"] = shortened(part["text"], first=number == 0, last=number == len(parts) - 1)
    before = {"text": "… " * (start > 0), "marks": []}
    after = {"text": " …" * (start + len(text) < length), "marks": []}
    return [part for part in [before, *parts, after] if part["text"]]


def shortened(text: str, first: bool, last: bool) -> str:
    """Return the beginning and the end of a long text between marks, whole words; only the side next to a mark at the ends."""
    if len(text) <= 2 * NEIGHBOURHOOD:
        return text
    before = "" if first else text[:NEIGHBOURHOOD].rpartition(" ")[0]
    after = "" if last and not first else text[-NEIGHBOURHOOD:].partition(" ")[2]
    return f"{before} … {after}"
