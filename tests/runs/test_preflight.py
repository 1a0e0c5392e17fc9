"""Messages of a Gaudi run before anything slow, and `--check`, on simulated nodes that lack one thing or another."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from helpers import ROOT

import qa.gaudi_variables
import qa.preflight


LAZY = "PT_HPU_LAZY_MODE"
NO_FOLDER = ["--recipe_cache", f"{ROOT}/README.md/recipes"]
# Nodes and command lines: options of its `environment`, further variables, flags, messages, exit status.
NODES = {
    "in order, lazy without the variable": (
        {},
        {},
        ["--use_lazy_mode", "--use_hpu_graphs_for_inference", "--bf16", "--check_steps", "1", *NO_FOLDER]
        + ["--length_buckets", "auto", "--per_device_eval_batch_size", "2"],
        [
            "eval batches  17, of 4 shapes: ",
            "checked, a run could start: 34 validation features",
            "MB of device memory in these steps",
            f"Compiled graphs are not kept for other runs: '{NO_FOLDER[1]}' cannot be written to (Not a directory)",
        ],
        0,
    ),
    "no card": (
        {"cards": 0},
        {},
        [],
        ["error: --use_habana: Habana's PyTorch plugin sees no card (`hl-smi`", "or omit --use_habana"],
        2,
    ),
    "everything at once": (
        {"cards": 1, "busy": 1},
        {LAZY: "0", "TRANSFORMERS": "9.9.9"},
        ["--use_lazy_mode"],
        [
            "error: PT_HPU_LAZY_MODE=0 contradicts --use_lazy_mode True: set it to 1, or unset it",
            "error: transformers 9.9.9 is installed, but optimum-habana 1.21.2 needs",
            "error: --use_habana: no card can be taken (RuntimeError: ",
        ],
        2,
    ),
    "other versions, no bf16, two cards": (
        {"plugin_version": "1.21.0", "driver_version": "1.19.2"},
        {"SIMULATED_GAUDI_BF16": "0", "HABANA_VISIBLE_MODULES": "0,1", "LOCAL_WORLD_SIZE": "4"},
        ["--bf16"],
        [
            "Habana's driver is 1.19.2, its PyTorch plugin 1.21.0: they should be of one release",
            "validated for SynapseAI v1.24.0 but habana-frameworks v1.21.0 was found",
            "error: --use_habana: 4 ranks on this node, but PyTorch sees 2 Gaudi cards; start at most 2",
            "error: --bf16: this card does not support it",
        ],
        2,
    ),
}


def check(env: dict, tiny_model, squad_files, folder, *flags: str) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        str(ROOT / "run_qa.py"),
        "--check",
        "--use_habana",
        "--model_name_or_path",
        str(tiny_model),
    ]
    command += ["--do_eval", "--validation_file", str(squad_files / "dev.json"), "--output_dir", str(folder / "out")]
    return subprocess.run([*command, *flags], env=env, cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("node", NODES)
def test_a_gaudi_run_is_checked_before_anything_slow(simulated_gaudi, tiny_model, squad_files, tmp_path, node):
    options, variables, flags, said, status = NODES[node]
    env = simulated_gaudi.environment(**options, counts_file=tmp_path / "counts") | variables
    if NO_FOLDER[0] in flags:
        del env["PT_HPU_RECIPE_CACHE_CONFIG"]
    if "TRANSFORMERS" in variables:  # installed elsewhere in another version, which comes first on the path
        info = tmp_path / "transformers-9.9.9.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 9.9.9\n")
        env["PYTHONPATH"] = f"{tmp_path}:{env['PYTHONPATH']}"
    done = check(env, tiny_model, squad_files, tmp_path, *flags)
    output = done.stdout + done.stderr
    assert done.returncode == status, output[-3000:]
    assert not [text for text in said if text not in output], output[-3000:]
    assert "Traceback" not in output and not (tmp_path / "out").exists()
    if status == 0:
        assert json.loads((tmp_path / "counts").read_text())["lazy"]
    else:
        assert len([line for line in output.splitlines() if line.startswith("error: ")]) == sum(
            "error: " in s for s in said
        )


def test_a_pytorch_that_pip_replaced(tiny_model, squad_files, tmp_path):
    """The plugin's library then misses symbols; `import torch` would end in a traceback while it loads the plugin."""
    package = tmp_path / "habana_frameworks"
    (package / "torch").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "torch" / "__init__.py").write_text("raise ImportError('libplugin.so: undefined symbol: _ZN5torch')")
    info = tmp_path / "habana_torch_plugin-1.24.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: habana-torch-plugin\nVersion: 1.24.0\n")
    (info / "entry_points.txt").write_text("[torch.backends]\nhabana_frameworks = habana_frameworks.torch:load\n")
    done = check(os.environ | {"PYTHONPATH": str(tmp_path)}, tiny_model, squad_files, tmp_path)
    (problem,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "cannot be loaded into PyTorch" in problem and "undefined symbol" in problem and "fresh image" in problem


@pytest.mark.parametrize(
    "flags, variable, settled, lazy",
    [
        (["--use_lazy_mode"], None, "1", None),
        (["--use_lazy_mode", "false"], None, "0", None),
        ([], None, "1", "True"),  # optimum-habana's default
        (["--torch_compile"], None, "0", "False"),
        (["--torch_compile_backend", "hpu_backend"], None, "0", "False"),
        ([], "0", "0", "False"),
        ([], "1", "1", "True"),
        (["--use_lazy_mode"], "0", "0", None),  # a contradiction, for `lazy_problems`
    ],
)
def test_the_variable_and_the_flag_of_lazy_mode(monkeypatch, flags, variable, settled, lazy):
    monkeypatch.delenv(LAZY, raising=False)
    if variable is not None:
        monkeypatch.setenv(LAZY, variable)
    argv = ["--use_habana", *flags]
    found, _ = qa.gaudi_variables.set_gaudi_variables(argv)
    assert found == argv + ([] if lazy is None else [f"--use_lazy_mode={lazy}"])
    assert os.environ[LAZY] == settled


def test_lazy_mode_without_a_gaudi_is_left_alone(monkeypatch):
    monkeypatch.delenv(LAZY, raising=False)
    for argv in (["--use_lazy_mode"], ["--use_habana", "False"], ["--use_habana", "perhaps"]):
        assert qa.gaudi_variables.set_gaudi_variables(argv) == (argv, None) and LAZY not in os.environ


@pytest.mark.parametrize(
    "variable, lazy, compiles, graphs, problem",
    [
        ("1", True, False, True, None),
        ("0", False, True, True, None),
        ("0", False, False, False, None),
        ("0", True, False, False, "contradicts --use_lazy_mode True: set it to 1"),
        ("1", False, False, False, "contradicts --use_lazy_mode False: set it to 0"),
        ("1", False, True, False, "--torch_compile does not go with lazy mode"),
        ("0", True, True, False, "--torch_compile does not go with lazy mode"),
        ("0", False, False, True, "HPU graphs need lazy mode"),
    ],
)
def test_contradictions_of_lazy_mode(monkeypatch, variable, lazy, compiles, graphs, problem):
    monkeypatch.setenv(LAZY, variable)
    args = SimpleNamespace(
        use_lazy_mode=lazy, torch_compile=compiles, torch_compile_backend=None, torch_compile_mode=None
    )
    args.use_hpu_graphs = args.use_hpu_graphs_for_training = False
    args.use_hpu_graphs_for_inference = graphs
    problems = qa.preflight.lazy_problems(args)
    assert problems == [] if problem is None else len(problems) == 1 and problem in problems[0]


def test_processes_that_hold_a_card(tmp_path):
    """By the devices that processes have open; here a file represents one."""
    card = tmp_path / "accel0"
    card.touch()
    code = f"import time; held = open({str(card)!r}); print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        found = qa.preflight.processes_at(str(tmp_path / "accel"))
        holder.kill()
    assert found == [f"process {holder.pid} ({sys.executable} -c)"]
    with card.open():
        assert qa.preflight.processes_at(str(tmp_path / "accel")) == []


def test_check_ends_with_status_2_for_data_too(tiny_model, tmp_path):
    """In process, without a Gaudi."""
    import run_qa
    from qa.errors import UserError

    (tmp_path / "dev.json").write_text(json.dumps([{"context": "a", "question": "", "answers": "a"}]))
    flags = [
        "--check",
        "--do_eval",
        "--validation_file",
        str(tmp_path / "dev.json"),
        "--output_dir",
        str(tmp_path / "x"),
    ]
    with pytest.raises(UserError, match="row 1, id '0': the question is empty"):
        run_qa.main(["--model_name_or_path", str(tiny_model), *flags])
