"""Every format becomes the same rows; every kind of bad row is reported with file, row and reason."""

import csv
import gzip
import json
import logging
from types import SimpleNamespace

import datasets
import pandas
import pytest

from qa.arguments import STAGES, DataArguments, ModelArguments
from qa.data import gold_answers, load_rows
from qa.errors import UserError
from qa.hub import report_shadowing


CONTEXT = "The Nile flows through Egypt.\nEgypt lies in Africa; \u2028 the Rhône does not."
ROWS = [
    {"id": "1", "title": "Nile", "context": CONTEXT, "question": 'Where "flows", it?', "answers": {"text": ["Egypt", "through Egypt"], "answer_start": [23, 15]}},
    {"id": "2", "title": "Nile", "context": CONTEXT, "question": "Where is the\nRhône?", "answers": {"text": ["Africa"], "answer_start": [44]}},
]  # fmt: skip


def load_counted(split="train", seed=42, **flags) -> tuple[list[dict], dict[str, int]]:
    """Return the rows of one split, as the script would load them, and their counts."""
    stages = {f"do_{stage}": name == split for name, stage in STAGES.items()}
    training = SimpleNamespace(**stages, seed=seed, data_seed=None)
    training.disable_tqdm = training.should_log = True
    rows, counts = load_rows(DataArguments(**flags), ModelArguments("model"), training)
    return rows[split], counts[split]


def load(split="train", **flags) -> list[dict]:
    return load_counted(split, **flags)[0]


def squad_layout(rows: list[dict]) -> dict:
    """Rows as SQuAD's own nested JSON."""
    paragraphs = [
        {
            "context": row["context"],
            "qas": [
                {
                    "id": row["id"],
                    "question": row["question"],
                    "answers": [{"text": t, "answer_start": s} for t, s in zip(*row["answers"].values())],
                }
            ],
        }
        for row in rows
    ]
    return {"version": "1.1", "data": [{"title": "Nile", "paragraphs": paragraphs}]}


def write_csv(path, rows: list[dict], dump) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(row | {"answers": dump(row["answers"])} for row in rows)


def write_file(path, layout: str):
    """ROWS in one of the layouts; returns the file's path."""
    if layout == "squad":
        path.write_text(json.dumps(squad_layout(ROWS)))
    elif layout == "data":
        path.write_text(json.dumps({"version": 1, "data": ROWS}))
    elif layout == "list":
        path.write_text("\ufeff" + json.dumps(ROWS, indent=1), encoding="utf-8")
    elif layout == "lines":
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n\n", encoding="utf-8")
    elif layout in ("csv_json", "csv_python"):
        write_csv(path, ROWS, {"csv_json": json.dumps, "csv_python": str}[layout])
    else:
        datasets.Dataset.from_list(ROWS).to_parquet(path)
    return path


LAYOUTS = {
    "squad": "x.json", "data": "x.json", "list": "x.json", "lines": "x.jsonl", "csv_json": "x.csv", "csv_python": "x.csv",
    "parquet": "x.parquet",
}  # fmt: skip


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read_as_the_same_rows(tmp_path, layout, packed):
    """Defect 1: CSV crashes in the reference, JSON lines are refused, SQuAD's own JSON is not understood."""
    path = write_file(tmp_path / LAYOUTS[layout], layout)
    if packed:
        (tmp_path / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path = tmp_path / f"{path.name}.gz"
    rows = load(train_file=str(path))
    assert rows == ROWS and rows[0]["context"] is rows[1]["context"]


def test_json_lines_may_be_called_json(tmp_path):
    path = write_file(tmp_path / "x.json", "lines")
    assert load(train_file=str(path)) == ROWS


@pytest.mark.parametrize("save", [datasets.DatasetDict.save_to_disk, "lines", "parquet"])
def test_local_dataset_folders(tmp_path, save, capfd):
    """A folder that save_to_disk wrote, and those of data files named by split; the library draws no bar into a file."""
    folder = tmp_path / "dataset"
    if isinstance(save, str):
        folder.mkdir()
        datasets.disable_progress_bars()  # for the file that is made here
        write_file(folder / LAYOUTS[save].replace("x", "train"), save)
        datasets.enable_progress_bars()
    else:
        save(datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS)), str(folder))
    capfd.readouterr()
    assert load(dataset_name=str(folder)) == ROWS and not capfd.readouterr().err
    with pytest.raises(UserError, match="has no validation part, only train; give it with --validation_file"):
        load("validation", dataset_name=str(folder))


