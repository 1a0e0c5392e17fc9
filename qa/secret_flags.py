"""Flags whose values are secrets, and command lines that are shown without them."""

import ctypes
from pathlib import Path


# Their values are in no file either: neither training_args.bin nor run.json.
SECRETS = ("token", "hub_token", "push_to_hub_token")


def without_secrets(words: list[str]) -> list[str]:
    """Return a command line with a mark in the place of each secret.

    >>> without_secrets(["--push_to_hub", "True", "--token", "hf_x", "--hub-tok=hf_y"])
    ['--push_to_hub', 'True', '--token', '***', '--hub-tok=***']
    """
    return [word if shown == len(word) else word[:shown] + "***" for word, shown in zip(words, shown_lengths(words))]


def shown_lengths(words: list[str]) -> list[int]:
    """Return how many characters of each word of a command line come before a secret.

    >>> shown_lengths(["--token", "hf_x", "--hub_token=hf_y", "--seed=1"])
    [7, 0, 12, 8]
    """
    lengths, after_flag = [], False
    for word in words:
        flag, equals, _ = word.partition("=")
        after_equals = bool(equals) and is_secret(flag)
        lengths.append(0 if after_flag else len(flag) + 1 if after_equals else len(word))
        after_flag = not equals and is_secret(flag)
    return lengths


def is_secret(flag: str) -> bool:
    """Return whether a word is a flag with a secret, or the beginning of one, which argparse takes for it."""
    name = flag.removeprefix("--").replace("-", "_")
    begins = [secret for secret in SECRETS if name and secret.startswith(name)]
    return flag.startswith("--") and name != "push_to_hub" and bool(begins)


def hide_secrets() -> None:
    """Overwrite the secrets on the command line of this process, which every user of the machine can read (Linux only)."""
    try:
        line = Path("/proc/self/cmdline").read_bytes()
        start = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[45])  # arg_start of proc(5)
    except (OSError, IndexError):
        return
    words = line.split(b"\0")
    lengths = shown_lengths([word.decode("latin-1") for word in words])
    hidden = b"\0".join(word[:shown].ljust(len(word), b"*") for word, shown in zip(words, lengths))
    if hidden != line and start and ctypes.string_at(start, len(line)) == line:
        ctypes.memmove(start, hidden, len(line))
