"""`make setup` with an interpreter that only notes what pip is asked for."""

import os
import shutil
import subprocess

import pytest
from helpers import ROOT


# As `python3 -m venv .venv` it leaves itself there; as .venv/bin/python it notes its arguments.
PYTHON = """#!/bin/sh
case "$*" in
  "-m venv .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
  *) echo "$*" >> calls; case "$*" in *--index-url*) exit $INDEX_STATUS ;; esac ;;
esac
"""
ALL = "-r requirements.txt -r requirements-torch.txt"


@pytest.mark.parametrize(
    "options, gpus, index_status, from_index",
    [
        ([], "", 0, True),
        ([], "", 1, True),
        ([], "GPU 0: NVIDIA H100 (UUID: GPU-1)", 0, False),
        (["TORCH_INDEX="], "", 0, False),
    ],
    ids=["without a GPU", "the index is out of reach", "with a GPU", "pip's own choice"],
)
def test_where_pytorch_comes_from(tmp_path, options, gpus, index_status, from_index):
    for name in ("Makefile", "requirements.txt", "requirements-torch.txt"):
        shutil.copy(ROOT / name, tmp_path)
    programs = {"python3": PYTHON, "nvidia-smi": f"#!/bin/sh\necho '{gpus}'\n"}
    for name, text in programs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    env = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "TORCH_INDEX")}
    env |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "INDEX_STATUS": str(index_status)}
    options = (
        ["PYTHON=python3", *options] if gpus else ["PYTHON=python3", "GPU=", *options]
    )  # this machine may have one
    done = subprocess.run(["make", "setup", *options], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[-1].endswith(ALL) and "--index-url" not in calls[-1]
    assert [call.split()[-1].startswith("torch==") for call in calls[:-1]] == [True] * from_index
    assert all("--no-deps --index-url https://download.pytorch.org/whl/cpu" in call for call in calls[:-1])
    assert ("cannot be reached" in done.stderr) == bool(index_status)
