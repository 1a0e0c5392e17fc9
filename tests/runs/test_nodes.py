"""Jobs of two nodes: what the launcher sends there, how they end, and that training returns what one node returns.

The nodes are this machine under two names, its address and node-2, reached by the ssh of remote_shell.py. The ranks meet
at the address.
"""

import json
import os
import re
import signal
from pathlib import Path

import pytest
from helpers import ENGINES, ROOT, free_port, load, own_address, skip_without
from test_gaudi_spawn import (
    ECHO,
    NASTY,
    end_what_was_started,  # noqa: F401
    processes_of,
    ranks_of,
    result_of,
    start,
    wait_until_gone,
)


SENT = {"PYTHONPATH": "/a b:/c;$HOME", "PT_HPU_LAZY_MODE": "1", "HABANA_LOGS": "/100%n", "HF_HOME": "/hub 'of' mine"}
SENT["PT_HPU_RECIPE_CACHE_CONFIG"] = "/recipes,false,9"
SECRET = "hf_thesecret"


@pytest.fixture
def over_nodes(request, remote_shells, tmp_path, monkeypatch):
    """Return the flags of a way to start ranks, mpi or the test's parameter, for a job of one rank on each node."""
    engine = getattr(request, "param", "mpi")
    monkeypatch.setenv("PATH", f"{remote_shells}:{os.environ['PATH']}")
    skip_without("mpi")
    skip_without(engine)
    (tmp_path / "hosts").write_text(f"{own_address()} slots=1\nnode-2 slots=1\n")
    return [*ENGINES[engine], "--hostfile", tmp_path / "hosts", "--master_port", free_port()]


