"""Every file that a run writes."""

import json
from collections.abc import Iterable
from json.encoder import encode_basestring_ascii
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.compute


def json_of_objects(**columns: pyarrow.StringArray) -> pyarrow.StringArray:
    """One JSON object a row, out of columns that are JSON already."""
    parts, before = [], "        {\n"
    for name, column in columns.items():
        parts += [f'{before}            "{name}": ', column]
        before = ",\n"
    return pyarrow.compute.binary_join_element_wise(*parts, "\n        }", "")


def json_of_groups(rows: pyarrow.StringArray, bounds: np.ndarray) -> list[str]:
    """JSON lists of the rows `bounds[i]` to `bounds[i + 1]` each."""
    groups = pyarrow.ListArray.from_arrays(pyarrow.array(bounds, pyarrow.int32()), rows)
    joined = pyarrow.compute.binary_join(groups, ",\n")
    return pyarrow.compute.binary_join_element_wise("[\n", joined, "\n    ]", "").to_pylist()


def float_strings(values: np.ndarray) -> pyarrow.StringArray:
    """Every number as `json.dumps` writes it: by Arrow's cast, five times as fast, where that has the same form.

    Both write the shortest digits that read back as the same number, but whole numbers and exponents look different.
    """
    values = values.astype(np.float64)
    size = np.abs(values)
    other_form = ~((size >= 1e-4) & (size < 1e10) & (size != np.floor(size)))
    strings = pyarrow.compute.cast(pyarrow.array(values), pyarrow.string())
    others = [repr(value) if value - value == 0 else json.dumps(value) for value in values[other_form].tolist()]
    return pyarrow.compute.replace_with_mask(strings, other_form, pyarrow.array(others, pyarrow.string()))


def write_object(path: Path, items: Iterable[tuple[str, str]]) -> None:
    """Writes a JSON object, entry by entry; the values are JSON already."""
    before = "\n"
    with path.open("w") as file:
        file.write("{")
        for key, value in items:
            file.write(f"{before}    {encode_basestring_ascii(str(key))}: {value}")
            before = ",\n"
        file.write("}\n" if before == "\n" else "\n}\n")