def test_a_dataset_that_is_not_there_is_reported_in_one_line():
    with pytest.raises(UserError) as caught:
        load(dataset_name="squad")
    (problem,) = caught.value.problems
    assert (
        problem.startswith("--dataset_name squad: it is neither a folder nor in the cache (") and "\n" not in problem
    )


NOT_NUMBERS = ["NA", "None", "null", "n/a", "nan", "1.10", "007", "True", "2019-01-01"]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "csv.gz"])
def test_files_of_a_folder_are_read_as_files_are(tmp_path, ending):
    """The readers of the library datasets take NA for nothing, 1.10 for 1.1 and dates for dates."""
    rows = [{"context": f"It is {text}.", "question": "Which?", "answers": text} for text in NOT_NUMBERS]
    content = "\n".join(map(json.dumps, rows)) if ending == "jsonl" else pandas.DataFrame(rows).to_csv(index=False)
    path = tmp_path / f"train.{ending}"
    path.write_bytes(gzip.compress(content.encode()) if ending.endswith("gz") else content.encode())
    read = load(dataset_name=str(tmp_path))
    assert [row["answers"]["text"] for row in read] == [[text] for text in NOT_NUMBERS]
    assert read == load(train_file=str(path))


def test_a_bad_file_of_a_folder_is_reported_as_files_are(tmp_path):
    """Arrow's reader ends the process with a segmentation fault on the first of these."""
    cases = {
        '{"a":' * 20_000 + "1" + "}" * 20_000: "train.json: cannot be read as .json: line 1 is nested too deeply",
        '[{"context": "c", "question": "q", "answers": "c", "answer_start": Infinity}]': "row 1, id '0': the answer_start inf",
    }
    for content, message in cases.items():
        (tmp_path / "train.json").write_text(content)
        with pytest.raises(UserError) as caught:
            load(dataset_name=str(tmp_path))
        assert message in caught.value.problems[0]


def test_a_folder_says_how_its_files_are_read(tmp_path):
    """In its README.md, which the library datasets knows; texts such as NA stay texts there too."""
    settings = {"config_name": "default", "data_files": "*.csv", "column_names": ["context", "question", "answers"]}
    (tmp_path / "README.md").write_text(f"---\nconfigs: {json.dumps([settings])}\n---\n")
    (tmp_path / "rows.csv").write_text("It is NA.,Which?,NA\nIt is None.,Which?,None\n")
    assert [row["answers"]["text"] for row in load(dataset_name=str(tmp_path))] == [["NA"], ["None"]]


