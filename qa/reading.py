"""Read files of questions: from bytes to records, which are dicts of all columns of a file.

Files: `.json`, `.jsonl`, `.csv`, `.tsv`, `.parquet` and `.xlsx`, each also gzipped. JSON may hold

- rows: a list, `{"data": [...]}`, or one after the other (JSON lines);
- SQuAD's articles: `{"data": [{"title", "paragraphs": [{"context", "qas": [...]}]}]}`, or their list;
- simpletransformers' paragraphs: `[{"context", "qas": [...]}]`;
- MRQA's lines: a header, then paragraphs whose `qas` have `qid` and `detected_answers`.

docs/data.md has an example of each. qa/shapes.py turns records into rows of one shape.
"""

import csv
import gzip
import io
import itertools
import json
import logging
import re
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from qa.errors import UserError, in_one_line, short


logger = logging.getLogger(__name__)

# The first bytes of some kinds of files, and the ending that belongs to each.
MAGIC = {b"PAR1": ".parquet", b"PK\x03\x04": ".xlsx", b"\x1f\x8b": ".gz"}
DELIMITERS = ",;\t|"
# Encodings to try for text that is not Unicode: the code pages of Windows, and those of East Asia and Russia.
LEGACY_ENCODINGS = [f"cp{page}" for page in (*range(1250, 1259), 932, 949)] + ["gb18030", "big5", "koi8_r"]
ID_KEYS = ("id", "guid", "qid")
# A packed file may unpack to this many bytes, and to this many more for each packed byte. Texts reach 10 to 100, files that
# repeat one row 250, and zeros 1030.
UNPACKED, RATIO = 2**27, 300


def read_file(path: Path) -> list[dict]:
    """Read the records of a data file, whatever their columns.

    Fields of a CSV row beyond its header are kept under the key None, so that the row can be refused by its number.

    Raises:
        UserError: the file cannot be read, or is not what its name says.
    """
    kind = kind_of(path)
    if kind not in READERS:
        raise UserError(f"{path}: not one of {', '.join(READERS)} (each may end in .gz); rename or convert it")
    try:
        data = path.read_bytes()
        return read_bytes(unzip(data) if path.suffix.lower() == ".gz" else data, kind, path)
    except MemoryError as error:
        raise UserError(f"{path}: there is not enough memory to read it; split it, or use a larger machine") from error
    except (OSError, EOFError, zlib.error, csv.Error, ValueError) as error:
        reason = getattr(error, "strerror", None) or in_one_line(error, 300)
        raise UserError(f"{path}: cannot be read as {kind}: {reason}") from error


def unzip(data: bytes) -> bytes:
    """Return the content of a gzip file.

    Raises:
        ValueError: it unpacks to far more than its size, like a file that was made to fill the memory.
    """
    packed, parts, size = io.BytesIO(data), [], 0
    with gzip.GzipFile(fileobj=packed) as file:
        while part := file.read(2**20):
            parts.append(part)
            size += len(part)
            check_ratio(size, packed.tell())  # right English
    return b"".join(parts)


def check_ratio(unpacked: int, packed: int) -> None:
    if unpacked > UNPACKED + RATIO * packed:
        raise ValueError(
            f"it unpacks to over {RATIO} times its size, as no text does; if it is good, unpack it and name that file"
        )


def kind_of(path: Path) -> str:
    """Return the ending that names a file's format: `.csv` for `x.CSV` and `x.csv.gz`."""
    return Path(path.stem if path.suffix.lower() == ".gz" else path).suffix.lower()


def read_bytes(data: bytes, kind: str, path: Path) -> list[dict]:
    if not data.strip():
        raise ValueError("the file is empty")
    held = next((held for magic, held in MAGIC.items() if data.startswith(magic)), kind)
    if held != kind:
        raise ValueError(f"it holds what {held} files do; rename it to end in {held}")
    if kind in BINARY_READERS:
        return BINARY_READERS[kind](data)
    text, guessed = decode(data)
    if guessed:
        logger.warning(
            f"{path}: not UTF-8; read as {guessed}, as in {guess_sample(text)}. If that is wrong, save it as UTF-8"
        )
    return TEXT_READERS[kind](text)


