"""Run the cases of tests/error_cases.py in this process, and write docs/errors.md.

make errors          (python -m tests.error_page)
"""

import contextlib
import gc
import importlib
import io
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple


ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "errors.md"
HEAD = """# Bad input, and the messages

Every mistake below is an entry of `tests/error_cases.py` and is made by `tests/test_errors.py`. `make errors` writes this page.

- The exit status is 2, and each problem is one line on stderr that begins with `error:`. Nothing has been trained or written by then.
- `--check` finds the same problems, and starts nothing.
- `--debug_traceback` prints the traceback too, for a report of a defect.
- Another error, such as a defect or a full disk, ends with status 1 and a line with its places in the code.

Long texts are shortened here. Each command is typed in a folder with the files that it names, without access to the hub.
"""


class Outcome(NamedTuple):
    """How a command ended: the words typed, the file fed (or None), exit status, lines on stderr, what was on stdout."""

    typed: str
    fed: str | None
    status: int
    errors: list[str]
    printed: str


def outcomes(group) -> Iterator[Outcome]:
    """Run the cases of a group in the current folder, which gets their files."""
    for name, content in group.needed.items():
        make_file(Path(name), content)
    for words in group.words:
        yield run(group.command.format(words), None)
    for name, content, *label in group.files:
        make_file(Path(name), content)
        yield run(group.command.format(name), label[0] if label else shown(content))


def make_file(path: Path, content) -> None:
    if callable(content):
        content(path)
    else:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))


def shown(content: str | bytes) -> str:
    """Return the content of a file in one short line."""
    text = content if isinstance(content, str) else content.decode("latin-1")
    text = text.rstrip("\n").encode("unicode_escape").decode() if not text.isascii() else text.rstrip("\n")
    text = "".join(
        mark if mark.isprintable() or mark == "\n" else mark.encode("unicode_escape").decode() for mark in text
    )
    return cut(text.replace("\n", "\\n"), 90)


def cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 30]} ... {text[-20:]}"


def run(typed: str, fed: str | None) -> Outcome:
    """Run a command line in this process, as `python` would run its script."""
    from qa.errors import TRACEBACKS, run_or_exit
    from qa.locks import unlock_all

    script, *words = shlex.split(typed)
    script, *words = words if script == "-m" else [script, *words]
    main = importlib.import_module(script.removesuffix(".py")).main
    out, err = io.StringIO(), io.StringIO()
    before = os.environ.copy()
    os.environ["PATH"] = ""  # no program of this machine, such as mpirun, is found
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            run_or_exit(partial(main, words))
        status = 0
    except SystemExit as stop:
        status = stop.code
    finally:
        os.environ.clear()
        os.environ.update(before)
        TRACEBACKS["shown"] = False
        unlock_all()  # as at the end of a process
        gc.unfreeze()
    errors = err.getvalue().replace(os.getcwd(), "/folder").replace(os.environ["HF_HOME"], "/cache").splitlines()
    return Outcome(typed, fed, status, errors, out.getvalue())


def section(group, found: list[Outcome]) -> str:
    """Return the section of the page about a group: a table of the cases."""
    start, end = group.command.split("{}")
    where = f"{start}...{end}".strip()
    column = "file" if group.files else "..."
    lines = [f"### {group.title}\n", f"```text\n{where}\n```\n", f"| {column} | message |", "|---|---|"]
    for outcome in found:
        typed = outcome.typed[len(start) : len(outcome.typed) - len(end)]
        cell = quoted(cut(typed, 120)) + (f": {quoted(outcome.fed)}" if outcome.fed else "")
        status = "" if outcome.status == 2 else f"(status {outcome.status}) "
        messages = [quoted(cut(error.removeprefix("error: "), 400)) for error in outcome.errors]
        lines.append(f"| {cell} | {status}{'<br>'.join(messages)} |")
    return "\n".join(lines)


def quoted(text: str) -> str:
    """Return a text as code in a cell of a Markdown table; it begins with a blank, so that it names no flag of the manual."""
    marks = "``" if "`" in text or text.startswith("--") else "`"
    return f"{marks} {text} {marks}".replace("|", "\\|")


def page(found: dict[str, list[Outcome]]) -> str:
    """Return the whole page from the outcomes by the titles of groups."""
    from error_cases import PARTS

    parts = [HEAD]
    for title, groups in PARTS.items():
        parts.append(f"## {title}\n")
        parts += [section(group, found[group.title]) + "\n" for group in groups]
    return "\n".join(parts)


def main() -> None:
    """Run all cases in a temporary folder and write the page."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "quickstart")]
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": f"{folder}/cache"}
        from error_cases import all_groups

        found = {}
        for number, group in enumerate(all_groups()):
            os.makedirs(f"{folder}/{number}")
            os.chdir(f"{folder}/{number}")
            found[group.title] = list(outcomes(group))
        os.chdir(ROOT)
    PAGE.write_text(page(found))
    number = sum(map(len, found.values()))
    print(f"{PAGE}: {number} cases, {sum(outcome.status != 2 for part in found.values() for outcome in part)} not 2")


if __name__ == "__main__":
    main()