def test_nothing_asks_whether_to_run_the_code_of_a_dataset(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("builtins.input", lambda text: asked.append(text) or "n")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mine.py").write_text("raise SystemExit('the code was run')\n")
    with pytest.raises(UserError) as caught:
        load(dataset_name=str(tmp_path / "mine"))
    (problem,) = caught.value.problems
    assert problem.endswith(
        "it needs Python code of its repository, which is not run; read that code, and add --trust_remote_code if you "
        "trust its authors"
    )
    assert not asked


def test_a_folder_that_shadows_a_name_of_the_hub_is_reported(tmp_path, monkeypatch, caplog):
    """Only where the value could be a name of the hub, which paths such as ./squad are not."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "squad").mkdir()
    with caplog.at_level(logging.INFO):
        report_shadowing(DataArguments(dataset_name="squad"), ModelArguments(model_name_or_path="bert"))
    assert [record.message for record in caplog.records] == [
        f"--dataset_name squad is read from the folder {tmp_path}/squad, not from the hub"
    ]
    with pytest.raises(
        UserError, match=f"--dataset_name squad .the folder {tmp_path}/squad, not the hub's.: cannot be"
    ):
        load(dataset_name="squad")
    caplog.clear()
    for name in ("./squad", str(tmp_path / "squad"), "nowhere", None):
        report_shadowing(DataArguments(dataset_name=name), ModelArguments(model_name_or_path="bert"))
    assert not caplog.records


def test_other_columns_and_plain_answers(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("passage,query,reply\nThe Nile is long.,What is long?,Nile\n")
    columns = {"context_column": "passage", "question_column": "query", "answer_column": "reply"}
    (row,) = load(train_file=str(path), **columns)
    assert row["answers"] == {"text": ["Nile"], "answer_start": [4]} and row["id"] == "0"
    with pytest.raises(UserError) as caught:
        load(train_file=str(path))
    (problem,) = caught.value.problems
    assert "no column `question`, `context`, `answers`; there are: passage, query, reply; name" in problem


def test_columns_are_read_from_each_split_of_its_own(tmp_path):
    """Defect 4: the reference takes the train split's columns for all of them."""
    (tmp_path / "train.json").write_text(json.dumps(ROWS))
    (tmp_path / "test.json").write_text(json.dumps([{"question": "Where?", "context": "Here.", "more": 1}]))
    training = SimpleNamespace(do_train=True, do_eval=False, do_predict=True)
    data = DataArguments(train_file=str(tmp_path / "train.json"), test_file=str(tmp_path / "test.json"))
    rows, _ = load_rows(data, ModelArguments("model"), training)
    assert rows["test"] == [
        {"id": "0", "title": "", "context": "Here.", "question": "Where?", "answers": None, "row": 1}
    ]


def bad(row: dict, **changes) -> dict:
    return row | {"id": "bad"} | changes


BAD_ROWS = {
    "the context is missing": bad(ROWS[0], context=None),
    "the context is empty": bad(ROWS[0], context=" \n"),
    "the question is empty": bad(ROWS[0], question=""),
    "the question is not a text but 7": bad(ROWS[0], question=7),
    "half a surrogate pair": bad(ROWS[0], context="Egypt \ud800", answers={"text": ["Egypt"], "answer_start": [0]}),
    "is not at its answer_start 3 and is not in the context": bad(ROWS[0], answers={"text": ["Peru"], "answer_start": [3]}),
    "has no answer_start and is not in the context": bad(ROWS[0], answers="Peru"),
    "is not in the context, which has 'Egypt'; copy that": bad(ROWS[0], answers="egypt"),
    "there is no answer, and --version_2_with_negative is not given": bad(ROWS[0], answers={"text": [], "answer_start": []}),
    "1 answers, ['Egypt'], have 2 starts, [1, 2]": bad(ROWS[0], answers={"text": ["Egypt"], "answer_start": [1, 2]}),
    "row 1 has this id too, and the same context": ROWS[0] | {"question": "Again?"},
}  # fmt: skip


@pytest.mark.parametrize("reason", BAD_ROWS)
def test_bad_rows_stop_the_run_or_are_left_out(tmp_path, caplog, reason):
    """Defects 1 (misplaced answers) and 9 (duplicate ids)."""
    path = tmp_path / "x.json"
    path.write_text(json.dumps([*ROWS, BAD_ROWS[reason]]))
    with pytest.raises(UserError) as caught:
        load(train_file=str(path))
    first, total = caught.value.problems
    assert first.startswith(f"{path}, row 3, id {str(BAD_ROWS[reason]['id'])!r}: ") and reason in first
    assert f"{path}: 1 of 3 rows is bad" in total and "--on_bad_rows skip" in total
    assert load_counted(train_file=str(path), on_bad_rows="skip") == (ROWS, {"skipped_rows": 1})
    assert "skipped 1 of 3 rows" in caplog.text and reason in caplog.text


def test_only_the_first_five_bad_rows_are_reported(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps([bad(ROWS[0], context="")] * 9))
    with pytest.raises(UserError) as caught:
        load(train_file=str(path))
    assert len(caught.value.problems) == 6 and "9 of 9 rows" in caught.value.problems[-1]


def test_problems_of_all_splits_are_reported_together(tmp_path):
    for name in ("train", "dev"):
        (tmp_path / f"{name}.json").write_text(json.dumps([bad(ROWS[0], context="")]))
    data = DataArguments(train_file=str(tmp_path / "train.json"), validation_file=str(tmp_path / "dev.json"))
    with pytest.raises(UserError, match="dev.json, row 1") as caught:
        load_rows(data, ModelArguments("model"), SimpleNamespace(do_train=True, do_eval=True, do_predict=False))
    assert "train.json, row 1" in str(caught.value)


def test_a_misplaced_answer_that_occurs_once_is_moved_and_counted(tmp_path, caplog):
    path = tmp_path / "x.json"
    moved = ROWS[1] | {"answers": {"text": ["Africa"], "answer_start": [40]}}
    path.write_text(json.dumps([ROWS[0], moved]))
    assert load(train_file=str(path)) == ROWS
    assert "1 answer did not begin at answer_start; each was moved" in caplog.text


def test_samples_are_capped_by_examples(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(ROWS))
    assert load(train_file=str(path), max_train_samples=1) == ROWS[:1]
    assert load("test", test_file=str(path), max_predict_samples=9) == [
        row | {"row": number} for number, row in enumerate(ROWS, start=1)
    ]


BROKEN = {
    "x.json": b'{"data": [',
    "y.json": b'{"data": 3}',
    "z.json": b'{"data": [{"paragraphs": [{"qas": []}, {"context": "c", "qas": [{"id": 1}]}]}]}',
    "x.jsonl": b'{"id": 1}\n{"id": \n',
    "x.json.gz": b"no gzip",
    "x.parquet": b"PAR1",
    "x.csv": b'a,b\n"c',
    "latin.csv": "id,context\n1,é".encode("latin-1"),
    "list.json": b"[1, 2]",
    "empty.json": b"[]",
    "empty.csv": b"",
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_reported_by_name(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(BROKEN[name])
    with pytest.raises(UserError) as caught:
        load(train_file=str(path))
    assert all(problem.startswith(str(path)) and "\n" not in problem for problem in caught.value.problems)


# ---------------------------------------------------------------------------------------------------------------------
# Answers and their places


NILE = (
    "The Nile flows north through Egypt. Cairo lies on the Nile, and the delta begins behind Cairo."  # right English
)


def write_rows(path, *rows: dict) -> str:
    path.write_text("\n".join(json.dumps({"context": NILE, "question": "Where?"} | row) for row in rows))
    return str(path)


def answers(*pairs: tuple[str, int]) -> dict:
    return {"text": [text for text, _ in pairs], "answer_start": [start for _, start in pairs]}


def places_of(rows: list[dict]) -> list[tuple[str, int]]:
    return [pair for row in rows for pair in zip(row["answers"]["text"], row["answers"]["answer_start"])]


NO_ANSWER = {
    "empty text at 0": {"answers": answers(("", 0))},
    "empty text at -1": {"answers": answers(("", -1))},
    "null": {"answers": {"text": [None], "answer_start": [0]}},
    "no such column": {},
    "impossible": {"answers": answers(("Cairo", 36)), "is_impossible": True},
    "impossible in a CSV file": {"answers": answers(("Cairo", 36)), "is_impossible": "True"},
}


@pytest.mark.parametrize("written", NO_ANSWER)
@pytest.mark.parametrize("first", [True, False])
def test_no_answer_however_it_is_written(tmp_path, written, first):
    """In the first row, from which the columns were read once, and in another."""
    rows = [NO_ANSWER[written], {"answers": answers(("north", 15))}]
    path = write_rows(tmp_path / "x.jsonl", *(rows if first else reversed(rows)))
    loaded = load(train_file=path, version_2_with_negative=True)
    assert places_of(loaded) == [("north", 15)] and len(loaded) == 2
    with pytest.raises(UserError, match=f"row {2 - first}, .*there is no answer"):
        load(train_file=path)


def test_impossible_questions_are_scored_by_their_answers(tmp_path):
    """As the official evaluator does, which does not read `is_impossible`; also in SQuAD's own layout."""
    qa = {"id": "a", "question": "Where?", "is_impossible": True, "answers": [{"text": "Cairo", "answer_start": 36}]}
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"data": [{"paragraphs": [{"context": NILE, "qas": [qa]}]}]}))
    (row,) = load("validation", validation_file=str(path), version_2_with_negative=True)
    assert row["answers"]["text"] == [] and gold_answers(row)["text"] == ["Cairo"]


