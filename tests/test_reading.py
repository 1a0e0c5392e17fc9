"""Files of questions: every layout, encoding and form of answers is read as the same rows; anything else is reported in one line."""

import csv
import datetime
import gzip
import io
import json
import random
import sys
import zipfile
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
from helpers import ROOT, examples
from hypothesis import example, given
from hypothesis import strategies as st

from qa.errors import UserError
from qa.reading import READERS, read_file
from qa.shapes import answers_problem, check_columns, common_shape, record_problem, says_impossible


NILE = "The Nile flows north through Egypt. Cairo lies on the Nile, and the delta begins after Cairo."
WHICH = "What lies on the Nile?"
CAIRO = {"text": ["Cairo"], "answer_start": [36]}
NONE = {"text": [], "answer_start": []}


def columns(**flags) -> SimpleNamespace:
    """Return the flags that name columns, as DataArguments has them."""
    names = {"context_column": "context", "question_column": "question", "answer_column": "answers", "id_column": None}
    return SimpleNamespace(**names | flags)


def read_rows(path, needs_answers: bool = True, **flags) -> list[dict]:
    """Return the rows of a file; a row that cannot be one is a UserError, as in a run."""
    data = columns(**flags)
    records = read_file(path)
    check_columns(records, path.name, data, needs_answers)
    for record in records:
        problem = record_problem(record, data) or answers_problem(record, data)
        if problem:
            raise UserError(f"{path}: {problem}")
    return [common_shape(record, number, data) for number, record in enumerate(records, start=1)]


def row(identity="0", answers=CAIRO, **changes) -> dict:
    return {"id": identity, "title": "", "context": NILE, "question": WHICH, "answers": answers} | changes


def record(**changes) -> dict:
    return {"context": NILE, "question": WHICH, "answers": CAIRO} | changes


def qa(**changes) -> dict:
    return {"question": WHICH, "answers": [{"text": "Cairo", "answer_start": 36}]} | changes


def squad(*qas: dict) -> dict:
    return {"data": [{"title": "Nile", "paragraphs": [{"context": NILE, "qas": list(qas)}]}]}


def table(*rows: list, delimiter=",") -> str:
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter).writerows(rows)
    return file.getvalue()


PLAIN = [["id", "context", "question", "answers", "answer_start"], ["a", NILE, WHICH, "Cairo", "36"]]
MRQA = [{"header": {"dataset": "Nile"}}, {"context": NILE, "qas": [
    {"qid": "q", "question": WHICH, "answers": ["Cairo", "El Qahira"], "detected_answers": [
        {"text": "Cairo", "char_spans": [[36, 40], [87, 91]]}, {"text": "nile and the delta", "char_spans": [[50, 72]]}, {"text": "Peru", "char_spans": [[4, 7]]}
    ]}
]}]  # fmt: skip

