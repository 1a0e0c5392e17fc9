"""Bad input: every case of error_cases.py ends as docs/errors.md says, in one process; and errors that are no mistakes."""

import errno
import os
import sys
from functools import partial

import pytest
from error_cases import all_groups
from error_page import PAGE, outcomes, page, section

import run_qa
from qa.errors import TRACEBACKS, UserError, problems_of, run_or_exit


GROUPS = {group.title: group for group in all_groups()}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Return the outcomes of the cases by the title of their group, and the files that they left by title."""
    ended, left, home = {}, {}, os.getcwd()
    for title, group in GROUPS.items():
        folder = tmp_path_factory.mktemp("group")
        os.chdir(folder)
        ended[title] = list(outcomes(group))
        left[title] = {path.name for path in folder.iterdir() if not path.is_dir() or any(path.iterdir())}
    os.chdir(home)
    return ended, left


@pytest.mark.parametrize("title", GROUPS)
def test_every_mistake_ends_with_status_2_and_a_line_for_each_problem(found, title):
    """Without a traceback and without any file; the line in the manual is the one that is printed."""
    ended, left = found
    for outcome in ended[title]:
        assert outcome.status == 2 and outcome.errors, outcome
        assert all(line.startswith("error: ") and len(line) < 1000 for line in outcome.errors), outcome
        assert "Traceback" not in outcome.printed and "secret1" not in "".join(outcome.errors)
    group = GROUPS[title]
    fed = {name.split("/")[0] for name in (*group.needed, *(file[0] for file in group.files))}
    assert left[title] <= fed
    assert section(group, ended[title]) in PAGE.read_text(), "if the messages are right now: make errors"


def test_the_page_holds_all_cases_and_nothing_else(found):
    assert sum(map(len, found[0].values())) > 460
    assert PAGE.read_text() == page(found[0])


def fail(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("how", ["flag", "word", None])
def test_a_traceback_is_printed_on_demand(capsys, monkeypatch, how):
    """For a mistake and for a defect, which has status 1; without it a defect's line has its places."""
    monkeypatch.setitem(TRACEBACKS, "shown", how == "flag")
    monkeypatch.setattr(sys, "argv", ["run_qa.py", *["--debug_traceback"] * (how == "word")])
    for error, status in ((UserError("first", "second"), 2), (KeyError("third"), 1)):
        with pytest.raises(SystemExit) as stop:
            run_or_exit(partial(fail, error))
        assert stop.value.code == status
        lines = capsys.readouterr().err.splitlines()
        assert (lines[0] == "Traceback (most recent call last):") == (how is not None)
        if status == 2:
            assert lines[-2:] == ["error: first", "error: second"]
        else:
            assert lines[-1].startswith("error: KeyError: 'third' (at ")
            assert "tests/test_errors.py:" in lines[-1] and lines[-1].endswith(
                "run it with --debug_traceback for a report"
            )
            assert (len(lines) == 1) == (how is None)


def test_the_advice_on_a_full_disk_removes_no_checkpoint():
    """The same command with --overwrite_output_dir would."""
    (line,) = problems_of(OSError(errno.ENOSPC, "No space left on device", "out/model"))
    assert line.endswith("the same command again, without --overwrite_output_dir: it goes on from the last checkpoint")


def test_the_end_of_another_rank_is_no_defect_of_this_one(capsys):
    error = RuntimeError(
        "[/pytorch/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:20392. GLHF!"
    )
    with pytest.raises(SystemExit, match="1"):
        run_or_exit(partial(fail, error))
    assert capsys.readouterr().err == (
        "error: the connection to another rank is lost, since that rank has ended; read its lines\n"
    )


def test_the_flag_is_read_from_a_file_of_arguments_too(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(TRACEBACKS, "shown", False)
    (tmp_path / "my.yaml").write_text("debug_traceback: true")
    with pytest.raises(SystemExit):
        run_or_exit(partial(run_qa.main, [str(tmp_path / "my.yaml"), "--model_name_or_path", "m"]))
    printed = capsys.readouterr().err
    assert printed.startswith("Traceback (most recent call last):")
    assert printed.endswith("error: nothing to do: add --do_train, --do_eval or --do_predict\n")


def test_a_case_with_another_message_would_be_noticed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    group = GROUPS["Numbers of models that write"]
    ended = list(outcomes(group))
    assert section(group, ended) in PAGE.read_text()
    wrong = [ended[0]._replace(errors=["error: --num_beams is 0"]), *ended[1:]]
    assert section(group, wrong) not in PAGE.read_text()
