"""Words of a command line that are shown without their secrets: in messages, records and the list of processes.

A secret is the value of a flag of `SECRETS`, of a misspelt one, or of any flag that is named like one, and a word that
begins like an access token of the hub.
"""

import ctypes
import re
import sys
from difflib import get_close_matches
from pathlib import Path


# Their values are in no file either: neither training_args.bin nor run.json.
SECRETS = ("token", "hub_token", "push_to_hub_token")
DASHES = "-\u2010-\u2015\u2212"  # also those that editors put in place of two hyphens
TOKEN = re.compile(r"(?<!/)hf_(?!token\b)[\w-]+(?![\w/.-])")  # and no path
# `--tokenhf_x` is one with a value.
NAME = re.compile(rf"([{DASHES}]*)((?:push_to_)?(?:hub_)?token(?!iz)|\w[\w-]*)[=:]?")
LIKE_A_SECRET = re.compile(r"(token|key|secret|password)$")


def without_secrets(words: list[str]) -> list[str]:
    """Return a command line with a mark in place of each secret.

    >>> without_secrets(["--push_to_hub", "True", "--token", "hf_x", "--hub-tok=hf_y"])
    ['--push_to_hub', 'True', '--token', '***', '--hub-tok=***']
    """
    return [word if shown == len(word) else word[:shown] + "***" for word, shown in zip(words, shown_lengths(words))]


def without_tokens(text: str) -> str:
    """Return a text with a mark in place of each word that begins like a token of the hub."""
    return TOKEN.sub("***", text)


def shown_lengths(words: list[str]) -> list[int]:
    """Return how many characters of each word of a command line come before a secret.

    >>> shown_lengths(["--token", "hf_x", "y", "--hub_tokn:hf_z", "--seed=1"])
    [7, 0, 0, 11, 8]
    """
    lengths, after_flag = [], False
    for word in words:
        after_flag = after_flag and not word.startswith("--")
        name, token = length_of_secret_flag(word), TOKEN.search(word)
        lengths.append(0 if after_flag else min(name or len(word), token.start() if token else len(word)))
        after_flag = after_flag or 0 < name == len(word)
    return lengths


def length_of_secret_flag(word: str) -> int:
    """Return the length of the flag, with `=` or `:`, that a word begins with if its value is a secret, else 0.

    The dashes may have been forgotten: a word that is such a name is a flag.
    """
    match = NAME.match(word)
    if match is None or not is_secret(match[2], begins=bool(match[1])):
        return 0
    return match.end() if match[1] or match.end() == len(word) or word[match.end() - 1] in "=:" else 0


def is_secret(name: str, begins: bool) -> bool:
    """Return whether a name is that of a flag with a secret, or near to it, or (`begins`) its beginning, as argparse has it."""
    name = name.replace("-", "_").lower()
    if name.startswith("push_to_hub") and not name.startswith("push_to_hub_t"):
        return False
    is_beginning = begins and len(name) > 2 and any(secret.startswith(name) for secret in SECRETS)
    return is_beginning or bool(LIKE_A_SECRET.search(name) or get_close_matches(name, SECRETS, n=1, cutoff=0.75))


def take_words() -> list[str]:
    """Return the command line of this process without the program's name; in `sys.argv`, which W&B records, hide its secrets."""
    words = sys.argv[1:]
    sys.argv[1:] = without_secrets(words)
    return words


def hide_secrets() -> None:
    """Overwrite the secrets on the command line of this process, which every user of the machine can read (Linux only)."""
    try:
        line = Path("/proc/self/cmdline").read_bytes()
        start = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[45])  # arg_start of proc(5)
    except (OSError, IndexError):
        return
    words = line.decode("utf-8", "surrogateescape").split("\0")
    shown = [word[:length].encode("utf-8", "surrogateescape") for word, length in zip(words, shown_lengths(words))]
    hidden = b"\0".join(part.ljust(len(word), b"*") for part, word in zip(shown, line.split(b"\0")))
    if hidden != line and start and ctypes.string_at(start, len(line)) == line:
        ctypes.memmove(start, hidden, len(line))
