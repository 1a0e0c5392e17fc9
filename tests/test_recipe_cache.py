"""Where a Gaudi keeps compiled graphs: the variable of Habana's plugin, by the flag, the user's cache or the user's own value."""

import logging
import os
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

import qa.recipe_cache
from qa.gaudi_variables import set_gaudi_variables
from qa.recipe_cache import VARIABLE, set_recipe_cache


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """Put the user's cache and the temporary folder into `tmp_path`."""
    tmp_path = Path(os.path.realpath(tmp_path))
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_the_default_is_a_private_folder_in_the_users_cache(places):
    kept = places / "cache" / "gaudi-question-answering" / "recipes"
    level, line = set_recipe_cache()
    assert os.environ[VARIABLE] == f"{kept},false,4096" and str(kept) in line and level == logging.INFO
    assert kept.stat().st_mode & 0o777 == 0o700
    (kept / "recipe").touch()
    del os.environ[VARIABLE]
    assert set_recipe_cache() == (level, line) and (kept / "recipe").exists()  # the next run reads what is there


def test_a_flag_names_another_folder_or_none(places):
    (places / "real").mkdir()
    (places / "link").symlink_to(places / "real")  # Habana's plugin ends a run with a link
    set_recipe_cache(str(places / "link"))
    assert os.environ.pop(VARIABLE) == f"{places}/real,false,4096"
    _, line = set_recipe_cache("none")
    assert VARIABLE not in os.environ and "are not kept" in line and not (places / "cache").exists()


@pytest.mark.parametrize("value", ["/mine,true,99", ""])
@pytest.mark.parametrize("named", [None, "none", "/other"])
def test_the_users_own_variable_stays_and_is_reported(monkeypatch, value, named):
    monkeypatch.setenv(VARIABLE, value)
    _, line = set_recipe_cache(named)
    assert os.environ[VARIABLE] == value and f"{VARIABLE}={value}" in line
    assert (named is not None) == (f"--recipe_cache {named} is ignored" in line)


@pytest.mark.parametrize(
    "name, problem",
    [
        ("file", "cannot be written to (File exists)"),
        ("file/below", "cannot be written to (Not a directory)"),
        ("read-only", "cannot be written to"),
        ("my graphs", "has a character that Habana's plugin refuses"),
        ("a,b", "has a character that Habana's plugin refuses"),
        ("net", "is on a network (nfs4)"),
        ("full", "has less than"),
    ],
)
def test_a_folder_that_cannot_be_used_is_one_line(places, monkeypatch, name, problem):
    (places / "file").touch()
    (places / "read-only").mkdir(mode=0o555)
    (places / "mounts").write_text(f"/dev/a / ext4 rw 0 0\nserver:/home {places}/net nfs4 rw 0 0\n")
    monkeypatch.setattr(qa.recipe_cache, "MOUNTS", places / "mounts")
    if name == "full":
        monkeypatch.setattr(qa.recipe_cache, "MEGABYTES", 2**40)
    level, line = set_recipe_cache(str(places / name))
    assert VARIABLE not in os.environ and level == logging.WARNING
    assert problem in line and repr(f"{places}/{name}") in line and "\n" not in line


def test_an_empty_name_is_not_the_working_folder(places, monkeypatch):
    monkeypatch.chdir(places)
    level, line = set_recipe_cache("")
    assert VARIABLE not in os.environ and level == logging.WARNING and "'' is empty" in line


def test_what_a_full_cache_holds_counts_as_room(places, monkeypatch):
    """A later run needs no more than the first one."""
    (places / "kept" / "part").mkdir(parents=True)
    (places / "kept" / "part" / "recipe").write_bytes(b"x" * (2 << 20))
    monkeypatch.setattr(qa.recipe_cache.shutil, "disk_usage", lambda path: SimpleNamespace(free=(4096 << 20) - 100))
    assert "has less than 4,096 MB" in set_recipe_cache(str(places / "other"))[1] and VARIABLE not in os.environ
    set_recipe_cache(str(places / "kept"))
    assert os.environ[VARIABLE] == f"{places}/kept,false,4096"


def test_recipes_that_another_run_deletes_meanwhile_are_no_problem(places):
    """The plugin of each run deletes the oldest ones."""
    kept, done = places / "kept", threading.Event()

    def write_and_delete():
        while not done.is_set():
            for number in range(50):
                (kept / str(number)).touch()
            for number in range(50):
                (kept / str(number)).unlink()

    kept.mkdir()
    other = threading.Thread(target=write_and_delete)
    other.start()
    try:
        assert {qa.recipe_cache.why_unusable(str(kept), of_this_user=True) for _ in range(200)} == {None}
    finally:
        done.set()
        other.join()


def test_a_second_run_of_a_process_keeps_to_the_folder_of_the_first(places):
    """The plugin is loaded once. The user has set no variable."""
    set_recipe_cache(str(places / "first"))
    line = set_recipe_cache(str(places / "second"))[1]
    assert line.startswith("An earlier run of this process decides") and line.endswith("second is ignored")
    os.environ[VARIABLE] = "elsewhere,true,9"
    assert set_recipe_cache()[1].startswith("The environment decides")


def test_a_home_on_a_network_leaves_a_private_temporary_folder(places, monkeypatch):
    (places / "mounts").write_text(f"/dev/a / ext4 rw 0 0\nserver:/home {places}/cache nfs4 rw 0 0\n")
    monkeypatch.setattr(qa.recipe_cache, "MOUNTS", places / "mounts")
    set_recipe_cache()
    kept = places / f"gaudi-recipes-{os.geteuid()}"
    assert os.environ.pop(VARIABLE) == f"{kept},false,4096" and not (places / "cache").exists()
    monkeypatch.setattr(os, "geteuid", lambda: 4321)  # of the next user, whose folder somebody else has made
    (places / "gaudi-recipes-4321").mkdir()
    assert "belongs to another user" in set_recipe_cache()[1] and VARIABLE not in os.environ


def test_without_a_gaudi_nothing_is_set(places):
    for argv in ([], ["--recipe_cache", "graphs"], ["--use_habana", "--recipe_cache", "graphs"]):  # no plugin here
        assert set_gaudi_variables(argv)[1] is None
    assert VARIABLE not in os.environ and os.listdir(places) == []