def test_a_train_file_without_answers_is_refused(tmp_path):
    """Negatives are written down; a column that is missing, or empty in every row, is a mistake."""
    for column in ({}, {"answers": None}):
        path = write_rows(tmp_path / "x.jsonl", column, column)
        with pytest.raises(
            UserError,
            match="no column `answers`; there are: context, question; name the right one with --answer_column$",
        ):
            load(train_file=path, version_2_with_negative=True)


PLACED = {  # the answers of a file, and where they are
    "blanks around it": ([(" north ", 14), ("north\n", 15)], [("north", 15)] * 2),
    "the first of several": ([("Cairo", -1)], [("Cairo", 36)]),
    "the nearest of several": ([("Cairo", 35), ("Cairo", 80)], [("Cairo", 36), ("Cairo", 88)]),
}


@pytest.mark.parametrize("case", PLACED)
def test_answers_are_moved_to_their_places(tmp_path, case):
    given, expected = PLACED[case]
    path = write_rows(tmp_path / "x.jsonl", *({"answers": answers(pair)} for pair in given))
    assert places_of(load(train_file=path)) == expected


def test_ambiguous_answers_are_counted_or_refused_or_skipped(tmp_path, caplog):
    several, at_the_first = {"answers": answers(("Cairo", -1))}, {"answers": answers(("Cairo", 36))}
    path = write_rows(tmp_path / "x.jsonl", several, at_the_first)
    rows, counts = load_counted(train_file=path)
    assert places_of(rows) == [("Cairo", 36)] * 2 and counts == {"ambiguous_answers": 1}
    assert "1 of 2 questions have an answer that occurs several times" in caplog.text
    rows, counts = load_counted(train_file=path, ambiguous_answers="skip")
    assert [row["id"] for row in rows] == ["1"] and counts == {"skipped_rows": 1}
    for bad_rows in ("stop", "skip"):
        with pytest.raises(
            UserError, match="row 1, id '0': the answer 'Cairo' has no answer_start and occurs 2 times"
        ):
            load(train_file=path, ambiguous_answers="stop", on_bad_rows=bad_rows)
    rows, counts = load_counted("validation", validation_file=path, ambiguous_answers="stop")
    assert len(rows) == 2 and counts == {}