def command_lines() -> bytes:
    """Return the command lines of all processes, which every user of the machine can read."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes())
        except OSError:  # it has ended
            pass
    return b"\n".join(lines)


@pytest.mark.parametrize("over_nodes", ["mpi", "deepspeed"], indirect=True)
def test_ranks_arguments_and_environment_on_two_nodes(over_nodes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    environment = SENT | {"HF_TOKEN": SECRET, "LANG": "C.UTF-8", "OMP_NUM_THREADS": "3"}
    process = start(tmp_path, *over_nodes, ECHO, tmp_path, "save", *NASTY, env=environment)
    ranks = ranks_of(tmp_path, 2)
    assert SECRET.encode() not in command_lines()
    for number, rank in enumerate(ranks):
        assert rank["arguments"] == NASTY and rank["folder"] == str(tmp_path)
        found = rank["environment"]
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "OMP_NUM_THREADS")
        assert [found[name] for name in names] == [str(number), "0", "2", own_address(), "3"]
        assert found["MASTER_PORT"] == str(over_nodes[-1])
        assert found["PATH"].endswith(os.environ["PATH"])  # OpenMPI 4 puts its own folder first
        assert {name: found[name] for name in SENT} == SENT
        here = number == 0  # mpirun starts the ranks of its own node without ssh
        assert found["NODE"] == (None if here else "node-2")
        assert found["HF_TOKEN"] == SECRET
        assert (found["HOME"] == "/nowhere", found["LANG"]) == (not here, "C.UTF-8" if here else None)
    process.send_signal(signal.SIGTERM)
    status, out, err = result_of(tmp_path, process)
    assert status == 128 + signal.SIGTERM and (tmp_path / "1.saved").read_text() == str(int(signal.SIGTERM))
    assert "rank 0 has saved\n" in out and "[rank 1] rank 1 has saved\n" in out
    wait_until_gone(*processes_of(ranks))


@pytest.mark.parametrize("deed", ["fail", "killed"])
def test_a_rank_that_dies_on_another_node_ends_the_job(over_nodes, deed, tmp_path):
    process = start(tmp_path, *over_nodes, ECHO, tmp_path, "fail" if deed == "fail" else "stubborn")
    ranks = ranks_of(tmp_path, 2)
    if deed == "killed":
        os.kill(ranks[1]["pid"], signal.SIGKILL)
    status, _, err = result_of(tmp_path, process)
    how = {"fail": "exit status 7", "killed": r"exit status 137 \(SIGKILL\)"}[deed]
    assert re.search(f"error: rank 1 on .* ended with {how}\n", err) and err.count("error: rank") == 1
    assert "detected that one or more processes" not in err  # mpirun says it in ten lines
    assert status == {"fail": 7, "killed": 137}[deed]
    wait_until_gone(*processes_of(ranks))


def test_a_node_that_is_not_reached_ends_the_job(over_nodes, tmp_path):
    (tmp_path / "hosts").write_text(f"{own_address()} slots=1\ndown-1 slots=1\n")
    status, _, err = result_of(tmp_path, start(tmp_path, *over_nodes, ECHO, tmp_path, "wait"))
    assert status > 0 and "ssh: connect to host down-1 port 22: No route to host" in err


def test_no_rank_outlives_its_connection(over_nodes, tmp_path):
    """As a killed launcher or a broken network leaves it."""
    process = start(tmp_path, *over_nodes, ECHO, tmp_path, "wait")
    ranks = ranks_of(tmp_path, 2)
    process.send_signal(signal.SIGKILL)
    wait_until_gone(*processes_of(ranks))


# Training


def train(tmp_path: Path, name: str, launch: list[list], script: list, **options) -> Path:
    """Start a training once, or once on every node; return its output folder."""
    output = tmp_path / name / "model"
    jobs = []
    for number, flags in enumerate(launch):
        folder = tmp_path / f"{name}{number}"
        jobs.append((folder, start(folder, *flags, *script, "--output_dir", output, **options)))
    for folder, job in jobs:
        status, out, err = result_of(folder, job, timeout=400)
        assert status == 0, out[-2000:] + err[-4000:]
    return output


def results_of(output: Path) -> tuple[list[float], dict, dict]:
    """Return losses by step, scores of the evaluation, and every answer with its candidates."""
    losses = [entry["loss"] for entry in load(output / "trainer_state.json")["log_history"] if "loss" in entry]
    scores = {name: load(output / "eval_results.json")[name] for name in ("eval_loss", "eval_exact_match", "eval_f1")}
    return losses, scores, load(output / "eval_nbest_predictions.json")


def test_two_nodes_train_as_one(tiny_model, squad_files, remote_shells, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{remote_shells}:{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # other numbers of threads add in another order
    config = load(tiny_model / "config.json")
    (tmp_path / "model").mkdir()
    for path in tiny_model.iterdir():
        (tmp_path / "model" / path.name).symlink_to(path)
    (tmp_path / "model" / "config.json").unlink()
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    (tmp_path / "hosts").write_text(f"{own_address()} slots=1\nnode-2 slots=1\n")
    script = [ROOT / "run_qa.py", "--model_name_or_path", tmp_path / "model", "--do_train", "--do_eval"]
    script += ["--train_file", squad_files / "train.json", "--validation_file", squad_files / "dev.json"]
    script += [
        "--max_steps",
        4,
        "--logging_steps",
        1,
        "--learning_rate",
        "1e-3",
        "--max_seq_length",
        128,
        "--doc_stride",
        32,
    ]
    script += ["--save_strategy", "no", "--report_to", "none", "--disable_tqdm", "True"]
    skip_without("mpi")
    ways = {"mpi": [["--use_mpi", "--hostfile", tmp_path / "hosts", "--master_port", free_port()]]}  # as for DeepSpeed
    meeting = ["--world_size", 2, "--nnodes", 2, "--master_addr", own_address(), "--master_port", free_port()]
    ways["launchers"] = [[*meeting, "--node_rank", number] for number in (0, 1)]
    expected = results_of(train(tmp_path, "alone", [["--world_size", 2]], script))
    assert len(expected[0]) == 4 and len(expected[2]) >= 32
    for way, launch in ways.items():
        assert results_of(train(tmp_path, way, launch, script)) == expected, way
