"""Every format becomes the same rows; every kind of bad row is told with file, row and reason."""

import csv
import gzip
import json
from contextlib import nullcontext
from types import SimpleNamespace

import datasets
import pytest

from qa.arguments import STAGES, DataArguments, ModelArguments
from qa.data import load_rows
from qa.errors import UserError


CONTEXT = "The Nile flows through Egypt.\nEgypt lies in Africa; \u2028 the Rhône does not."
ROWS = [
    {"id": "1", "title": "Nile", "context": CONTEXT, "question": 'Where "flows", it?', "answers": {"text": ["Egypt", "through Egypt"], "answer_start": [23, 15]}},
    {"id": "2", "title": "Nile", "context": CONTEXT, "question": "Where is the\nRhône?", "answers": {"text": ["Africa"], "answer_start": [44]}},
]  # fmt: skip


def load_counted(split="train", seed=42, **flags) -> tuple[list[dict], dict[str, int]]:
    """The rows of one split, as the script would load them, and their counts."""
    stages = {f"do_{stage}": name == split for name, stage in STAGES.items()}
    training = SimpleNamespace(**stages, main_process_first=nullcontext, seed=seed, data_seed=None)
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
def test_every_layout_gives_the_same_rows(tmp_path, layout, packed):
    """Defect 1: CSV crashes in the reference, JSON lines are refused, SQuAD's own JSON is not understood."""
    path = write_file(tmp_path / LAYOUTS[layout], layout)
    if packed:
        (tmp_path / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path = tmp_path / f"{path.name}.gz"
    assert load(train_file=str(path)) == ROWS


def test_json_lines_may_be_called_json(tmp_path):
    path = write_file(tmp_path / "x.json", "lines")
    assert load(train_file=str(path)) == ROWS


@pytest.mark.parametrize("save", [datasets.DatasetDict.save_to_disk, None])
def test_local_dataset_folders(tmp_path, save):
    """A folder that save_to_disk wrote, and one of data files named by split."""
    folder = tmp_path / "dataset"
    if save is None:
        folder.mkdir()
        (folder / "train.json").write_text("\n".join(map(json.dumps, ROWS)))
    else:
        save(datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS)), str(folder))
    assert load(dataset_name=str(folder)) == ROWS
    with pytest.raises(UserError, match="has no validation part, only train; give it with --validation_file"):
        load("validation", dataset_name=str(folder))


def test_a_hub_that_cannot_be_reached_is_told_in_one_line():
    with pytest.raises(UserError, match="--dataset_name squad: cannot be loaded") as caught:
        load(dataset_name="squad")
    assert len(caught.value.problems) == 1 and "\n" not in caught.value.problems[0]


def test_other_columns_and_plain_answers(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("passage,query,reply\nThe Nile is long.,What is long?,Nile\n")
    columns = {"context_column": "passage", "question_column": "query", "answer_column": "reply"}
    (row,) = load(train_file=str(path), **columns)
    assert row["answers"] == {"text": ["Nile"], "answer_start": [4]} and row["id"] == "0"
    with pytest.raises(UserError) as caught:
        load(train_file=str(path))
    assert [
        f"no column `{name}`" in problem
        for name, problem in zip(("question", "context", "answers"), caught.value.problems)
    ] == [True] * 3


def test_columns_are_read_from_each_split_of_its_own(tmp_path):
    """Defect 4: the reference takes the train split's columns for all of them."""
    (tmp_path / "train.json").write_text(json.dumps(ROWS))
    (tmp_path / "test.json").write_text(json.dumps([{"question": "Where?", "context": "Here.", "more": 1}]))
    training = SimpleNamespace(do_train=True, do_eval=False, do_predict=True)
    data = DataArguments(train_file=str(tmp_path / "train.json"), test_file=str(tmp_path / "test.json"))
    rows, _ = load_rows(data, ModelArguments("model"), training)
    assert rows["test"] == [{"id": "0", "title": "", "context": "Here.", "question": "Where?", "answers": None}]


def bad(row: dict, **changes) -> dict:
    return row | {"id": "bad"} | changes


BAD_ROWS = {
    "the context is missing": bad(ROWS[0], context=None),
    "the context is empty": bad(ROWS[0], context=" \n"),
    "the question is empty": bad(ROWS[0], question=""),
    "the question is not a text but 7": bad(ROWS[0], question=7),
    "half a surrogate pair": bad(ROWS[0], context="Egypt \ud800", answers={"text": ["Egypt"], "answer_start": [0]}),
    "does not stand at its answer_start 3 and is not in the context": bad(ROWS[0], answers={"text": ["Peru"], "answer_start": [3]}),
    "has no answer_start and is not in the context": bad(ROWS[0], answers="Peru"),
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
    assert f"{path}: 1 of 3 rows are bad" in total and "--on_bad_rows skip" in total
    assert load_counted(train_file=str(path), on_bad_rows="skip") == (ROWS, {"skipped_rows": 1})
    assert "skipped 1 of 3 rows" in caplog.text and reason in caplog.text


def test_only_the_first_five_bad_rows_are_told(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps([bad(ROWS[0], context="")] * 9))
    with pytest.raises(UserError) as caught:
        load(train_file=str(path))
    assert len(caught.value.problems) == 6 and "9 of 9 rows" in caught.value.problems[-1]


def test_problems_of_all_splits_are_told_together(tmp_path):
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
    assert "1 answers did not stand at their answer_start" in caplog.text


def test_samples_are_capped_by_examples(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(ROWS))
    assert load(train_file=str(path), max_train_samples=1) == ROWS[:1]
    assert load("test", test_file=str(path), max_predict_samples=9) == ROWS


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
def test_broken_files_are_told_by_name(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(BROKEN[name])
    with pytest.raises(UserError) as caught:
        load(train_file=str(path))
    assert all(problem.startswith(str(path)) and "\n" not in problem for problem in caught.value.problems)