def decode(data: bytes) -> tuple[str, str | None]:
    """Return the text of a file, and the name of its encoding where that is a guess.

    A byte order mark, or the zero bytes of the first ASCII characters, identify UTF-8, UTF-16 and UTF-32.
    """
    try:
        return data.decode(json.detect_encoding(data)), None
    except UnicodeDecodeError as error:
        if error.encoding != "utf-8" or is_damaged_utf8(data):
            line = data.count(b"\n", 0, error.start) + 1
            raise ValueError(
                f"line {line} is not {error.encoding}: {error.reason} ({short(data[error.start :][:4])})"
            ) from error
    encoding = guess_encoding(data)
    return data.decode(encoding), encoding


def is_damaged_utf8(data: bytes) -> bool:
    """Return whether most characters outside ASCII are valid UTF-8, which does not happen by chance."""
    text = data.decode("utf-8", errors="replace")
    beyond_ascii = len(text) - len(text.encode("ascii", errors="ignore"))
    return beyond_ascii > 2 * text.count("\ufffd")


def guess_encoding(data: bytes) -> str:
    """Return the encoding that reads best; where several are equally good, Western Europe's is by far the commonest."""
    import charset_normalizer

    lines = (line for line in data.split(b"\n") if not line.isascii())
    sample = b"\n".join(itertools.islice(lines, 500))[:100_000]
    found = list(charset_normalizer.from_bytes(sample, cp_isolation=LEGACY_ENCODINGS))
    if not found:
        raise ValueError("it is not text in a known encoding; save it as UTF-8")
    best = [match for match in found if (match.chaos, match.coherence) == (found[0].chaos, found[0].coherence)]
    western = any("cp1252" in match.could_be_from_charset for match in best)
    return "cp1252" if western else best[0].encoding


def guess_sample(text: str) -> str:
    """Return the first word with a character outside ASCII."""
    return short(next((word for word in text.split() if not word.isascii()), "a blank"))


def read_csv(text: str) -> list[dict]:
    """Read CSV whose first row names the columns, with commas, semicolons, tabs or `|` between them.

    A line `sep=;` before it, which Excel reads, is skipped. The delimiter is the one that splits the header into most
    columns. csv.Sniffer also looks at the other rows, where prose may have more commas than the file has columns, and it
    turns the doubling of quotes off.
    """
    if text.lstrip()[:1] in ("{", "["):
        raise ValueError("it holds JSON; rename it to end in .json")
    csv.field_size_limit(2**31 - 1)  # the default refuses contexts over 128 KiB
    text = re.sub(r'\A"?sep=.?"?[\r\n]', "", text.lstrip("\r\n"), flags=re.IGNORECASE).lstrip("\r\n")
    header, delimiter = max(((csv_header(text, mark), mark) for mark in DELIMITERS), key=lambda found: len(found[0]))
    after_blanks = len(header) > 1 and all(name.startswith(" ") for name in header[1:])
    reader = csv.DictReader(
        io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=after_blanks, strict=True
    )
    reader.fieldnames = check_header([name.strip() for name in reader.fieldnames or ()])
    records = []
    try:
        records.extend(record for record in reader if not is_blank(record))
    except csv.Error as error:
        raise ValueError(
            f"row {len(records) + 1}, from line {reader.line_num + 1} on: {error}; check its quotes"
        ) from error
    return records


def csv_header(text: str, delimiter: str) -> list[str]:
    return next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])


def check_header(names: list[str]) -> list[str]:
    twice = [name for name in dict.fromkeys(names) if name and names.count(name) > 1]
    if twice:
        raise ValueError(f"its header has the column {short(twice[0])} more than once; rename one")
    return names


def is_blank(record: dict) -> bool:
    """Return whether a row of a table is empty, like the rows that spreadsheets append."""
    values = itertools.chain(*(value if isinstance(value, list) else [value] for value in record.values()))
    return not any(str(value).strip() for value in values if value is not None)


def read_parquet(data: bytes) -> list[dict]:
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(io.BytesIO(data)).to_pylist()
    except Exception as error:  # Arrow raises many kinds, not all of them ValueErrors
        raise ValueError(f"{type(error).__name__}: {error}") from error


