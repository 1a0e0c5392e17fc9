"""The worked examples in docstrings, of every module that has some."""

import doctest
import importlib
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted([*ROOT.glob("*.py"), *ROOT.glob("qa/**/*.py")])
    if ">>>" in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("module", MODULES)
def test_worked_examples(module):
    result = doctest.testmod(importlib.import_module(module))
    assert result.failed == 0 < result.attempted
