"""Every file of results that a run writes: whole or not at all."""

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path

import orjson


# The beginnings of a stage's metrics: a prediction's scores begin with `test_`, its number of samples does not.
PREFIXES = {"train": ("train_",), "eval": ("eval_",), "predict": ("predict_", "test_")}


def write_whole(path: Path, chunks: Iterable[bytes]) -> None:
    """Write a file under another name, and rename it when all of it is on the disk.

    If anything fails before, `path` keeps its old content.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_json(path: Path, parts: Iterable[dict]) -> None:
    """Write one JSON object that has the entries of all parts, in their order; only one part is in memory at a time."""
    write_whole(path, json_chunks(parts))


def write_results(folder: Path, stage: str, metrics: dict) -> None:
    """Write the metrics of a stage to `{stage}_results.json`, sorted by name; in `all_results.json` they replace its earlier ones."""
    write_json(folder / f"{stage}_results.json", [dict(sorted(metrics.items()))])
    everything = folder / "all_results.json"
    own = PREFIXES[stage]
    before = {name: value for name, value in read_object(everything).items() if not name.startswith(own)}
    write_json(everything, [dict(sorted((before | metrics).items()))])


def read_object(path: Path) -> dict:
    """Return the JSON object in a file; an empty one where there is none, or a file that was cut off."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def json_chunks(parts: Iterable[dict]) -> Iterable[bytes]:
    before = b"{\n"
    for part in filter(None, parts):
        yield before + to_json(part)[2:-2]  # without its own braces and the line ends next to them
        before = b",\n"
    yield b"{}\n" if before == b"{\n" else b"\n}\n"


def to_json(value: dict | list) -> bytes:
    """Return indented JSON in UTF-8: floats with the fewest digits that read back the same, null for NaN and infinity.

    orjson refuses half a surrogate pair, which an id may hold; `json` writes it.
    """
    try:
        return orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS)
    except orjson.JSONEncodeError:
        return json.dumps(finite(value), indent=2, allow_nan=False).encode()


def finite(value):
    """Return JSON data with None for each number that is NaN or infinite.

    >>> finite({"losses": [0.5, float("nan")]})
    {'losses': [0.5, None]}
    """
    if isinstance(value, dict):
        return {name: finite(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