TEXT_OF_UNITS = "😀 é Cairo\r\n lies\r\non the Nile, é behind Cairo 😀 Cairo"  # right English
UNITS = {
    "UTF-16 code units": lambda text: len(text.encode("utf-16-le")) // 2,
    "bytes of UTF-8": lambda text: len(text.encode()),
    "line ends as one character": lambda text: len(text.replace("\r\n", "\n")),
    "line ends as two characters": lambda text: len(text.replace("\n", "\r\n")),
}


@pytest.mark.parametrize("unit", UNITS)
def test_offsets_in_other_units_are_converted(tmp_path, caplog, unit):
    context = TEXT_OF_UNITS if "two" not in unit else TEXT_OF_UNITS.replace("\r", "")
    places = [place for place in range(len(context)) if context.startswith("Cairo", place)]
    rows = [{"context": context, "answers": answers(("Cairo", UNITS[unit](context[:place])))} for place in places]
    path = write_rows(tmp_path / "x.jsonl", *rows)
    assert places_of(load(train_file=path)) == [("Cairo", place) for place in places]
    assert f"{path}: each answer_start counted {unit} and was converted" in caplog.text
    wrong = rows[0] | {"answers": answers(("Nile", 0))}  # not at its text in any unit: so nothing is converted
    load(train_file=write_rows(tmp_path / "y.jsonl", *rows, wrong))
    assert f"{tmp_path / 'y.jsonl'}: each answer_start" not in caplog.text