# name of the case: (ending, content: a text, bytes, or an object to write as JSON; expected rows; flags)
READ = {
    "no id in SQuAD's layout": ("json", squad(qa(), qa()), [row("0", title="Nile"), row("1", title="Nile")], {}),
    "guid": ("json", squad(qa(guid="g"), qa(guid="g", id="a"), qa(guid="h", id=None)), [row(i, title="Nile") for i in "gah"], {}),
    "paragraphs without articles": ("json", [{"context": NILE, "qas": [qa(id="a")]}], [row("a")], {}),
    "one paragraph": ("json", {"context": NILE, "qas": [qa(id="a")]}, [row("a")], {}),
    "MRQA": ("jsonl", "\n".join(map(json.dumps, MRQA)), [row("q", {"text": ["Cairo", "Cairo", "the Nile, and the delta", "Peru"], "answer_start": [36, 87, 50, 4]})], {}),
    "mrqa on the hub": ("json", [record(detected={"text": ["Nile", "Cairo"], "char_spans": [{"start": [4, 50], "end": [7, 53]}, {"start": [36], "end": [40]}]})],
                        [row(answers={"text": ["Nile", "Nile", "Cairo"], "answer_start": [4, 50, 36]})], {"answer_column": "detected"}),
    "Label Studio": ("json", [record(id=1, answer=[{"start": 36, "end": 41, "text": "Cairo", "labels": ["Answer"]}])], [row("1")], {"answer_column": "answer"}),
    "single values": ("json", [record(answers={"text": "Cairo", "answer_start": 36})], [row()], {}),
    "answer_text": ("json", [record(answers={"answer_text": ["Cairo"], "answer_start": [36]})], [row()], {}),
    "floats": ("csv", table(PLAIN[0], ["a", NILE, WHICH, "Cairo", "36.0"], ["b", NILE, WHICH, "", ""]), [row("a"), row("b", NONE)], {}),
    "NaN": ("json", [record(id=1.0, answers="Cairo", answer_start=36.0), record(id=float("nan"), answers=float("nan"), answer_start=float("nan"))], [row("1"), row("1", NONE)], {}),
    "numbers": ("json", [record(answers=[1912, 36.0]), record(answers=7)], [row(answers={"text": ["1912", "36"], "answer_start": [-1, -1]}), row("1", {"text": ["7"], "answer_start": [-1]})], {}),
    "null starts": ("json", [record(answers={"text": ["Cairo"], "answer_start": [None]})], [row(answers={"text": ["Cairo"], "answer_start": [-1]})], {}),
    "no answer": ("json", [record(answers=a) for a in ([""], [None], {"text": [" "], "answer_start": [0]}, {"text": "", "answer_start": []}, {}, None, "")], [row(str(n), NONE) for n in range(7)], {}),
    "no answers in the first row": ("jsonl", json.dumps({"context": NILE, "question": WHICH}) + "\n" + json.dumps(record()), [row("0", NONE), row("1")], {}),
    "two columns of lists": ("csv", table(PLAIN[0], ["a", NILE, WHICH, "['Cairo' 'Nile']", "[36  4]"]), [row("a", {"text": ["Cairo", "Nile"], "answer_start": [36, 4]})], {}),
    "brackets in prose": ("csv", table(PLAIN[0][:4], *(["a", NILE, WHICH, text] for text in ("[citation needed]", "{x}", "[a 'b] c"))),
                          [row("a", {"text": [text], "answer_start": [-1]}) for text in ("[citation needed]", "{x}", "[a 'b] c")], {}),
    "--id_column": ("json", [record(id=1, key="k")], [row("k")], {"id_column": "key"}),
    "semicolons and prose with commas": ("csv", "id;context;question\n1;The Nile, they say, flows, far away.;Where, say?\n",
                                          [row("1", NONE, context="The Nile, they say, flows, far away.", question="Where, say?")], {"needs_answers": False}),
    "tabs": ("tsv", table(*PLAIN, delimiter="\t"), [row("a")], {}),
    "tabs in .csv": ("csv", table(*PLAIN, delimiter="\t"), [row("a")], {}),
    "an index without a name": ("tsv", table(["", *PLAIN[0]], ["0", *PLAIN[1]], delimiter="\t"), [row("a")], {}),
    "blanks after commas": ("csv", f'id, context, question, answers\na, "{NILE}", {WHICH}, ""', [row("a", NONE)], {}),
    "Excel's line about the delimiter": ("csv", "sep=;\r\n" + table(*PLAIN, delimiter=";"), [row("a")], {}),
    "numbers with a decimal comma": ("json", [record(context="Es sind 3,5 %.", answers=3.5), record(context="Es sind 3.5 %, nicht 3,5.", answers=3.5)],
                                     [row("0", {"text": ["3,5"], "answer_start": [-1]}, context="Es sind 3,5 %."), row("1", {"text": ["3.5"], "answer_start": [-1]}, context="Es sind 3.5 %, nicht 3,5.")], {}),
    "blank rows": ("csv", "\r\n" + table(*PLAIN) + "\r\n,,,,\r\n ,,,,,,\r\n\r\n", [row("a")], {}),
    "upper case and gzip": ("CSV.gz", gzip.compress(table(*PLAIN).encode()), [row("a")], {}),
    "JSON of several lines each": ("json", "\n".join(json.dumps(record(), indent=1) for _ in "ab"), [row("0"), row("1")], {}),
}  # fmt: skip


