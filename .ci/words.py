"""Check the wording of text files: words that read as translated, long sentences, and sentences that begin badly.

    python .ci/words.py README.md docs/*.md qa/*.py

Replacements are checked in every file. Sentences are checked in Markdown only, outside code blocks and tables.
Prints `file:line: finding` for each and exits with status 1 if there is one. A line that ends in `# right English` is skipped.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path


LONGEST_SENTENCE = 25  # words
SKIPPED = "# right English"
REPLACEMENTS = {  # pattern: better words
    r"told|tells?": "reports, prints, says",
    r"mend(s|ed|ing)?": "fix",
    r"behind": "after",
    r"in front of": "before",
    r"(leav(e|es|ing)|left)( \S+){0,3} away": "omit",
    r"stands? in": "is in",
    r"by (itself|themselves)": "on its own, directly",
    r"besides?": "next to, compared with",
    r"(is|are) left over": "the remainder",
    r"but for": "except",
    r"so many": "N",
    r"(is|are) made of": "consists of",
    r"gives": "returns, yields",
    r"anew": "again",
}
FORBIDDEN = re.compile(
    r"\b(?:" + "|".join(f"(?P<r{number}>{p})" for number, p in enumerate(REPLACEMENTS)) + r")\b", re.I
)
NOT_PROSE = re.compile(r"(?s:^```.*?^```|<!--.*?-->)|^ *\|.*$|^#.*$|^ {4}.*$", re.MULTILINE)
CODE = re.compile(r"`[^`]*`")
LINK = re.compile(r"\[([^]]*)\]\([^)]*\)")
SENTENCE_END = re.compile(r"(?<=[.!?:;])\s+|\n\s*\n|\n(?=\s*[-*\d]+[. ])")


def findings(text: str, is_markdown: bool) -> Iterator[tuple[int, str]]:
    """Yield the line number and the description of everything that is wrong with a text."""
    for number, line in enumerate(text.splitlines(), start=1):
        for match in () if line.endswith(SKIPPED) else FORBIDDEN.finditer(line):
            better = list(REPLACEMENTS.values())[int(match.lastgroup[1:])]
            yield number, f'"{match[0]}": write {better}'
    for place, sentence in sentences(text) if is_markdown else ():
        words = [word for word in sentence.split() if re.search(r"\w", word)]
        if len(words) > LONGEST_SENTENCE:
            yield line_of(text, place), f"{len(words)} words: {' '.join(words[:6])} ..."
        if words and words[0] in ("What", "Who") and not sentence.endswith("?"):
            yield line_of(text, place), f"begins with {words[0]}: {' '.join(words[:6])} ..."


def sentences(markdown: str) -> Iterator[tuple[int, str]]:
    """Yield position and text of each sentence; a piece of code or a link's target counts as one word at most."""
    prose = NOT_PROSE.sub(lambda match: blank(match[0]) + "\n", markdown)
    prose = CODE.sub(lambda match: "`" + "_" * (len(match[0]) - 2) + "`", prose)
    prose = LINK.sub(lambda match: match[1] + "_" * (len(match[0]) - len(match[1])), prose)
    start = 0
    for end in [*SENTENCE_END.finditer(prose), None]:
        stop = end.start() if end else len(prose)
        yield start + len(prose[start:stop]) - len(prose[start:stop].lstrip()), prose[start:stop].strip()
        start = end.end() if end else stop


def blank(text: str) -> str:
    return "".join(character if character == "\n" else " " for character in text)


def line_of(text: str, place: int) -> int:
    return text.count("\n", 0, place) + 1


def main(paths: list[str]) -> int:
    found = 0
    for path in map(Path, paths):
        for line, finding in findings(path.read_text(encoding="utf-8"), path.suffix == ".md"):
            print(f"{path}:{line}: {finding}")
            found += 1
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
