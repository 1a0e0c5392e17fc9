"""`make setup` with an interpreter that only notes what pip is asked for."""

import os
import re
import shutil
import subprocess

import pytest
from helpers import ROOT


# As `python3 -m venv .venv` it leaves itself there; as .venv/bin/python it notes its arguments.
PYTHON = """#!/bin/sh
case "$*" in
  "-m venv .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
  *) echo "$*" >> calls; case "$*" in "-m uv "*) exit $UV_STATUS ;; esac ;;
esac
"""
ALL = "-r requirements.txt -r requirements-torch.txt"


@pytest.mark.parametrize(
    "options, uv_status, backend",
    [
        ([], 0, "auto"),
        ([], 2, "auto"),
        (["TORCH_BACKEND=cpu"], 0, "cpu"),
        (["TORCH_BACKEND=cpu"], 2, "cpu"),
        (["TORCH_BACKEND="], 0, None),
    ],
    ids=["this machine's", "not found by uv", "for CPUs", "for CPUs, not found", "pip's own choice"],
)
def test_which_pytorch_is_installed(tmp_path, options, uv_status, backend):
    for name in ("Makefile", "requirements.txt", "requirements-torch.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "python3").write_text(PYTHON)
    (tmp_path / "python3").chmod(0o755)
    env = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "TORCH_BACKEND")}
    env |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "UV_STATUS": str(uv_status)}
    command = ["make", "setup", "PYTHON=python3", *options]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    calls = (tmp_path / "calls").read_text().splitlines()
    if uv_status and backend != "auto":
        assert done.returncode != 0 and len(calls) == 2 and not (tmp_path / ".venv/installed").exists()
        return
    assert done.returncode == 0, done.stderr
    *first, last = calls
    assert last.startswith("-m pip install ") and last.endswith(ALL)
    if backend is None:
        assert first == []
    else:
        of_uv, torch = first
        assert re.fullmatch(r"-m pip install .* uv==[\d.]+", of_uv)
        assert re.fullmatch(rf"-m uv pip install .* --no-deps --torch-backend {backend} torch==[\d.]+", torch)
    assert ("pip installs one" in done.stderr) == bool(uv_status)