def to_bytes(content) -> bytes:
    if isinstance(content, bytes):
        return content
    return (content if isinstance(content, str) else json.dumps(content)).encode()


@pytest.mark.parametrize("case", READ)
def test_files_of_tools_and_libraries_are_read(tmp_path, case):
    ending, content, rows, flags = READ[case]
    path = tmp_path / f"x.{ending}"
    path.write_bytes(to_bytes(content))
    assert read_rows(path, **flags) == rows


# name of the case: (ending, content, part of the message)
REFUSED = {
    "infinite start": ("json", '[{"context":"c","question":"q","answers":{"text":["c"],"answer_start":[Infinity]}}]', "answer_start inf is not a position"),
    "half a start": ("json", [record(answers={"text": ["Cairo"], "answer_start": [36.5]})], "answer_start 36.5 is no"),
    "true as a start": ("json", [record(answers={"text": ["Cairo"], "answer_start": [True]})], "answer_start True is no"),
    "huge start": ("json", [record(answers={"text": ["Cairo"], "answer_start": [10**400]})], "is not a position"),
    "true as an answer": ("json", [record(answers=[True])], "the answer True is not a text"),
    "more starts than texts": ("json", [record(answers={"text": ["Cairo"], "answer_start": [1, 36]})], "1 answers, ['Cairo'], have 2 starts, [1, 36]"),
    "no text": ("json", [record(answers=[{"start": 36, "end": 41}])], "{'end': 41, 'start': 36} has no `text`"),
    "char_spans": ("json", [record(answers=[{"text": "Cairo", "char_spans": [36, 40]}])], "char_spans [36, 40] are not"),
    "unhashable": ("csv", 'context,question,answers\na {[1]: 2} b,q,{[1]: 2}\n', "the cell '{[1]: 2}' cannot be read: unhashable"),
    "minus signs": ("csv", f"context,question,answers\nc,q,[{'-' * 3000}1]\n", "is nested too deeply"),
    "brackets": ("csv", f"context,question,answers\nc,q,{'[' * 100_000}\n", "is nested too deeply"),
    "a cell cut short": ("csv", table(PLAIN[0][:4], ["a", NILE, WHICH, "{'text': ['Cairo'], 'answer_st"]), "{'text': ['Cairo'], 'answer_st\" is neither JSON nor"),
    "impossible in part": ("json", [record(is_impossible="maybe")], "is_impossible is 'maybe'; write true or false"),
    "an object as id": ("json", [record(id={"$oid": "7"})], "its id {'$oid': '7'} is neither"),
    "surplus fields": ("csv", "context,question,answers\nThe Nile, far away,Where?,away\n", "it has more fields than the header (1, from 'away' on"),
    "surplus empty fields": ("csv", "context,question,answers\nThe Nile, far away,Where?,\n", "it has more fields than the header (1, from '' on"),
    "open quote": ("csv", 'context,question,answers\na,b,c\nd,"e,f\n', "row 2, from line 3 on: unexpected end of data"),
    "two columns of a name": ("csv", "context,question,context\na,b,c\n", "the column 'context' more than once"),
    "JSON in CSV": ("csv", [record()], "it holds JSON; rename it to end in .json"),
    "CSV in JSON": ("json", table(*PLAIN), "line 1 is not JSON: Expecting value (column 1), at 'id,context"),
    "Parquet in JSON": ("json", b"PAR1....", "it holds what .parquet files do; rename"),
    "Excel in CSV": ("csv", b"PK\x03\x04....", "it holds what .xlsx files do; rename"),
    "gzip without its ending": ("json", gzip.compress(b"[]"), "it holds what .gz files do; rename"),
    "gzip cut short": ("json.gz", gzip.compress(json.dumps([record()]).encode())[:40], "ended before"),
    "a number without end": ("json", '\n[{"answer_start":' + "9" * 5000 + "}]", "line 2 has a number of over 4300 digits"),
    "gzip damaged": ("json.gz", gzip.compress(bytes(random.Random(0).randbytes(400)))[:-30] + bytes(30), "cannot be read as .json"),
    "empty": ("jsonl", b" \n", "the file is empty"),
    "another kind": ("txt", b"x", "not one of .json, .jsonl, .csv, .tsv, .parquet, .xlsx"),
    "a broken line": ("jsonl", json.dumps(record()) + '\n{"context": \n', "line 3 is not JSON: Expecting value (column 1), at the end of the file"),
    "a line that is no object": ("jsonl", json.dumps(record()) + "\n7\n", "row 2 is not an object of columns but 7"),
    "deep JSON": ("json", "\n" + "[" * 100_000, "line 2 is nested too deeply"),
    "no list of articles": ("json", {"data": {"title": "t"}}, "row 1, 2, ... should be a list of objects, not {'title': 't'}"),
    "no questions": ("json", {"data": [{"paragraphs": [{"context": "c"}]}]}, "row 1, paragraph 1, question 1, 2, ... should be a list of objects, not None"),
    "a text as a question": ("json", {"data": [{"paragraphs": [{"context": "c", "qas": ["Where?"]}]}]}, "row 1, paragraph 1, question 1 is not an object of columns but 'Where?'"),
    "damaged UTF-8": ("csv", "context,question\nRhône à Genève,où\nl'\udce9t\n".encode(errors="surrogateescape"), r"line 3 is not utf-8: invalid continuation byte (b'\xe9t\n')"),
    "damaged UTF-16": ("csv", "context\nRhône".encode("utf-16")[:-1], "not utf-16"),
    "no text at all": ("csv", bytes(range(128, 256)) * 9, "not text in a known encoding"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_mistake_is_reported_in_one_line_with_the_value_found(tmp_path, case):
    ending, content, part = REFUSED[case]
    path = tmp_path / f"x.{ending}"
    path.write_bytes(to_bytes(content))
    with pytest.raises(UserError) as caught:
        read_rows(path, needs_answers=False)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{path}: ") and part in problem
    assert "\n" not in problem and len(problem) < len(str(path)) + 340


def test_files_that_fill_the_memory_are_refused_and_rows_that_repeat_are_not(tmp_path, monkeypatch):
    """The limit is higher than what any rows reach: here the same one each time."""
    monkeypatch.setattr("qa.reading.UNPACKED", 2**17)
    bomb, sheet, good = (tmp_path / name for name in ("bomb.json.gz", "sheet.xlsx", "good.jsonl.gz"))
    bomb.write_bytes(gzip.compress(bytes(2**20)))
    with zipfile.ZipFile(sheet, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/worksheets/sheet1.xml", bytes(2**20))
    good.write_bytes(gzip.compress((json.dumps(record()) + "\n").encode() * 3_000, compresslevel=9))
    for path in (bomb, sheet):
        with pytest.raises(UserError, match="it unpacks to over 300 times its size, as no text does; if it is good,"):
            read_file(path)
    assert len(read_file(good)) == 3_000


def test_columns_that_no_row_has_are_named_with_those_that_are_there(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(
        json.dumps(
            [
                {"context": NILE, "id": 1, "key": None},
                {"answer": "Cairo", "The Nile passes Cairo, and then it reaches the sea.": "?"},
            ]
        )
    )
    with pytest.raises(UserError) as caught:
        read_rows(path, id_column="key")
    assert caught.value.problems == (
        "x.json: no column `question`, `key`, `answers`; there are: context, id, answer, The Nile passes Cairo, and then it reach...; "
        "name the right ones with "
        "--question_column, --id_column, --answer_column",
    )
    path.write_text(json.dumps([record(key="k"), record()]))
    with pytest.raises(UserError, match="its column `key` .--id_column. is empty; fill it"):
        read_rows(path, id_column="key")


def test_a_folder_is_refused_in_one_line(tmp_path):
    (tmp_path / "x.json").mkdir()
    with pytest.raises(UserError, match="x.json: cannot be read as .json: .*directory"):
        read_file(tmp_path / "x.json")


def test_is_impossible_in_every_spelling():
    spellings = {True: (True, 1, 1.0, "1", "true", "True", " TRUE "), False: (False, 0, "0", "0.0", "False", "", None)}
    for expected, values in spellings.items():
        assert [says_impossible({"is_impossible": value}) for value in values] == [expected] * len(values)
    assert not says_impossible({})
    check_columns([{"context": NILE, "question": WHICH, "is_impossible": "1"}], "x", columns(), needs_answers=True)


# The encodings that the programs of those countries write, and a sentence of each.
ENCODED = {
    "cp1252": ["Le Rhône coule à Genève, l’été.", "Die Donau fließt durch Österreich – „schön“.", "¿Dónde está el Tajo, según él?"],
    "cp1250": ["Wisła płynie przez Kraków; gdzie leży Łódź?"],
    "cp1251": ["Волга впадает в Каспийское море."],
    "cp932": ["利根川は関東地方を流れる川である。"],
    "gb18030": ["长江流经中国。上海位于长江口。"],
    "utf-16": ["Le Rhône coule à Genève.", "长江流经中国。"],
    "utf-16-le": ["Le Rhône coule à Genève."],
    "utf-16-be": ["Le Rhône coule à Genève."],
    "utf-8-sig": ["Le Rhône coule à Genève."],
    "utf-32": ["Le Rhône coule à Genève."],
}  # fmt: skip


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize("encoding", ENCODED)
def test_encodings(tmp_path, caplog, encoding, kind):
    path = tmp_path / f"x.{kind}"
    for sentence in ENCODED[encoding]:
        expected = [row(f"r{n}", context=f"{sentence} {n}") for n in range(3)]
        if kind == "csv":
            text = table(PLAIN[0], *([r["id"], r["context"], WHICH, "Cairo", 36] for r in expected))
        else:
            text = "\n".join(json.dumps(r, ensure_ascii=False) for r in expected)
        path.write_bytes(text.encode(encoding))
        caplog.clear()
        assert read_rows(path) == expected
        guessed = not encoding.startswith("utf")
        assert (f"not UTF-8; read as {encoding}, as in " in caplog.text) == guessed
        assert not guessed or any(word in caplog.text for word in sentence.split() if not word.isascii())


QUOTES = ['it\'s "so"', 'say "so"', "it's", "a\nb", "a \\ b", "[x]", "", "😀"]


@pytest.mark.parametrize("answers", [["Cairo"], QUOTES, [f"{word} {n}" for n in range(30) for word in QUOTES[:5]], []])
@pytest.mark.parametrize("array", [lambda values: np.array(values, dtype=object), np.array, tuple], ids=["object", "text", "tuple"])  # fmt: skip
def test_cells_as_numpy_prints_them(tmp_path, answers, array):
    """As `to_pandas().to_csv()` writes them: long arrays over several lines, quotes of both kinds, none at all."""
    path = tmp_path / "x.csv"
    starts = range(len(answers))
    cell = {"text": array(answers), "answer_start": array(list(starts))}
    split = {"answers": array(answers), "answer_start": array(list(starts))}  # printed by str, not by repr
    expected = {"text": [a for a in answers if a], "answer_start": [s for a, s in zip(answers, starts) if a]}
    for cells in [{"answers": cell}] + [split] * (array is not tuple and len(answers) < 30):
        frame = pandas.DataFrame([{"context": NILE, "question": WHICH} | cells])
        frame.to_csv(path)
        assert read_rows(path) == [row(answers=expected)]


def test_scalars_of_numpy_are_read(tmp_path):
    """numpy 2 prints `np.int32(36)`."""
    path = tmp_path / "x.csv"
    cell = {
        "text": [np.str_("Cairo")],
        "answer_start": [np.int32(36)],
        "score": np.float64("nan"),
        "rank": float("nan"),
    }
    path.write_text(table(PLAIN[0][:4], ["a", NILE, WHICH, cell]))
    assert read_rows(path) == [row("a")]


def test_files_of_the_library_datasets_are_read(tmp_path):
    import datasets

    rows = [row("a"), row("b", {"text": ["Cairo", 'it\'s "so"'], "answer_start": [36, 1]}), row("c", NONE)]
    dataset = datasets.Dataset.from_list(rows)
    for write, name in ((dataset.to_csv, "x.csv"), (dataset.to_json, "x.jsonl"), (dataset.to_parquet, "x.parquet")):
        write(str(tmp_path / name))
        assert read_rows(tmp_path / name) == rows


def write_xlsx(path, *rows: list) -> None:
    """The smallest Excel file with a sheet of these rows."""
    office = "http://schemas.openxmlformats.org"
    relation = f'<Relationship Id="rId1" Type="{office}/officeDocument/2006/relationships/%s" Target="%s"/>'
    relations = f'<Relationships xmlns="{office}/package/2006/relationships">{relation}</Relationships>'
    cells = "".join(
        "<row>%s</row>"
        % "".join(
            f"<c><v>{value}</v></c>" if isinstance(value, float) else f'<c t="inlineStr"><is><t>{value}</t></is></c>'
            for value in values
        )
        for values in rows
    )
    names = f'xmlns="{office}/spreadsheetml/2006/main" xmlns:r="{office}/officeDocument/2006/relationships"'
    parts = {
        "_rels/.rels": relations % ("officeDocument", "xl/workbook.xml"),
        "xl/_rels/workbook.xml.rels": relations % ("worksheet", "worksheets/sheet1.xml"),
        "xl/workbook.xml": f'<workbook {names}><sheets><sheet name="s" sheetId="1" r:id="rId1"/></sheets></workbook>',
        "xl/worksheets/sheet1.xml": f"<worksheet {names}><sheetData>{cells}</sheetData></worksheet>",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in parts.items():
            archive.writestr(name, f'<?xml version="1.0" encoding="UTF-8"?>{text}')


def test_excel(tmp_path):
    pytest.importorskip("python_calamine")
    path = tmp_path / "x.xlsx"
    write_xlsx(path, [*PLAIN[0], ""], [7.0, NILE, WHICH, "Cairo", 36.0, "a note"], [""], [8.0, NILE, WHICH, 1912.0])
    assert read_rows(path) == [row("7"), row("8", {"text": ["1912"], "answer_start": [-1]})]
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="x.xlsx: cannot be read as .xlsx: "):
        read_file(path)


def test_excel_without_its_reader_names_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "python_calamine", None)
    write_xlsx(tmp_path / "x.xlsx", *PLAIN)
    with pytest.raises(UserError, match="run `pip install python-calamine`, or save the sheet as CSV"):
        read_file(tmp_path / "x.xlsx")


# ---------------------------------------------------------------------------------------------------------------------
# Fuzzing


def check_rows_or_line(path, data=columns()) -> None:
    """Check that a file is read as rows whose answers have texts and whole starts, or is refused in a line that names it."""
    try:
        records = read_file(path)
        check_columns(records, str(path), data, needs_answers=False)
    except UserError as error:
        assert all(problem.startswith(str(path)) and "\n" not in problem for problem in error.problems)
        return
    check_records(records, data)


def check_records(records: list[dict], data=columns()) -> None:
    for number, values in enumerate(records, start=1):
        shaped = common_shape(values, number, data)
        assert isinstance(shaped["id"], str) and isinstance(shaped["title"], str)
        assert not isinstance(says_impossible(values), str)
        answers, problem = shaped["answers"], answers_problem(values, data)
        assert (answers is None) == (problem is not None) and "\n" not in (record_problem(values, data) or "")
        if answers is not None:
            assert len(answers["text"]) == len(answers["answer_start"])
            assert all(isinstance(text, str) and text.strip() for text in answers["text"])
            assert all(type(start) is int and start >= -1 for start in answers["answer_start"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("any")


SEEDS = [to_bytes(content) for ending, content, *_ in READ.values() if not ending.endswith("gz")]


@examples(300)
@given(st.sampled_from(sorted(READERS)), st.sampled_from(SEEDS), st.binary(max_size=40), st.integers(0, 400), st.integers(0, 9))  # fmt: skip
def test_any_bytes_are_rows_or_refused_in_one_line(folder, ending, seed, inserted, place, length):
    """Files of all kinds with some bytes replaced by any others."""
    path = folder / f"x{ending}"
    path.write_bytes(seed[:place] + inserted + seed[place + length :])
    check_rows_or_line(path)


KEYS = ["context", "question", "answers", "id", "title", "answer_start", "is_impossible", "data", "paragraphs", "qas", "text",
        "start", "char_spans", "detected_answers", "header", "qid"]  # fmt: skip
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from(["Cairo", "[1]", "{'text': ['a'], 'answer_start': [1]}", "{[1]: 2}", "array([1])", "36.0", "\ud800"])
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)
)


@examples(100)
@given(VALUES, VALUES, VALUES)
@example([[]], {"text": "a", "answer_start": []}, None)
def test_any_json_is_rows_or_refused_in_one_line(folder, value, answers, start):
    path = folder / "x.json"
    for content in (value, [{"context": "c", "qas": value}], {"data": [{"paragraphs": value}]}):
        path.write_text(json.dumps(content))
        check_rows_or_line(path)
    check_records([{"answers": answers, "answer_start": start, "id": value, "is_impossible": value, "title": value}])


def test_values_that_json_does_not_have_are_refused():
    """Parquet and Excel have dates, bytes and decimals."""
    for value in (datetime.date(1912, 5, 1), b"Cairo", datetime.timedelta(1)):
        assert answers_problem({"answers": [value]}, columns()) is not None
        check_records([{"answers": {"text": ["a"], "answer_start": [value]}, "id": value}])


# ---------------------------------------------------------------------------------------------------------------------
# The manual


def rows_of_table(page: str, title: str) -> list[list[str]]:
    """Return the cells of the first table of a section, without its header."""
    lines = page.split(f"\n## {title}\n")[1].split("\n## ")[0].splitlines()
    lines = [line for line in lines if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def code(cell: str) -> str:
    return "\n".join(span.strip("`") for span in cell.split("<br>"))


def test_every_example_of_the_manual_is_read_as_the_same_row(tmp_path):
    page = (ROOT / "docs" / "data.md").read_text()
    context, question = "The Nile passes Cairo.", "Which city?"
    layouts, forms = rows_of_table(page, "Layouts"), rows_of_table(page, "Answers")
    assert len(layouts) == 10 and len(forms) == 19
    for _, endings, content, _ in layouts:
        for ending in endings.split(" or "):
            path = tmp_path / f"x{code(ending)}"
            path.write_text(code(content))
            (shaped,) = read_rows(path)
            assert (shaped["id"], shaped["context"], shaped["question"]) == ("1", context, question)
            assert shaped["answers"] == {"text": ["Cairo"], "answer_start": [16]}
    for _, form, start, _ in forms:
        answers = common_shape({"answers": code(form)}, 1, columns())["answers"]
        texts = set() if start == "no answer" else {"Cairo"}
        assert set(answers["text"]) == texts
        assert set(answers["answer_start"]) == ({-1} if start == "looked up" else {int(start)} if texts else set())
