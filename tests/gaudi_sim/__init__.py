"""A Gaudi in host memory: `hpu` on the CPU, so that every recipe can be rehearsed where there is no card.

    python -m tests.gaudi_sim run_qa.py --use_habana ...           # from the project's root: runs a script on it
    tests.gaudi_sim.environment() -> dict                         # for a subprocess: runs `python run_qa.py` on it
    tests.gaudi_sim.activate()                                     # in this process, before `import torch` is used
    tests.gaudi_sim.counts() -> dict                               # what this process exercised on it

README.md describes the rest.
"""

import ctypes
import importlib
import importlib.util
import os
import sys
from pathlib import Path

from .building import CannotBuild, build_library, build_no_cuda, cache_folder  # noqa: F401


HERE = Path(__file__).resolve().parent
TOO_LATE = "simulated Gaudi: PyTorch already looked for an accelerator; call activate() earlier"
PLUGIN_VERSION = "1.24.0"  # optimum-habana 1.21 was validated with SynapseAI 1.24


def environment(
    cards: int | None = None,
    busy: int = 0,
    lazy: bool | None = None,
    plugin_version: str = PLUGIN_VERSION,
    driver_version: str = PLUGIN_VERSION,
    counts_file: str | os.PathLike | None = None,
) -> dict[str, str]:
    """Return a copy of this process's environment in which every Python finds the simulated Gaudi.

    Args:
        cards: how many are visible (8; or what SIMULATED_GAUDI_CARDS says); 0 is a node without a card.
        busy: how many of them others hold. When none is left for a rank, touching `hpu` raises.
        lazy: PT_HPU_LAZY_MODE; None leaves it as it is (eager, where nothing says otherwise).
        plugin_version: of habana-torch-plugin, as `pip list` shows it.
        driver_version: as `hl-smi` reports it.
        counts_file: where each process that used a card appends its counts, a JSON object in a line.
    """
    made = dict(os.environ)
    folders = [str(HERE / "stand_in"), str(plugin_folder(plugin_version))]
    if is_missing("torchvision"):
        folders.append(str(HERE / "torchvision_stub"))
    before = [folder for folder in made.get("PYTHONPATH", "").split(os.pathsep) if folder and not is_ours(folder)]
    made["PYTHONPATH"] = os.pathsep.join(folders + before)
    # optimum-habana asks `pip list` for the plugin's version, and bin/pip this Python's pip for everything else.
    made["PATH"] = os.pathsep.join([str(HERE / "bin"), os.path.dirname(sys.executable), made.get("PATH", os.defpath)])
    made["SIMULATED_GAUDI_LIBRARY"] = str(build_library())
    no_cuda = build_no_cuda()
    made["SIMULATED_GAUDI_NO_CUDA"] = str(no_cuda or "")
    if no_cuda is not None:
        made["CUDA_VISIBLE_DEVICES"] = ""  # PyTorch counts GPUs without its hooks
    if cards is not None:
        made["SIMULATED_GAUDI_CARDS"] = str(cards)
    made["SIMULATED_GAUDI_BUSY"] = str(busy)
    made["SIMULATED_GAUDI_DRIVER"] = driver_version
    if lazy is not None:
        made["PT_HPU_LAZY_MODE"] = str(int(lazy))
    if counts_file is not None:
        made["SIMULATED_GAUDI_COUNTS"] = str(counts_file)
    return made


def plugin_folder(version: str) -> Path:
    """Return a folder that holds the metadata of habana-torch-plugin in that version, made when it is first asked for."""
    folder = cache_folder() / "plugin" / version
    info = folder / f"habana_torch_plugin-{version}.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    texts = {
        "METADATA": f"Metadata-Version: 2.1\nName: habana-torch-plugin\nVersion: {version}\nSummary: simulated Gaudi\n",
        "RECORD": "",
        "INSTALLER": "tests.gaudi_sim\n",
        # PyTorch loads the plugin by the first, and finds the backend of torch.compile by the second.
        "entry_points.txt": "[torch.backends]\nhabana_frameworks = habana_frameworks:load_with_torch\n\n"
        "[torch_dynamo_backends]\n"
        "hpu_backend = habana_frameworks.torch.dynamo.compile_backend.backends:hpu_backend\n",
    }
    for name, text in texts.items():
        if not (info / name).exists() or (info / name).read_text() != text:
            new = info / f"{name}.{os.getpid()}"
            new.write_text(text)
            new.replace(info / name)
    return folder


def is_missing(package: str) -> bool:
    """Return whether a package is not installed; the stub of an earlier call does not count."""
    found = importlib.util.find_spec(package)
    return found is None or is_ours(found.origin or "")


def is_ours(path: str) -> bool:
    return Path(path).is_relative_to(HERE) or Path(path).is_relative_to(cache_folder())


def activate(**options) -> None:
    """Make this process one with a simulated Gaudi, and those it starts. Options as of `environment`.

    Raises:
        RuntimeError: PyTorch was asked for an accelerator before; it does not look a second time. One with CUDA looks
            during `import torch`.
    """
    made = environment(**options)
    os.environ.update(made)
    if made["SIMULATED_GAUDI_NO_CUDA"]:
        if "torch" in sys.modules:
            raise RuntimeError(TOO_LATE)
        ctypes.CDLL(made["SIMULATED_GAUDI_NO_CUDA"])
    for folder in reversed(made["PYTHONPATH"].split(os.pathsep)):
        if is_ours(folder) and folder not in sys.path:
            sys.path.insert(0, folder)
    importlib.invalidate_caches()
    import habana_frameworks.torch  # noqa: F401
    import torch

    if torch.hpu.is_available() != torch.accelerator.is_available():
        raise RuntimeError(TOO_LATE)


def counts() -> dict:
    """Return what this process exercised, see README.md."""
    from habana_frameworks.torch import counting

    return counting.counts()
