"""The file of arguments that a command line may begin with, as flags.

    expand_file(["config.yaml", "--seed", "7"])  ->  ["--do_train=true", "--max_seq_length=384", "--seed", "7"]

Values travel as they are written, for the flags to read: YAML 1.1 would make False of `no`, 8 of `010` and 90 of `1:30`.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from qa.errors import UserError, in_one_line
from qa.secret_flags import without_tokens


ENDINGS = (".json", ".yaml", ".yml")
MOST_BYTES = 1 << 20
MOST_VALUES = 10_000  # with every alias of YAML written out
PLAIN_TAGS = [f"tag:yaml.org,2002:{kind}" for kind in "str int float bool null timestamp seq map merge value".split()]


def is_argument_file(word: str) -> bool:
    """Return whether a word of the command line is the name of a file of arguments."""
    return word.endswith(ENDINGS) and not word.startswith("-")


def expand_file(argv: list[str]) -> list[str]:
    """Return the command line with the flags of the file that its first argument names before the others.

    Raises:
        UserError: the file cannot be read, is no mapping, or has a flag twice.
    """
    return flags_of_file(Path(argv[0])) + argv[1:] if argv and is_argument_file(argv[0]) else argv


def flags_of_file(path: Path) -> list[str]:
    """Return the arguments of a JSON or YAML file as the equivalent flags; null values are omitted."""
    if not path.is_file():
        raise UserError(f"{path}: there is no such file of arguments")
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"it has {path.stat().st_size} bytes; a file of arguments has {MOST_BYTES} at most")
        text = path.read_text(encoding="utf-8-sig")
        settings = json_settings(text) if path.suffix == ".json" else yaml_settings(text)
    except RecursionError as error:
        raise UserError(f"{path}: cannot be read as a file of arguments: it is nested too deeply") from error
    except Exception as error:  # yaml.YAMLError is no ValueError
        raise UserError(f"{path}: cannot be read as a file of arguments: {reason_in_line(error)}") from error
    lines = defaultdict(list)
    for name, line, _ in settings:
        lines[name].append(str(line))
    if twice := {name: found for name, found in lines.items() if len(found) > 1}:
        raise UserError(
            *(
                f"{path}: {name} is there {len(at)} times, in lines {', '.join(at)}; keep one"
                for name, at in twice.items()
            )
        )
    return [word for name, _, value in settings for word in flag_words(name, value)]


def reason_in_line(error: Exception) -> str:
    """Return why a file cannot be read, with the line and the column that YAML's errors have, and no word of the file.

    Any word of it may be a secret; a password that begins with `*` is an alias for YAML.
    """
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return without_tokens(in_one_line(error))
    problem = re.sub(r" '[^'<\\]{2,}'", "", error.problem)
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"


def flag_words(name: str, value) -> list[str]:
    """Return the words for a flag: `--flag=value`, or `--flag` and the values of a list.

    >>> flag_words("seed", "010"), flag_words("length_buckets", ["64", "128"]), flag_words("run_name", None)
    (['--seed=010'], ['--length_buckets', '64', '128'], [])
    """
    if isinstance(value, list):
        return [f"--{name}", *map(as_text, value)]
    return [] if value is None else [f"--{name}={as_text(value)}"]


def as_text(value) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


# ---------------------------------------------------------------------------------------------------------------------
# JSON


def json_settings(text: str) -> list[tuple[str, int, object]]:
    """Return name, line and value of each argument in a JSON text."""
    pairs = json.loads(text, object_pairs_hook=Pairs)
    if not isinstance(pairs, Pairs):
        raise ValueError(not_a_mapping(f"a {type(pairs).__name__}"))
    places = {name: lines_of(text, name) for name, _ in pairs}
    return [(name, next(places[name]), plain(value)) for name, value in pairs]


class Pairs(list):
    """The pairs of a JSON object, with keys that are there twice."""


def plain(value):
    """Return a value of JSON with dicts in place of pairs."""
    if isinstance(value, Pairs):
        return {name: plain(part) for name, part in value}
    return [plain(part) for part in value] if isinstance(value, list) else value


def lines_of(text: str, name: str) -> Iterable[int]:
    """Yield the lines of a JSON text in which a key is."""
    for match in re.finditer(re.escape(json.dumps(name, ensure_ascii=False)) + r"\s*:", text):
        yield text.count("\n", 0, match.start()) + 1
    while True:  # a key that is written with escapes
        yield 0


# ---------------------------------------------------------------------------------------------------------------------
# YAML


def yaml_settings(text: str) -> list[tuple[str, int, object]]:
    """Return name, line and value of each argument in a YAML text; values that are no mappings as they are written."""
    import yaml

    loader = yaml.SafeLoader(text)
    root = loader.get_single_node()
    if not isinstance(root, yaml.MappingNode):
        raise ValueError(not_a_mapping("an empty file" if root is None else f"a {root.id}"))
    if count_values(root, {}) > MOST_VALUES:
        raise ValueError(f"with its aliases written out it has more than {MOST_VALUES} values")
    for key, _ in root.value:
        if key.id != "scalar":
            raise ValueError(f"line {key.start_mark.line + 1}: the name of a flag is a word, not a {key.id}")
    own = [(key, value) for key, value in root.value if not key.tag.endswith(":merge")]
    loader.flatten_mapping(root)  # `<<: *defaults` comes first, for the file's own keys to override
    names = {key.value for key, _ in own}
    merged = [(key, value) for key, value in root.value if key.value not in names]
    pairs = {key.value: (key, value) for key, value in merged}
    settings = [*pairs.values(), *own]
    return [(key.value, key.start_mark.line + 1, value_of(value, loader)) for key, value in settings]


def value_of(node, loader):
    """Return a list, a dict, None or, for everything else, the text as it is written."""
    if node.id == "sequence":
        return [value_of(part, loader) for part in node.value]
    if node.id == "mapping":
        return loader.construct_object(node, deep=True)
    return None if node.tag.endswith(":null") else node.value


def count_values(node, counts: dict[int, int | None]) -> int:
    """Return the number of values of a node with its aliases written out, without writing them out.

    Args:
        counts: of the nodes that are counted, by identity; None for those that are being counted.

    Raises:
        ValueError: a node contains itself, or its tag is none of YAML's own.
    """
    line = node.start_mark.line + 1
    if node.tag not in PLAIN_TAGS:
        raise ValueError(f"line {line}: a tag that begins with `!` is not read; write a plain value, or quote it")
    if id(node) not in counts:
        counts[id(node)] = None
        parts = [] if node.id == "scalar" else node.value
        parts = [part for pair in parts for part in pair] if node.id == "mapping" else parts
        counts[id(node)] = 1 + sum(count_values(part, counts) for part in parts)
    if counts[id(node)] is None:
        raise ValueError(f"line {line}: the value contains itself")
    return counts[id(node)]


def not_a_mapping(found: str) -> str:
    return f"it holds `flag: value` pairs, not {found}"
