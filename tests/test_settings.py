"""The file of settings that each model has: what is written is read again, and a damaged file is one line."""

import json
from dataclasses import asdict, fields, replace

import pytest

from qa.errors import UserError
from qa.settings import SETTINGS_FILE, Settings, read_settings, write_settings


SETTINGS = Settings("span", 384, 128, 30, 20, True, -1.25, 1.5, 600, {"question": "frage"}, "de")


@pytest.mark.parametrize("threshold", [0.0, -1.2345678806304932, float("inf"), float("-inf")])
def test_settings_are_read_as_they_were_written(tmp_path, threshold):
    settings = replace(SETTINGS, null_score_diff_threshold=threshold)
    write_settings(tmp_path, settings)
    assert read_settings(tmp_path) == settings


def test_a_folder_without_settings_has_none(tmp_path):
    (tmp_path / "file").touch()
    assert read_settings(tmp_path) is read_settings(tmp_path / "file") is None


def problem_of_file(folder, content: bytes) -> str:
    (folder / SETTINGS_FILE).write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_settings(folder)
    (problem,) = caught.value.problems
    assert problem.startswith(str(folder / SETTINGS_FILE))
    return problem


def test_a_damaged_or_later_file_is_reported(tmp_path):
    good = {"version": 1} | asdict(SETTINGS)
    for content in (b"", b"\0" * 40, b"[]", b"{}", json.dumps(good).encode()[:-5], b"\xff", b"[" * 100_000):
        assert problem_of_file(tmp_path, content).endswith("restore it, or remove it")
    assert "version 2" in problem_of_file(tmp_path, json.dumps(good | {"version": 2, "new": 1}).encode())
    for version in ("2", 1.5, True, 0, []):
        assert "version is" in problem_of_file(tmp_path, json.dumps(good | {"version": version}).encode())
    wrong = [
        (entry.name, value) for entry in fields(Settings) for value in ([], {"a": 1}, {"a": "b"}, -3.5, True, "x")
    ]
    allowed = {
        "language": "x",
        "language_code": "x",
        "null_score_diff_threshold": -3.5,
        "version_2_with_negative": True,
    }
    for name, value in [*wrong, ("kind", None), ("max_seq_length", 0), ("temperature", 0.0), ("other", 1)]:
        if allowed.get(name, ...) != value or type(allowed[name]) is not type(value):
            assert name in problem_of_file(tmp_path, json.dumps(good | {name: value}).encode()), value
    for name in ("kind", "version_2_with_negative"):
        rest = {key: value for key, value in good.items() if key != name}
        assert f"there is no {name}" in problem_of_file(tmp_path, json.dumps(rest).encode())
