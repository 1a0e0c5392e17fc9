"""The simulated Gaudi, in few processes: on_card.py holds the tests of one process, ranks.py the script of two."""

import json
import os
import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest
from helpers import ROOT, free_port

from tests import gaudi_sim
from tests.gaudi_sim import building


ON_CARD = gaudi_sim.HERE / "on_card.py"
TOUCH = "import torch; torch.zeros(1, device='hpu')"
CUDA = """
#include <ATen/detail/CUDAHooksInterface.h>
namespace at {
struct CUDAHooks : CUDAHooksInterface {
  explicit CUDAHooks(CUDAHooksArgs) {}
  bool isBuilt() const override { return true; }
};
REGISTER_CUDA_HOOKS(CUDAHooks)
}  // namespace at
"""


@pytest.fixture(scope="module", autouse=True)
def library():
    try:
        return building.build_library()
    except building.CannotBuild as error:
        pytest.skip(str(error))


def run(command: list[str], **options) -> subprocess.CompletedProcess:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, **options)


def python(*arguments: str, **options) -> subprocess.CompletedProcess:
    """Run Python on a simulated Gaudi; options as of `environment`."""
    return run([sys.executable, *arguments], env=gaudi_sim.environment(**options))


@pytest.fixture(scope="module")
def on_card(library, tmp_path_factory) -> dict[str, list[str]]:
    """Run on_card.py; return for each of its tests what each of its cases ended with, an empty text if it passed."""
    report = tmp_path_factory.mktemp("on_card") / "report.xml"
    arguments = ["-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", str(ON_CARD)]
    done = run([sys.executable, "-m", "tests.gaudi_sim", *arguments], env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert report.exists(), done.stdout[-6000:] + done.stderr[-2000:]
    ended = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = case.attrib["name"].partition("[")[0]
        ended.setdefault(name, []).append("".join(part.text or part.tag for part in case if part.tag != "system-out"))
    return ended


@pytest.mark.parametrize("name", re.findall(r"^def (test_\w+)", ON_CARD.read_text(), re.MULTILINE))
def test_one_process(on_card, name):
    failures = on_card[name]
    assert not any(failures), "\n".join(failures)


def test_two_ranks_exchange_tensors_and_gradients_and_count(tmp_path):
    """With the ranks in mpirun's variables."""
    env = gaudi_sim.environment(counts_file=tmp_path / "counts.jsonl") | {"MASTER_PORT": str(free_port())}
    ranks = [
        {"OMPI_COMM_WORLD_RANK": rank, "OMPI_COMM_WORLD_LOCAL_RANK": rank, "OMPI_COMM_WORLD_SIZE": "2"}
        for rank in "01"
    ]
    command = [sys.executable, str(gaudi_sim.HERE / "ranks.py")]
    started = [subprocess.Popen(command, env=env | rank, stderr=subprocess.PIPE, text=True) for rank in ranks]
    errors = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(errors)
    counts = [json.loads(line) for line in (tmp_path / "counts.jsonl").read_text().splitlines()]
    assert sorted(count["rank"] for count in counts) == [0, 1]
    assert all(count["collectives"] >= 10 and count["device"] == "simulated Gaudi" for count in counts)


def test_the_command_runs_a_script_and_prints_what_it_exercised(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"import sys; {TOUCH}; print(sys.argv[1:], __name__)")
    done = run([sys.executable, "-m", "tests.gaudi_sim", str(script), "--flag", "a b"])
    assert done.stdout == "['--flag', 'a b'] __main__\n"
    line = done.stderr.splitlines()[-1]
    assert re.fullmatch(
        r"simulated Gaudi: ops [1-9]\d*, mark_steps 0, graph wraps 0, graph captures 0, graph replays 0, compiles 0, "
        r"collectives 0, input shapes 0 \(train 0, eval 0, generate 0\)",
        line,
    )
    assert run([sys.executable, "-m", "tests.gaudi_sim", "-c", "raise SystemExit(7)"]).returncode == 7


def test_a_process_can_take_the_simulated_gaudi_itself():
    script = (
        "import tests.gaudi_sim as sim; sim.activate(cards=2); import torch; torch.ones(2, device='hpu').sum();"
        "print(torch.hpu.device_count(), sim.counts()['ops'] > 0)"
    )
    assert run([sys.executable, "-c", script]).stdout == "2 True\n"
    late = "import torch; torch.accelerator.is_available(); import tests.gaudi_sim as sim; sim.activate()"
    assert "call activate() earlier" in run([sys.executable, "-c", late]).stderr


def test_a_node_without_cards():
    asked = "import torch; print(torch.hpu.is_available(), torch.hpu.device_count(), torch.accelerator.is_available())"
    assert python("-c", asked, cards=0).stdout == "False 0 False\n"
    done = python("-c", TOUCH, cards=0)
    assert done.returncode == 1 and "Device acquire failed" in done.stderr


def test_a_busy_card_cannot_be_taken():
    done = python("-c", f"import torch; print(torch.hpu.is_available()); {TOUCH}", cards=1, busy=1)
    assert done.stdout == "True\n"
    assert re.search(r"RuntimeError: synStatus=8 \[Device not found\] Device acquire failed\.", done.stderr)
    assert "simulated Gaudi" in done.stderr


def test_visible_modules_and_lazy_mode_are_habanas_variables():
    asked = "import sys, torch; loaded = hasattr(torch, 'hpu'); import habana_frameworks.torch as ht;"
    asked += "print(loaded, ht.utils.internal.is_lazy(), ht.hpu.device_count())"
    env = gaudi_sim.environment(lazy=True) | {"HABANA_VISIBLE_MODULES": "0,1,5"}
    assert run([sys.executable, "-c", asked], env=env).stdout == "False True 3\n"
    assert python("-c", asked, lazy=False).stdout == "True False 8\n"


def test_versions_are_those_that_a_test_asks_for():
    env = gaudi_sim.environment(plugin_version="1.21.0", driver_version="1.19.2", cards=2, busy=1)
    for pip in (["pip"], [sys.executable, "-m", "pip"]):  # the one that optimum-habana asks, and the real one
        listed = run([*pip, "list"], env=env).stdout
        assert re.search(r"^habana-torch-plugin +1\.21\.0$", listed, re.MULTILINE)
    printed = run(["hl-smi"], env=env).stdout
    assert printed.splitlines()[2].replace(" ", "") == "|DriverVersion:1.19.2-simulated|"
    assert re.search(r"\| +0 +N/A", printed) and re.search(r"\| +1 +999", printed)


def test_environments_do_not_pile_up(monkeypatch):
    for name, value in gaudi_sim.environment(plugin_version="1.0.0").items():
        monkeypatch.setenv(name, value)
    again = gaudi_sim.environment()["PYTHONPATH"].split(os.pathsep)
    assert len(again) == len(set(again)) and not any(folder.endswith("1.0.0") for folder in again)


def test_without_a_compiler_it_ends_with_one_line(tmp_path):
    env = os.environ | {"SIMULATED_GAUDI_CACHE": str(tmp_path), "CXX": "no-such-compiler"}
    done = run([sys.executable, "-m", "tests.gaudi_sim", "script.py"], env=env)
    assert done.returncode == 2
    assert re.fullmatch(r"simulated Gaudi: no C\+\+ compiler found; .*\n", done.stderr)


def test_a_pytorch_for_another_gpu_is_reported_in_one_line(tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").touch()
    (tmp_path / "torch" / "version.py").write_text("cuda = None\nhip = '7.0'\n")
    done = run([sys.executable, "-m", "tests.gaudi_sim", "script.py"], env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 2
    assert re.fullmatch(r"simulated Gaudi: this PyTorch is built for hip, .* `make setup` builds\n", done.stderr)


@pytest.fixture
def with_cuda(library, tmp_path, monkeypatch) -> dict[str, str]:
    """Return an environment whose PyTorch is built with CUDA.

    Where it is not, it gets a library that registers as PyTorch's CUDA does.
    """
    if building.gpu_of_torch() != "cuda":
        monkeypatch.setenv("SIMULATED_GAUDI_CACHE", str(tmp_path))
        torch = building.torch_folder()
        (tmp_path / "lib").mkdir()
        for path in (torch / "lib").iterdir():
            (tmp_path / "lib" / path.name).symlink_to(path)
        (tmp_path / "include").symlink_to(torch / "include")
        (tmp_path / "version.py").write_text("cuda = '13.0'\n")
        (tmp_path / "cuda.cpp").write_text(CUDA)
        cuda = building.build(tmp_path / "cuda.cpp", [f"-Wl,-rpath,{torch / 'lib'}", "-ltorch_cpu", "-lc10"])
        (tmp_path / "lib" / "libtorch_cuda.so").symlink_to(cuda)
        monkeypatch.setattr(building, "torch_folder", lambda: tmp_path)
        monkeypatch.setattr(gaudi_sim, "build_library", lambda: library)
    return gaudi_sim.environment()


def test_a_pytorch_with_cuda_takes_the_simulated_gaudi(with_cuda):
    cuda = building.torch_folder() / "lib" / "libtorch_cuda.so"
    script = f"import ctypes; ctypes.CDLL({str(cuda)!r}); import torch;"  # which loads it, where it is PyTorch's own
    script += f"print(torch._C._accelerator_getAccelerator(), torch.cuda.is_available()); {TOUCH}"
    done = run([sys.executable, "-c", script], env=with_cuda)
    assert (done.returncode, done.stdout) == (0, "hpu False\n"), done.stderr
    assert re.fullmatch(r"simulated Gaudi: ops .*\n", done.stderr)
    assert with_cuda["CUDA_VISIBLE_DEVICES"] == ""
    done = run([sys.executable, "-c", script], env=with_cuda | {"SIMULATED_GAUDI_NO_CUDA": ""})
    assert done.returncode == 1 and "Cannot have both HPU and" in done.stderr


def test_a_sitecustomize_of_the_user_runs_too(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("print('mine')")
    env = gaudi_sim.environment()
    env["PYTHONPATH"] += f"{os.pathsep}{tmp_path}"
    assert run([sys.executable, "-c", "import sitecustomize as s; print(s.__file__)"], env=env).stdout == (
        f"mine\n{tmp_path}/sitecustomize.py\n"
    )


def test_a_compiler_that_fails_is_named_with_its_error(tmp_path):
    compiler = fake_compiler(tmp_path, "echo 'device.cpp:1: error: no such header' >&2; exit 1")
    env = os.environ | {"SIMULATED_GAUDI_CACHE": str(tmp_path), "CXX": str(compiler)}
    done = run([sys.executable, "-m", "tests.gaudi_sim", "script.py"], env=env)
    assert done.returncode == 2
    assert f"{compiler} fails" in done.stderr and "no such header" in done.stderr


def test_processes_that_start_together_build_once(tmp_path):
    compiler = fake_compiler(tmp_path, f"echo run >> {tmp_path}/runs; sleep 1; shift $(($# - 3)); echo made > $1")
    env = os.environ | {"SIMULATED_GAUDI_CACHE": str(tmp_path), "CXX": str(compiler)}
    command = [sys.executable, "-c", "from tests.gaudi_sim import building; print(building.build_library())"]
    started = [subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    built = {process.communicate(timeout=60)[0] for process in started}
    assert len(built) == 1 and (tmp_path / "runs").read_text() == "run\n"


def fake_compiler(folder, script: str):
    """Return an executable that runs a line of shell with a compiler's arguments; the third from the end is the library."""
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_the_stand_in_alone_says_how_to_use_it():
    env = {**os.environ, "PYTHONPATH": str(gaudi_sim.HERE / "stand_in")}
    done = run([sys.executable, "-c", "import habana_frameworks.torch"], env=env)
    assert "run through `python -m tests.gaudi_sim`" in done.stderr.splitlines()[-1]