def test_evaluation_needs_texts_and_no_places(tmp_path, caplog):
    """Also of several gold answers those come first that the context holds: the loss is that of the first."""
    golds = [("on the river", 36), ("Cairo", 0)], [("upriver", -1)], [("Cairo", -1)]
    path = write_rows(tmp_path / "x.jsonl", *({"answers": answers(*pairs)} for pairs in golds))
    assert places_of(load("validation", validation_file=path)) == [
        ("Cairo", 36), ("on the river", -1), ("upriver", -1), ("Cairo", 36)
    ]  # fmt: skip
    assert "1 of 3 questions have no answer that is in the context" in caplog.text
    with pytest.raises(
        UserError, match="row 2, id '1': the answer 'upriver' has no answer_start and is not in the context"
    ):
        load(train_file=path)


BROKEN_ANSWERS = [
    {"text": ["Cairo"], "answer_start": [1, 2]},
    7.5,
    {"text": ["Peru"], "answer_start": [3]},
    [[]],
    None,
]


def test_prediction_needs_no_answers(tmp_path, caplog):
    path = write_rows(tmp_path / "x.jsonl", *({"answers": value} for value in BROKEN_ANSWERS))
    assert [row["answers"] for row in load("test", test_file=path)] == [None] * 5
    assert "questions have no readable answer; no answer is scored" in caplog.text
    path = write_rows(tmp_path / "y.jsonl", *({"answers": answers(("Peru", start))} for start in (3, 4)))
    assert places_of(load("test", test_file=path)) == [("Peru", -1)] * 2  # can be scored


def test_published_test_files_have_empty_answers(tmp_path):
    """On their own their answers are unknown; next to answered questions they have none."""
    path = write_rows(tmp_path / "x.jsonl", *[{"answers": answers()}] * 2)
    assert [row["answers"] for row in load("test", test_file=path, version_2_with_negative=True)] == [None] * 2
    path = write_rows(tmp_path / "x.jsonl", {"answers": answers()}, {"answers": answers(("Cairo", 36))})
    rows = load("test", test_file=path, version_2_with_negative=True)
    assert rows[0]["answers"] == answers() and places_of(rows) == [("Cairo", 36)]


def test_one_id_for_questions_about_several_contexts(tmp_path, caplog):
    contexts = [NILE, f"{NILE} Here.", NILE.lower(), NILE.upper()]
    rows = [{"id": name, "context": text} for name, text in zip(("74", "74", "74-2", "74"), contexts)]
    path = write_rows(tmp_path / "x.jsonl", *(row | {"answers": row["context"][4:8]} for row in rows))
    assert len(load(train_file=path)) == 4 and "had the id" not in caplog.text
    assert [row["id"] for row in load("validation", validation_file=path)] == ["74", "74-3", "74-2", "74-4"]
    assert (
        "2 questions had the id of a question about another context; each got its own, such as '74-3' for '74'"
        in caplog.text
    )


