"""The scripts on two ranks, as the launcher starts them: the answers, scores and losses of one rank, and files that are written once.

The same jobs run as one rank in this process, on the CPU, and as two ranks, in one launch for all jobs (see ranks_run.py):
without a flag on the CPU, over MPI on the simulated Gaudi. `--use_deepspeed` starts the same ranks (test_gaudi_spawn.py); its runs
are in test_deepspeed.py. Models have no dropout, since ranks draw other masks; the ranks' batches together are those of one rank.
"""

import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import oracle
import pytest
from helpers import ROOT, golds_of, history_of, load, skip_without, start_ranks, undescribed_files
from safetensors.torch import load_file
from test_hub import NAME, Hub

import run_qa
import run_seq2seq_qa
from qa.locks import LOCK_FILE


SCRIPTS = {"best": run_qa, "writes": run_seq2seq_qa}
BATCH = 8  # of all ranks together
SHARED_FLAGS = """--do_train --do_eval --do_predict --max_train_samples 64 --max_eval_samples 33 --max_predict_samples 31
    --doc_stride 32 --logging_steps 1 --report_to none --disable_tqdm True"""
READS_FLAGS = "--max_seq_length 192 --learning_rate 1.5e-3 --num_train_epochs 4 --save_strategy epoch"
STOPPED_FLAGS = """--max_seq_length 192 --learning_rate 1.5e-3 --num_train_epochs 2 --save_steps 12 --group_by_length
    --pad_to_max_length False"""
BEST_FLAGS = "--eval_strategy epoch --load_best_model_at_end --metric_for_best_model f1 --early_stopping_patience 1"
WRITES_FLAGS = """--version_2_with_negative --null_score_diff_threshold 3 --predict_with_generate --val_max_answer_length 8
    --max_seq_length 128 --learning_rate 3e-4 --max_steps 8 --save_strategy no --pad_to_max_length False
    --eval_strategy steps --eval_steps 8 --max_train_minutes 1000 --nan_patience 1"""
ANSWER_FILES = ("predictions", "nbest_predictions", "null_odds")
LOSS_TOLERANCE = 5e-4  # sums of floats in another order, and the log rounds to 1e-4
PROCESS_SECONDS = 600


