"""Run by each Python at its start on the simulated Gaudi: hides the CUDA that PyTorch is built with.

This module hides another `sitecustomize` on the path, and so runs it.
"""

import ctypes
import os
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec


LIBRARY = os.environ.get("SIMULATED_GAUDI_NO_CUDA")  # no_cuda.cpp; empty for a PyTorch without CUDA


class CudaHiding:
    """Load the library just before `torch`, in processes that look for it; the other finders find `torch`."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == "torch":
            sys.meta_path.remove(cls)
            ctypes.CDLL(LIBRARY)


def run_hidden_module() -> None:
    folder = os.path.dirname(__file__)
    spec = PathFinder.find_spec(__name__, [other for other in sys.path if other != folder])
    if spec is not None:
        sys.modules[__name__] = module = module_from_spec(spec)
        spec.loader.exec_module(module)


if LIBRARY:
    sys.meta_path.insert(0, CudaHiding)
run_hidden_module()