# ---------------------------------------------------------------------------------------------------------------------
# Holding out a validation part


@pytest.fixture
def forty_contexts(tmp_path):
    """Return a file of 100 questions about 40 contexts, of which blanks make 60."""
    contexts = [f"In town {number % 40} lies\tthe bridge." for number in range(100)]
    blank = [text.replace("\t", " \n") if number % 3 else text for number, text in enumerate(contexts)]
    return write_rows(tmp_path / "x.jsonl", *({"context": text, "answers": "the bridge"} for text in blank))


def split_in_two(path: str, seed=42, **flags) -> list[list[dict]]:
    flags = {"train_file": path, "validation_split": 0.3} | flags
    return [load_counted(split, seed, **flags)[0] for split in ("train", "validation")]


def test_a_part_is_held_out_by_context(forty_contexts):
    train, held = split_in_two(forty_contexts)
    contexts = [{" ".join(row["context"].split()) for row in part} for part in (train, held)]
    assert not contexts[0] & contexts[1] and list(map(len, contexts)) == [28, 12]
    assert sorted(int(row["id"]) for row in train + held) == list(range(100))
    assert [int(row["id"]) for row in train] == sorted(int(row["id"]) for row in train)


def test_the_held_out_part_depends_on_contexts_and_seed_alone(forty_contexts, tmp_path):
    """So it is the same on every rank, in a resumed run and in a later evaluation, and samples are cut from it."""
    train, held = split_in_two(forty_contexts)
    assert split_in_two(forty_contexts) == [train, held]
    assert split_in_two(forty_contexts, max_train_samples=9, max_eval_samples=5) == [train[:9], held[:5]]
    assert split_in_two(forty_contexts, seed=1)[1] != held
    lines = open(forty_contexts).read().split("\n")
    (tmp_path / "reversed.jsonl").write_text("\n".join(reversed(lines)))
    again = split_in_two(str(tmp_path / "reversed.jsonl"))[1]
    assert {row["context"] for row in again} == {row["context"] for row in held}


def test_each_part_is_checked_by_its_own_rules(forty_contexts, tmp_path):
    """Row numbers are those of the file; a paraphrase is bad to train on and good to evaluate."""
    train, held = split_in_two(forty_contexts)
    rows = [json.loads(line) for line in open(forty_contexts)]
    for part in (train, held):
        rows[int(part[3]["id"])]["answers"] = "a paraphrase"
    path = write_rows(tmp_path / "y.jsonl", *rows)
    assert len(load("validation", train_file=path, validation_split=0.3)) == len(held)
    with pytest.raises(UserError) as caught:
        load(train_file=path, validation_split=0.3)
    assert f"row {int(train[3]['id']) + 1}, " in caught.value.problems[0] and f"1 of {len(train)}" in str(caught.value)


def test_too_few_contexts_to_hold_some_out(tmp_path):
    path = write_rows(tmp_path / "x.jsonl", *[{"answers": "north"}] * 3)
    none = f"leaves nothing of {path} to train on"
    with pytest.raises(UserError, match=f"--validation_split 0.1 of 1 context {none}; add contexts"):
        load(train_file=path, validation_split=0.1)
    write_rows(tmp_path / "x.jsonl", {"answers": "north", "question": 7}, {"answers": "north", "context": ""})
    with pytest.raises(
        UserError, match=f"0 contexts {none}; add contexts, or fix its bad rows, 2 in all, such as row 1: the question"
    ):
        load(train_file=path, validation_split=0.1)
    path = write_rows(tmp_path / "x.jsonl", {"answers": "north"}, {"answers": "north", "context": "It lies north."})
    assert [len(part) for part in split_in_two(path, validation_split=0.01)] == [1, 1]