def jobs_of(
    folder: Path, still_models: Path, tiny_model: Path, squad_files: Path, negatives: Path, ranks: int
) -> dict[str, list[str]]:
    """Return script and arguments by name. `best` stops early and returns to its best checkpoint; on ranks, workers load its data.

    `resumed` resumes from a checkpoint of `whole` within its second epoch, and `again` is the same command after its end.
    Their model has dropout.

    On two ranks `writes` is stopped four times before, each time because of rank 1 alone: by a signal in a step, by its
    clock, by a loss that is not finite, and by a signal in an evaluation.

    64 questions to train on, which the ranks divide, as one rank has no batch that repeats questions; 33 to score, which
    they do not.
    """
    shared = ["--train_file", squad_files / "train.json", "--test_file", squad_files / "dev.json"]
    shared += ["--per_device_train_batch_size", BATCH // ranks, *SHARED_FLAGS.split()]
    shared += ["--validation_file", squad_files / "dev.json"]
    best = ["--model_name_or_path", still_models / "bert", *shared, *READS_FLAGS.split(), *BEST_FLAGS.split()]
    best += ["--dataloader_num_workers", ranks - 1]
    stopped = ["--model_name_or_path", tiny_model, *shared, *STOPPED_FLAGS.split()]
    resumed = [
        *stopped,
        "--resume_from_checkpoint",
        folder / "whole" / "checkpoint-12",
        "--output_dir",
        folder / "resumed",
    ]
    writes = ["run_seq2seq_qa", "--model_name_or_path", still_models / "t5", *shared, "--validation_file", negatives]
    writes += [*WRITES_FLAGS.split(), "--output_dir", folder / "writes"]
    jobs = {
        "best": ["run_qa", *best, "--output_dir", folder / "best"],
        "checked": ["run_qa", *stopped, "--output_dir", folder / "checked", "--check", "--check_steps", "1"],
        "whole": ["run_qa", *stopped, "--output_dir", folder / "whole"],
        "resumed": ["run_qa", *resumed],
        "again": ["run_qa", *resumed],
        **{f"{what}_writes": writes for what in ("stopped", "timed", "lost", "evaluated")},
        "writes": writes,
    }
    return {name: list(map(str, words)) for name, words in jobs.items()}


@pytest.fixture(scope="module")
def one(still_models, tiny_model, squad_files, negatives, tmp_path_factory) -> Path:
    """Return the output folder of the jobs as one rank."""
    folder = tmp_path_factory.mktemp("one")
    jobs = jobs_of(folder, still_models, tiny_model, squad_files, negatives, ranks=1)
    for name, module in SCRIPTS.items():
        module.main(jobs[name][1:])
    return folder


@pytest.fixture(scope="module", params=["none", "mpi"])
def engine(request):
    skip_without(request.param)
    return request.param


@pytest.fixture(scope="module")
def place(engine, request) -> tuple[dict, list[str]]:
    """Return environment and flags of the device that an engine's jobs run on."""
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if engine == "none":
        return os.environ | quiet, []
    return request.getfixturevalue("simulated_gaudi").environment() | quiet, ["--use_habana", "--use_lazy_mode"]


@pytest.fixture(scope="module")
def two(engine, place, still_models, tiny_model, squad_files, negatives, tmp_path_factory) -> Path:
    """Return the output folder of the jobs as two ranks, with what they printed, `out` and `err`."""
    environment, flags = place
    folder = tmp_path_factory.mktemp(engine)
    jobs = jobs_of(folder, still_models, tiny_model, squad_files, negatives, ranks=2)
    (folder / "jobs.json").write_text(json.dumps({name: [*words, *flags] for name, words in jobs.items()}))
    process = start_ranks(folder, engine, environment, ROOT / "tests" / "runs" / "ranks_run.py", folder / "jobs.json")
    assert process.wait(PROCESS_SECONDS) == 0, (folder / "err").read_text()[-6000:]
    return folder


@pytest.mark.parametrize("job", SCRIPTS)
def test_answers_scores_and_losses_are_those_of_one_rank(one, two, job):
    """Defect 2: only rank 0 knew EM and F1, and the others could neither choose the best checkpoint nor predict."""
    for stage, prefix in (("eval", "eval"), ("predict", "test")):
        expected, found = (load(folder / job / f"{stage}_predictions.json") for folder in (one, two))
        assert found == expected and len(found) == (33 if stage == "eval" else 31)
        expected, found = (load(folder / job / f"{stage}_results.json") for folder in (one, two))
        scores = [name for name in expected if name.endswith(("exact", "exact_match", "f1"))]
        assert scores and {name: found[name] for name in scores} == {name: expected[name] for name in scores}
        assert found[f"{prefix}_loss"] == pytest.approx(expected[f"{prefix}_loss"], abs=LOSS_TOLERANCE)
    expected, found = (history_of(folder / job, "loss") for folder in (one, two))
    assert len(found) == len(expected) and found == pytest.approx(expected, abs=LOSS_TOLERANCE)
    assert history_of(two / job, "eval_f1") == history_of(one / job, "eval_f1")


def test_the_log_counts_the_tokens_of_all_ranks(one, two):
    """A step of both has the features of one of a single rank, padded to one length."""
    assert history_of(two / "best", "padding_share") == history_of(one / "best", "padding_share")
    for folder in (one, two):
        rates = zip(*(history_of(folder / "best", f"{name}_per_second") for name in ("tokens", "samples")))
        real = [1 - share for share in history_of(folder / "best", "padding_share")]
        assert [tokens / samples / 192 for tokens, samples in rates] == pytest.approx(real, abs=1e-3)


def test_one_rank_stops_all_of_them(two):
    """After the same step, with a checkpoint, or without one that has lost its weights; `writes` has gone on from each."""
    lines = re.findall(r"(?m)^(?:\[rank 1\] )?exit status (.*)", (two / "out").read_text())
    folder = two / "writes" / "checkpoint-"
    expected = [
        f"143: stopped by SIGTERM after step 3 of 8; {folder}3 is written",
        f"75: stopped by --max_train_minutes after step 5 of 8; {folder}5 is written",
        f"1: error: the loss of step 7 is nan at a learning rate of 7.5e-05; the training stops, {folder}5 is kept",
        f"1: error: the loss or the weights of a rank are not finite after step 7; the training stops, {folder}5 is kept",
        f"143: stopped by SIGTERM after step 8 of 8; {folder}8 is written",
    ]
    found = [sum(line.startswith(part) for line in lines) for part in expected]
    assert found == [2, 2, 1, 1, 2] and len(lines) == 8, lines
    assert sorted(path.name for path in (two / "writes").glob("checkpoint-*")) == [
        f"checkpoint-{step}" for step in (3, 5, 8)
    ]


def test_a_check_on_two_ranks_reports_the_run(two):
    """Once, with batches of both ranks; no rank writes a file, also not in the steps that it takes."""
    printed, state = (two / "out").read_text(), load(two / "whole" / "trainer_state.json")
    epoch = math.ceil(state["max_steps"] / state["num_train_epochs"])
    assert len(re.findall(rf"^training +{state['max_steps']} steps, {epoch} an epoch$", printed, re.MULTILINE)) == 1
    assert len(re.findall(r"^global batch +8 features \(2 ranks x 4\)$", printed, re.MULTILINE)) == 1
    assert len(re.findall(r"^time +about .*training", printed, re.MULTILINE)) == 1
    written = [load(two / f"written_by_{rank}.json")["checked"] for rank in (0, 1)]
    assert not (two / "checked").exists() and not [name for part in written for name in part if str(two) in name]


def test_the_scores_mean_something(one, squad_files):
    """And the best checkpoint is not the last one, where training stopped early."""
    golds = dict(list(golds_of(squad_files / "dev.json").items())[:33])
    scores = oracle.squad_v1(load(one / "best" / "eval_predictions.json"), golds)
    results, f1 = load(one / "best" / "eval_results.json"), history_of(one / "best", "eval_f1")
    assert results["eval_f1"] == pytest.approx(scores["f1"]) == pytest.approx(max(f1)) and max(f1) > 20
    assert len(f1) == 2 and f1[0] > f1[1]
    assert any(load(one / "writes" / "eval_predictions.json").values())


def test_ranks_resume_where_they_were(two):
    """Within an epoch whose batches are grouped by length, with their own random states."""
    expected, found = (load_file(two / name / "model.safetensors") for name in ("whole", "resumed"))
    assert all(expected[name].equal(found[name]) for name in expected)
    losses = [load(two / name / "train_results.json")["train_loss"] for name in ("whole", "resumed")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_files_are_written_once_by_rank_0(engine, two):
    """Those that Python opens; answers are computed where files are written, so the other ranks computed none.

    The report on a run with cards has the memory that they count.
    """
    first, other = (load(two / f"written_by_{rank}.json") for rank in (0, 1))
    assert {Path(file).name for file in first.pop("again")} <= {LOCK_FILE, Path(os.devnull).name}
    del first["checked"]
    for job in first:
        assert not [file for file in other[job] if file != os.devnull], job
        evaluations = 1 + len(history_of(two / job, "eval_loss"))
        often = {"all_results.json": 3, "README.md": 2, "eval_answers.csv": evaluations} | dict.fromkeys(
            (f"eval_{kind}.json" for kind in ANSWER_FILES), evaluations
        )
        counts = {
            Path(file).relative_to(two / job).as_posix(): count
            for file, count in first[job].items()
            if file != os.devnull and count  # 0 for those that others wrote and Python renamed
        }
        assert "predict_predictions.json" in counts and counts["eval_report.html"] == 1
        assert not undescribed_files(two / job), job
        memory = [part["measured"] for part in load(two / job / "eval_report.json")["speed"] if part["unit"] == "GB"]
        assert len(memory) == 1 + (engine == "mpi") and all(0 < used < 100 for used in memory), job
        states = [file for file in counts if Path(file).match(".unfinished/checkpoint-*/trainer_state.json")]
        often |= dict.fromkeys(states, 2)  # the second time with the final name of the best checkpoint
        assert counts == {file: often.get(file, 1) for file in counts}


def test_one_rank_of_a_node_reads_the_questions(two):
    assert load(two / "read_by_0.json").keys() >= {"train.json", "dev.json"} and not load(two / "read_by_1.json")


def test_no_other_machine_reaches_the_store_of_the_ranks(two):
    assert load(two / "listening.json") == ["0100007F"]  # 127.0.0.1


def test_a_process_with_a_card_is_not_forked(engine, two):
    """Its data loader workers, of which the job `best` has one, are children of a server; elsewhere they are forked."""
    assert load(two / "workers.json") == {"forked": engine == "none", "served": engine == "mpi"}


def test_rank_0_alone_prints(two):
    """Except for the simulated Gaudi's last line, which every process prints."""
    printed = (two / "out").read_text() + (two / "err").read_text()
    assert "Evaluation: " in printed
    assert not re.findall(r"\[rank 1\] (?!simulated Gaudi: ops|exit status).*", printed)


def test_a_mistake_is_printed_once(engine, tmp_path):
    """All ranks make it; the first one prints it, and neither the engine nor the launcher adds anything."""
    script = tmp_path / "script.py"
    script.write_text(f"import os, sys, time; sys.path.insert(0, {str(ROOT)!r})\n"
                      "from qa.errors import UserError, run_or_exit\n"
                      "def main(): raise UserError('--train_file x: there is no such file', '--max_seq_length is 0')\n"
                      "open(sys.argv[1] + os.environ['RANK'], 'w').close()\n"
                      "while not all(os.path.exists(sys.argv[1] + rank) for rank in '01'): time.sleep(0.01)\n"
                      "try: run_or_exit(main)\n"
                      "finally: time.sleep(1)  # or the other is ended before it can print\n")  # fmt: skip
    assert start_ranks(tmp_path, engine, os.environ, script, tmp_path / "rank").wait(60) == 2
    printed = (tmp_path / "err").read_text().replace("[rank 1] ", "").splitlines()
    assert sorted(printed) == ["error: --max_seq_length is 0", "error: --train_file x: there is no such file"]


def test_a_rank_that_is_done_ends_well(tmp_path):
    """Not with SIGABRT, although tensors of collectives are still in other threads, which wait for Python's lock."""
    script = tmp_path / "script.py"
    script.write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
                      "import torch, torch.distributed as dist\n"
                      "from qa.errors import run_or_exit\n"
                      "def main():\n"
                      "    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)\n"
                      "    for _ in range(50): dist.broadcast(torch.ones(1), 0, async_op=True)\n"
                      "sys.setswitchinterval(10)\n"
                      "run_or_exit(main)\n")  # fmt: skip
    done = subprocess.run([sys.executable, script], stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr


# A rank that is killed


@pytest.fixture
def hub(still_models):
    server = Hub(still_models / "bert", set())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_killed_rank_ends_a_training(still_models, hub, squad_files, tmp_path):
    """One that would never end; its model is from a hub, which is asked for each file once.

    Without a flag; test_gaudi_spawn.py kills ranks of a small script over each engine.
    """
    environment = os.environ | {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}"}
    environment |= {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
    words = ["--model_name_or_path", NAME, "--train_file", squad_files / "train.json", "--do_train", "--save_steps", 2]
    words += [
        "--max_steps",
        10**6,
        "--max_seq_length",
        128,
        "--doc_stride",
        32,
        "--save_total_limit",
        1,
        "--report_to",
        "none",
    ]
    words += ["--output_dir", tmp_path / "out_dir"]
    process = start_ranks(tmp_path, "none", environment, "run_qa.py", *words)
    started = []
    try:
        give_up = time.monotonic() + PROCESS_SECONDS
        while not list(tmp_path.glob("out_dir/checkpoint-*/trainer_state.json")):
            assert process.poll() is None and time.monotonic() < give_up, (tmp_path / "err").read_text()[-6000:]
            time.sleep(0.1)
        started = descendants(process.pid)
        os.kill(rank_among(started, 0), signal.SIGKILL)
        assert process.wait(60) == 137
        assert re.search(
            "error: rank 0 on .* ended with exit status 137 \\(SIGKILL\\)\n", (tmp_path / "err").read_text()
        )
        assert not list(filter(is_running, started))
    finally:
        for left in [process.pid] * (process.poll() is None) + list(filter(is_running, started)):
            os.kill(left, signal.SIGKILL)
    fetched = [
        file for method, _, file, status in hub.answered if (method, status) == ("GET", 200) and "/" not in file
    ]
    assert fetched[-1] == "model.safetensors" and sorted(fetched) == sorted(set(fetched))
    requests = [(method, file) for method, _, file, _ in hub.answered]
    _, other = (place for place, request in enumerate(requests) if request == ("HEAD", "config.json"))
    assert all(
        requests.index(("GET", file)) < other for file in fetched[:-1]
    )  # rank 0 has all before another one asks


def descendants(process: int) -> list[int]:
    """Return the processes that a process has started, and those that they have."""
    children = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            children.setdefault(int(status.read_text().rpartition(")")[2].split()[1]), []).append(
                int(status.parent.name)
            )
        except OSError:
            continue  # it has ended
    found = [process]
    for one in found:
        found += children.get(one, [])
    return found[1:]


def rank_among(processes: list[int], number: int) -> int:
    """Return the process of the script, not one above it."""
    for process in processes:
        words = (Path("/proc") / str(process) / "cmdline").read_bytes().split(b"\0")
        environment = (Path("/proc") / str(process) / "environ").read_bytes().split(b"\0")
        if b"run_qa.py" in words[:3] and f"RANK={number}".encode() in environment:
            return process
    raise AssertionError(f"no rank {number}")


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
