"""Every file and folder that a run writes: whole or not at all, also after a kill or a loss of power."""

import errno
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import orjson

from qa.arguments import STAGES
from qa.errors import DISK_FULL


NO_FSYNC = (errno.EINVAL, errno.ENOTSUP)  # of some network file systems, for folders


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield another name to write a file under, and rename it to `path` when all of it is on the disk.

    If anything fails before, `path` keeps its old content.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        sync(partial)
        partial.replace(path)
        sync(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_whole(path: Path, chunks: Iterable[bytes]) -> None:
    """Write a file, whole or not at all."""
    with replacing(path) as partial, partial.open("wb") as file:
        file.writelines(chunks)


def sync(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_FSYNC or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def sync_all(folder: Path) -> None:
    """Wait until a folder and everything below it are on the disk."""
    for path in sorted(folder.rglob("*"), reverse=True):
        sync(path)
    sync(folder)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, as far as that is possible; do nothing if there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def is_disk_full(error: BaseException, folder: Path) -> bool:
    """Return whether an error of writing in a folder means that there is no room.

    The libraries' errors do not always say so: PyTorch 2.13 reports "file write failed". Then writing is tried.
    """
    if getattr(error, "errno", None) in DISK_FULL or "No space left" in str(error):
        return True
    probe = folder / ".room.partial"
    try:
        with probe.open("wb") as file:
            file.write(bytes(1 << 20))
    except OSError as failure:
        return failure.errno in DISK_FULL
    finally:
        remove(probe)
    return False


def write_json(path: Path, parts: Iterable[dict]) -> None:
    """Write one JSON object that has the entries of all parts, in their order; only one part is in memory at a time."""
    write_whole(path, json_chunks(parts))


def write_results(folder: Path, stage: str, metrics: dict) -> None:
    """Write the metrics of a stage to `{stage}_results.json`, sorted by name, and then `all_results.json`."""
    write_json(folder / f"{stage}_results.json", [dict(sorted(metrics.items()))])
    write_all_results(folder)


def write_all_results(folder: Path) -> None:
    """Write the results of all stages together to `all_results.json`; remove it if no stage has any."""
    metrics = {}
    for stage in STAGES.values():
        metrics |= read_object(folder / f"{stage}_results.json")
    if metrics:
        write_json(folder / "all_results.json", [dict(sorted(metrics.items()))])
    else:
        (folder / "all_results.json").unlink(missing_ok=True)


def parse_json(text: str | bytes):
    """Return the value of a JSON text.

    Raises:
        ValueError: it is no JSON, or is nested too deeply, for which Python has a RecursionError.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_object(path: Path) -> dict:
    """Return the JSON object in a file; an empty one where there is none, or a file that was cut off."""
    try:
        content = parse_json(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def json_settings(given: str | dict | None) -> dict:
    """Return the settings that a flag holds as JSON, or in the file that it names; empty where they cannot be read.

    `qa.names` reports those that cannot.
    """
    try:
        if isinstance(given, str):
            given = parse_json(given if given.lstrip().startswith("{") else Path(given).read_bytes())
    except (OSError, ValueError):
        return {}
    return given if isinstance(given, dict) else {}


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
