"""Build device.cpp and no_cuda.cpp, once for each PyTorch, into a cache that processes share."""

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path


HERE = Path(__file__).resolve().parent


class CannotBuild(Exception):
    """The device cannot be built here; the message says why and what to do."""


def cache_folder() -> Path:
    """Where what is built is kept: SIMULATED_GAUDI_CACHE, or a folder in the user's cache."""
    user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("SIMULATED_GAUDI_CACHE") or Path(user) / "simulated_gaudi").absolute()


def build_library() -> Path:
    """Return the device's shared library; compiles it (20 to 60 s) where the cache has none for this source and PyTorch.

    It needs neither Python's headers nor ninja, since PyTorch loads it as a library of operations.

    Raises:
        CannotBuild: there is no C++ compiler, or it fails; or PyTorch is built for AMD's or Intel's GPUs.
    """
    if gpu_of_torch() in ("hip", "xpu"):
        raise CannotBuild(
            f"simulated Gaudi: this PyTorch is built for {gpu_of_torch()}, which refuses a second device; use the environment "
            "that `make setup` builds"
        )
    return build(HERE / "device.cpp", ["-ltorch_cpu", "-lc10"])


def build_no_cuda() -> Path | None:
    """Return the library that hides PyTorch's CUDA, compiled in a few seconds; None if PyTorch is built without CUDA.

    Raises:
        CannotBuild: as `build_library`.
    """
    if gpu_of_torch() != "cuda":
        return None
    libraries = ["-Wl,--no-as-needed", f"-Wl,-rpath,{torch_folder() / 'lib'}", "-ltorch_cuda", "-ltorch_cpu", "-lc10"]
    return build(HERE / "no_cuda.cpp", libraries)


def build(source: Path, libraries: list[str]) -> Path:
    """Return the shared library of a source, from the cache if it was compiled before."""
    key = hashlib.sha256(source.read_bytes() + " ".join(compile_command("c++", source, libraries, Path())).encode())
    version = importlib.metadata.version("torch")
    library = cache_folder() / f"{source.stem}-torch{version}-{key.hexdigest()[:16]}.so"
    if library.exists():
        return library
    library.parent.mkdir(parents=True, exist_ok=True)
    with open(library.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be building it: wait, and take what it made
        if not library.exists():
            compile_library(source, libraries, library)
    return library


def find_compiler() -> str | None:
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    return next(filter(None, map(shutil.which, names)), None)


def compile_library(source: Path, libraries: list[str], library: Path) -> None:
    compiler = find_compiler()
    if compiler is None:
        raise CannotBuild(
            "simulated Gaudi: no C++ compiler found; install one (on Debian: apt-get install g++) or name it by CXX"
        )
    print(f"simulated Gaudi: compiling {source.name}, once (up to a minute) ...", file=sys.stderr)
    unfinished = library.with_suffix(f".{os.getpid()}")
    done = subprocess.run(compile_command(compiler, source, libraries, unfinished), capture_output=True, text=True)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()[-1:]
        raise CannotBuild(f"simulated Gaudi: {compiler} fails on {source}: {lines[0] if lines else 'no message'}")
    unfinished.replace(library)


def gpu_of_torch() -> str | None:
    version = runpy.run_path(str(torch_folder() / "version.py"))
    return next((name for name in ("cuda", "hip", "xpu") if version.get(name)), None)


def torch_folder() -> Path:
    return Path(importlib.util.find_spec("torch").origin).parent  # not imported: that takes seconds


def compile_command(compiler: str, source: Path, libraries: list[str], library: Path) -> list[str]:
    torch = torch_folder()
    folders = [f"-I{torch / 'include'}", f"-I{torch / 'include/torch/csrc/api/include'}", f"-L{torch / 'lib'}"]
    options = ["-std=c++20", "-O1", "-fPIC", "-shared", "-w"]
    return [compiler, *options, *folders, str(source), "-o", str(library), *libraries]
