"""The table of answers, and its file as people open it."""

import csv
import io

import numpy as np
import pytest
from helpers import examples
from hypothesis import given
from hypothesis import strategies as st

from qa.answer_files import csv_chunks, read_csv_columns, read_table, write_table
from qa.answer_table import excerpt, make_table
from qa.answers import Answers, RankedSpans, decide, softmax_of_groups, write_answers
from qa.seq2seq import RankedTexts


NILE = "The Nile floods each year near Cairo, and Cairo is old."
ROWS = [
    {"id": "a", "context": NILE, "question": "Which river floods?", "row": 1, "columns": {"topic": "rivers"}},
    {"id": "b", "context": NILE, "question": "How old is Giza?", "row": 2, "columns": {"topic": "towns"}},
    {"id": "c", "context": NILE, "question": "Where does it flood?", "row": 4, "columns": {"topic": "towns"}},
]
GOLDS = [
    {"text": ["the Nile", "The Nile"], "answer_start": [-1, 0]},
    {"text": [], "answer_start": []},
    {"text": ["near Cairo"], "answer_start": [26]},
]
SPANS = {  # begin, end and score of each candidate, the best first; 0 to 0 is "no answer"
    "a": [(4, 8, 6.0), (0, 8, 4.0), (0, 0, 1.0)],
    "b": [(0, 0, 5.0), (31, 36, 2.0)],
    "c": [(42, 47, 3.0), (0, 0, 2.5), (4, 8, 1.0), (26, 36, 0.5)],
}


def marked_answers() -> Answers:
    """Return answers of a model that marks them, to questions that may have none."""
    spans = [span for part in SPANS.values() for span in part]
    begin, end = (np.array([span[side] for span in spans]) for side in (0, 1))
    scores, bounds = np.array([span[2] for span in spans], dtype=np.float32), np.cumsum([0, *map(len, SPANS.values())])
    halves = {"start_logit": scores / 2, "end_logit": scores / 2, "probability": softmax_of_groups(scores, bounds)}
    best = {name: next(span for span in part if span[1]) for name, part in SPANS.items()}
    null = {name: next(span for span in part if not span[1]) for name, part in SPANS.items()}
    answers = Answers(best_texts={name: NILE[span[0] : span[1]] for name, span in best.items()})
    answers.null_odds = {name: null[name][2] - best[name][2] for name in best}
    answers.texts = decide(answers.best_texts, answers.null_odds, threshold=-1.0)
    answers.nbest = [RankedSpans(list(SPANS), [NILE] * 3, bounds, begin, end, **halves)]
    return answers


def written_answers() -> Answers:
    """Return answers of a model that writes, one for each of two windows."""
    texts = {"a": "Nile", "b": "3,000 years", "c": "Cairo"}
    ranked = ["Nile", "the Nile", "3,000 years", "", "Cairo", "near Cairo"]
    scores = np.array([-0.5, -2.0, -1.0, -3.0, -0.1, -0.2])
    numbers = {"score": scores, "probability": scores, "window": np.array([0, 1] * 3)}
    return Answers(
        texts=texts, best_texts=texts, nbest=[RankedTexts(list(texts), np.arange(0, 7, 2), ranked, numbers)]
    )


@pytest.fixture
def table():
    return make_table(marked_answers(), ROWS, np.array([1, 2, 1]), GOLDS, language="off")


def test_the_columns_of_marked_answers(table):
    shown = {name: column for name, column in table.columns.items() if name not in ("probability", "f1", "best_f1")}
    assert shown == {
        "id": ["a", "b", "c"],
        "question": [row["question"] for row in ROWS],
        "context": [NILE] * 3,
        "gold": ["the Nile | The Nile", "", "near Cairo"],
        "predicted": ["Nile", "", ""],
        "exact_match": [100.0, 100.0, 0.0],
        "null_odds": [-5.0, 3.0, -0.5],
        "start": [4, None, None],
        "end": [8, None, None],
        "row": [1, 2, 4],
        "windows": [1, 2, 1],
        "context_length": [55] * 3,
        "context_start": [0, 0, 0],
        "gold_start": [0, None, 26],
        "gold_end": [8, None, 36],
        "right_choice": [1, None, 3],
        "best_text": ["Nile", "Cairo", "Cairo"],
        "best_exact_match": [100.0, 0.0, 0.0],
        "topic": ["rivers", "towns", "towns"],
    }
    assert table.columns["f1"] == [100.0, 100.0, 0.0]
    assert table.columns["best_f1"] == pytest.approx([100.0, 0.0, 200 / 3])
    scores = [[6, 4, 1], [5, 2], [2.5, 3, 1, 0.5]]  # the answer's first
    assert table.columns["probability"] == pytest.approx([np.exp(part[0]) / np.exp(part).sum() for part in scores])
    others = [text for text, _ in table.choices.others["c"]]
    assert table.data_columns == ["topic"] and others == ["Cairo", "Nile", "near Cairo"]