def read_xlsx(data: bytes) -> list[dict]:
    """Read the first sheet of an Excel file; its first row names the columns, unnamed ones are omitted."""
    try:
        import python_calamine
    except ImportError as error:
        raise ValueError(
            "this needs a package; run `pip install python-calamine`, or save the sheet as CSV"
        ) from error
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            check_ratio(sum(part.file_size for part in archive.infolist()), len(data))
        workbook = python_calamine.load_workbook(io.BytesIO(data))
        header, *rows = workbook.get_sheet_by_index(0).to_python(skip_empty_area=False) or [[]]
    except ValueError:
        raise
    except Exception as error:  # a damaged archive ends in many kinds
        raise ValueError(f"{type(error).__name__}: {error}") from error
    names = check_header([str(name).strip() for name in header])
    records = ({name: field for name, field in zip(names, row) if name} for row in rows)
    return [record for record in records if not is_blank(record)]


def read_json(text: str) -> list[dict]:
    """Read the records of JSON in any layout that the module names."""
    documents = list(json_documents(text))
    content = documents[0] if len(documents) == 1 else documents
    if isinstance(content, dict):
        content = content.get("data", [content])
    return [record for entry, place in objects(content, "row") for record in records_of_entry(entry, place)]


def json_documents(text: str) -> Iterator:
    """Yield the JSON documents of a text one after the other: a single one, or JSON lines."""
    decoder, blank = json.JSONDecoder(), re.compile(r"[ \t\r\n]*")
    end = blank.match(text).end()
    while end < len(text):
        start = end
        try:
            document, end = decoder.raw_decode(text, start)
        except RecursionError as error:
            raise ValueError(f"line {text.count(chr(10), 0, start) + 1} is nested too deeply") from error
        except json.JSONDecodeError as error:
            found = short(text[error.pos : error.pos + 40]) if text[error.pos :].strip() else "the end of the file"
            raise ValueError(
                f"line {error.lineno} is not JSON: {error.msg} (column {error.colno}), at {found}"
            ) from error
        except ValueError as error:  # Python converts no more digits to a number
            line = text.count("\n", 0, start) + 1
            raise ValueError(f"line {line} has a number of over {sys.get_int_max_str_digits()} digits") from error
        yield document
        end = blank.match(text, end).end()


def records_of_entry(entry: dict, place: str) -> Iterator[dict]:
    """Yield the records of an article, of a paragraph, or the one that an entry is; none for MRQA's header."""
    if "paragraphs" in entry:
        for paragraph, inner in objects(entry["paragraphs"], f"{place}, paragraph"):
            yield from records_of_paragraph(paragraph, entry.get("title", ""), inner)
    elif "qas" in entry:
        yield from records_of_paragraph(entry, entry.get("title", ""), place)
    elif entry.keys() != {"header"}:
        yield entry


def records_of_paragraph(paragraph: dict, title, place: str) -> Iterator[dict]:
    """Yield a record for each question, with the question's own columns, the context and the title."""
    for qa, _ in objects(paragraph.get("qas"), f"{place}, question"):
        identity = next((qa[key] for key in ID_KEYS if qa.get(key) is not None), None)
        record = {"title": title, "context": paragraph.get("context")} | qa | {"id": identity}
        if "detected_answers" in qa:  # MRQA's `answers` are texts without a place, and not all of them in the context
            record["answers"] = qa["detected_answers"]
        yield record


def objects(value, place: str) -> Iterator[tuple[dict, str]]:
    """Yield each object of a JSON list with its place for messages, numbered from 1."""
    if not isinstance(value, list):
        raise ValueError(f"{place} 1, 2, ... should be a list of objects, not {short(value)}")
    for number, entry in enumerate(value, start=1):
        if not isinstance(entry, dict):
            raise ValueError(f"{place} {number} is not an object of columns but {short(entry)}")
        yield entry, f"{place} {number}"


def flatten_squad(articles: list[dict]) -> list[dict]:
    """Return one record for each question of SQuAD's articles."""
    return [record for article, place in objects(articles, "article") for record in records_of_entry(article, place)]


TEXT_READERS = {".json": read_json, ".jsonl": read_json, ".csv": read_csv, ".tsv": read_csv}
BINARY_READERS = {".parquet": read_parquet, ".xlsx": read_xlsx}
READERS = TEXT_READERS | BINARY_READERS
