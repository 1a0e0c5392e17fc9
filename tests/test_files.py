"""The files of results: whole or unchanged, with the content that `json` would write."""

import json
import os
import weakref

import pytest
from helpers import examples
from hypothesis import given
from hypothesis import strategies as st

from qa.files import to_json, write_json, write_results


numbers = st.floats(allow_nan=False, allow_infinity=False) | st.floats(width=32, allow_nan=False, allow_infinity=False)
names = st.text() | st.sampled_from(["\ud800", 'a"b\\c', "京都 🙂\n", "\x00"])
rows = st.lists(
    st.fixed_dictionaries({"start_logit": numbers, "text": names, "window": st.integers(0, 99)}), max_size=3
)


class Part(dict):
    """A part that can be watched."""


@examples(100)
@given(st.lists(st.dictionaries(names, st.one_of(numbers, names, rows)), max_size=3))
def test_the_content_is_that_of_json(tmp_path_factory, parts):
    path = tmp_path_factory.mktemp("content") / "a.json"
    write_json(path, parts)
    whole = {key: value for part in parts for key, value in part.items()}
    found = json.loads(path.read_bytes())
    assert json.dumps(found) == json.dumps(json.loads(json.dumps(whole)))  # the order and -0.0 too


def test_nan_and_infinity_are_null_and_other_keys_are_texts():
    """NaN is no JSON: other programs refuse the file."""
    assert json.loads(to_json({7: [float("nan"), float("inf"), 1e16]})) == {"7": [None, None, 1e16]}
    assert json.loads(to_json({"\ud800": [float("nan")]})) == {"\ud800": [None]}  # no text for orjson


def test_a_file_that_fails_half_way_is_unchanged(tmp_path):
    def parts():
        yield {"a": 1}
        raise RuntimeError("half way")

    for before in (None, b"{}"):
        if before is not None:
            (tmp_path / "a.json").write_bytes(before)
        with pytest.raises(RuntimeError, match="half way"):
            write_json(tmp_path / "a.json", parts())
        assert [path.read_bytes() for path in tmp_path.iterdir()] == [before] * (before is not None)


def test_a_file_can_be_read_by_those_whom_the_umask_allows(tmp_path):
    """Files of `tempfile` can be read by their owner alone."""
    before = os.umask(0o027)
    try:
        write_json(tmp_path / "a.json", [{}])
    finally:
        os.umask(before)
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o640


def test_one_part_is_in_memory_at_a_time(tmp_path):
    """Of 200,000 questions the n-best rows as Python objects take over a GB."""
    made = []

    def parts():
        for number in range(5):
            assert sum(part() is not None for part in made) <= 1  # the one before
            part = Part({f"q{number}": []})
            made.append(weakref.ref(part))
            yield part
            del part

    write_json(tmp_path / "a.json", parts())
    assert json.loads((tmp_path / "a.json").read_text()) == {f"q{number}": [] for number in range(5)}


def test_results_of_stages_add_up(tmp_path):
    write_results(tmp_path, "train", {"train_loss": 2.5, "epoch": 1.0})
    write_results(tmp_path, "eval", {"epoch": 2.0, "eval_f1": 50.0})
    found = {path.name: list(json.loads(path.read_text()).items()) for path in tmp_path.iterdir()}
    assert found["train_results.json"] == [("epoch", 1.0), ("train_loss", 2.5)]
    assert found["all_results.json"] == [("epoch", 2.0), ("eval_f1", 50.0), ("train_loss", 2.5)]