def test_the_columns_of_written_answers():
    """Their places are those where the context has them; probabilities are those of writing them."""
    golds = [GOLDS[0], {"text": ["old"], "answer_start": [-1]}, GOLDS[2]]
    columns = make_table(written_answers(), ROWS, np.array([2, 2, 2]), golds, language="de").columns
    assert columns["start"] == [4, None, 31] and columns["end"] == [8, None, 36]
    assert columns["probability"] == pytest.approx(np.exp([-0.5, -1.0, -0.1]))
    assert columns["right_choice"] == [1, None, 2] and columns["gold_start"] == [0, None, 26]
    assert "null_odds" not in columns and columns["mlqa_f1"] == pytest.approx([200 / 3, 0.0, 200 / 3])


def test_a_prediction_has_no_gold_answers():
    answers = marked_answers()
    names = make_table(answers, ROWS, np.array([1, 1, 1]), None, language="off").columns
    assert (
        list(names)
        == (
            "id question context predicted probability null_odds start end row windows context_length context_start best_text "
            "topic"
        ).split()
    )


def test_a_table_reads_back_as_it_was(table, tmp_path):
    write_answers(marked_answers(), str(tmp_path), "eval")
    write_table(tmp_path, "eval", table)
    back = read_table(tmp_path, "eval")
    for name, column in table.columns.items():
        assert back.columns[name] == (column if isinstance(column[0], str) else pytest.approx(column, rel=1e-5)), name
    assert list(back.columns) == list(table.columns) and back.data_columns == table.data_columns
    assert back.choices.rank == table.choices.rank and back.choices.others == table.choices.others
    assert all(map(np.array_equal, back.choices.scores, table.choices.scores))


TEXTS = st.text(
    st.one_of(st.sampled_from("=+-@'\t\r\n \"1,;\uff1d\uff20"), st.characters(codec="utf-8", exclude_characters="\0"))
)


@examples(100)
@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=5), TEXTS.filter(lambda name: name not in ("id", "")))
def test_no_text_of_the_file_runs_in_a_spreadsheet(tmp_path_factory, rows, name):
    """And all texts read back; a spreadsheet takes what begins with one of these signs for a formula, unless it is a number."""
    columns = {"id": [first for first, _ in rows], name: [second for _, second in rows]}
    data = b"".join(csv_chunks(columns))
    path = tmp_path_factory.getbasetemp() / "table.csv"
    path.write_bytes(data)
    assert data.startswith(b"\xef\xbb\xbf") and read_csv_columns(path) == columns
    for cell in (cell for row in csv.reader(io.StringIO(data.decode("utf-8-sig"), newline="")) for cell in row):
        if cell.lstrip()[:1] in tuple("=+-@\uff1d\uff20"):
            assert set(cell) <= set("+-0123456789.,%"), cell


def test_half_a_surrogate_pair_is_written_as_its_number():
    assert b"".join(csv_chunks({"id": ["\ud800"]})).decode("utf-8-sig") == "id\r\n\\ud800\r\n"


@examples(100)
@given(st.integers(0, 3000), st.data())
def test_an_excerpt_holds_its_places(length, data):
    context = "".join(chr(ord("a") + number % 26) for number in range(length))
    place = st.one_of(
        st.just((None, None)), st.tuples(st.integers(0, length), st.integers(0, length)).map(sorted).map(tuple)
    )
    places = data.draw(place), data.draw(place)
    text, start = excerpt(context, *places)
    assert context[start : start + len(text)] == text and len(text) <= length
    for begin, end in places:
        assert begin is None or text[begin - start : end - start] == context[begin:end]
