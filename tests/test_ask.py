"""`python -m qa.ask`: from the command line, the standard input, a terminal and a file of questions."""

import gc
import io
import json
import logging
import os
import shutil
import subprocess
import sys

import pytest
from helpers import ROOT, load, split_import_times

from qa import ask
from qa.answer_files import read_csv_columns
from qa.answer_lines import BOLD, answer_lines, marked_excerpt
from qa.answerer import Answer
from qa.errors import UserError


BOAT = "Anna has a red boat in the harbour of the old town."
CONTEXT = BOAT.replace(" in ", "\r\n in ") + "\n"
COLOUR = """What colour is the boat?
  red  (probability 1.00, line 1, character 12)
  Anna has a [red] boat in the harbour of the old town.
"""
OWNER = """Who has the boat?
  Anna  (probability 1.00, line 1, character 1)
  [Anna] has a red boat in the harbour of the old town.
"""
BUILT = """When was the boat built?
  no answer  (probability 1.00)
"""


@pytest.fixture
def folder(colour_model, tmp_path, monkeypatch):
    """Go to a folder with a trained model, `out`, and a context in UTF-16, `boats.txt`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").symlink_to(colour_model)
    (tmp_path / "boats.txt").write_text(CONTEXT, encoding="utf-16", newline="")
    return tmp_path


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_answers_are_printed_with_probability_place_and_context(folder, capsys):
    """Flags may come before or after the questions. The hub's lines are printed once, not by its own handler too."""
    logging.getLogger("huggingface_hub").addHandler(logging.StreamHandler())
    questions = ["What colour is the boat?", "When was the boat built?"]
    gc.disable()  # as in a process of its own, until the model is loaded
    try:
        ask.main(["out", questions[0], "--context", "boats.txt", questions[1], "--device", "cpu"])
        assert gc.isenabled()
    finally:
        gc.enable()
    assert capsys.readouterr().out == COLOUR + BUILT
    assert not logging.getLogger("huggingface_hub").handlers


def test_the_context_comes_from_the_standard_input(folder, capsys, monkeypatch, caplog):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(CONTEXT.encode())))
    ask.main(["out", "--context", "-", "Who has the boat?", "--null_score_diff_threshold", "-1e-5"])
    assert capsys.readouterr().out == OWNER
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(CONTEXT.encode())))
    ask.main(
        ["out", "--context", "-", "Who has the boat?", "--null_score_diff_threshold", "-inf", "--temperature", "1000"]
    )
    assert capsys.readouterr().out.startswith("Who has the boat?\n  no answer  (probability 0.05)")  # of 20 candidates
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(CONTEXT.encode())))
    ask.main(["out", "--context", "-", "Who has the boat?", "--null_score_diff_threshold", "0.6"])
    assert "--null_score_diff_threshold 0.6 is in logits; if it is a probability" in caplog.text


def test_questions_are_read_one_after_another(folder, capsys, monkeypatch):
    """Without a prompt where the input or the output is no terminal; blank lines are no questions."""
    monkeypatch.setattr(sys, "stdin", Terminal("What colour is the boat?\n\n  When was the boat built?  \n"))
    ask.main(["out", "--context", "boats.txt"])
    assert capsys.readouterr().out == COLOUR + BUILT


def test_a_terminal_has_a_prompt_and_bold_answers(folder, monkeypatch):
    monkeypatch.setattr(sys, "stdin", Terminal("Who has the boat?\n"))
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    ask.main(["out", "--context", "boats.txt"])
    printed = sys.stdout.getvalue()
    assert printed == f"> {OWNER}> \n".replace("[", BOLD[0]).replace("]", BOLD[1])


def test_a_process_in_a_pipe(folder):
    """It imports no library that it does not use, and ends quietly when nobody reads on."""
    command = [sys.executable, "-X", "importtime", "-m", "qa.ask", "out", "--context", "boats.txt"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with open("stderr", "w") as errors, subprocess.Popen(command, env=environment, stderr=errors, **pipes) as process:
        process.stdin.write("Who has the boat?\n")
        process.stdin.flush()
        assert "".join(process.stdout.readline() for _ in range(3)) == OWNER  # before the end of the questions
        process.stdout.close()
        process.stdin.write("Who has the boat?\n")
        process.stdin.close()
    modules, others = split_import_times((folder / "stderr").read_text())
    assert (process.returncode, others) == (0, [])
    unused = {"datasets", "evaluate", "pandas", "scipy", "sklearn", "optimum", "matplotlib", "pyarrow"}
    assert "transformers" in modules and not modules & unused


@pytest.mark.parametrize("kind", ["excel's csv", "json", "other columns"])
def test_the_questions_of_a_file_are_answered_in_a_file(folder, capsys, kind):
    """With ids of their own or numbers; the columns are those of the training where the file has them, or of the flags."""
    questions, name, flags = ["Who has the boat?", "When was the boat built?"], "asked.csv", []
    header, model = "context;question", "out"
    if kind == "other columns":
        header, model, flags = "Text;Frage", "renamed", ["--context_column", "Text"]
        shutil.copytree(folder / "out", folder / "renamed")
        settings = load(folder / "renamed" / "qa_settings.json")
        settings["columns"] |= {"question": "Frage"}
        (folder / "renamed" / "qa_settings.json").write_text(json.dumps(settings))
    lines = [header, *(f'"{BOAT} – Grüße";{question}' for question in questions)]
    (folder / name).write_bytes("\r\n".join(lines).encode("cp1252"))
    if kind == "json":
        name = "asked.json"
        rows = [{"id": "Who ", "context": BOAT, "question": questions[0], "answers": "Anna"}]
        (folder / name).write_text(json.dumps(rows))
    ask.main([model, "--questions", name, "--output", "answers.csv", *flags])
    columns = read_csv_columns(folder / "answers.csv")
    assert list(columns) == ["id", "answer", "probability", "start", "end"]
    number = 1 if kind == "json" else 2
    assert columns["id"] == (["Who "] if kind == "json" else ["0", "1"])
    found = columns["answer"], columns["start"], columns["end"]
    assert found == (["Anna", ""][:number], [0, None][:number], [4, None][:number])
    assert columns["probability"] == pytest.approx([1] * number, abs=0.1)
    counted = "1 question" if kind == "json" else "2 questions, 1 without an answer"
    assert capsys.readouterr().out == f"written: answers.csv, {counted}\n"


def test_an_excerpt_is_one_line_without_characters_that_control_a_terminal():
    context = "x" * 100 + " the first\x1b[2J\n\n words before Ada   Byron and words " + "after " * 20
    start = context.index("Ada")
    excerpt = marked_excerpt(context, start, start + len("Ada   Byron"))
    assert excerpt.startswith("... the first\ufffd[2J words before [Ada Byron] and words after after")
    assert excerpt.endswith(" after ...") and len(excerpt) < 150
    assert marked_excerpt("Ada", 0, 3) == "[Ada]"
    assert marked_excerpt("(Ada)", 1, 4) == "([Ada])"
    lines = list(answer_lines("Who\tsigned?", Answer("Ada B.", 0.5, None, None), context, BOLD))
    assert lines == ["Who signed?", "  Ada B.  (probability 0.50, not in the context word for word)"]


@pytest.mark.parametrize("content", [b"%PDF-1.7\n", b"PK\x03\x04...", b"a\0b", b"\xff\xfe\xff"])
def test_a_context_that_is_no_text_is_refused(tmp_path, content):
    (tmp_path / "contract.txt").write_bytes(content)
    with pytest.raises(UserError, match="contract.txt: .*; name a file of plain text"):
        ask.read_context(str(tmp_path / "contract.txt"))
