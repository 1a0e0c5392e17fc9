"""A run without enough memory ends in one line with exit status 1, and --auto_find_batch_size still finds a batch that fits."""

import os
import resource
import sys

import pytest
import torch
from accelerate.utils.memory import should_reduce_batch_size

import qa.out_of_memory
import run_qa
import run_seq2seq_qa
import trainer_qa  # noqa: F401  imported here, it takes no memory of the forks
import trainer_seq2seq_qa  # noqa: F401
from qa.errors import run_or_exit
from qa.out_of_memory import memory_problem, note_batch


GPU = torch.device("cuda")
CUDA = "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 31.74 GiB of which 8.12 MiB is free."
HABANA = "[Rank:0] FATAL ERROR :: MODULE:PT_DEVMEM Allocation failed for size::939524096 (896)MB"
CPU = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
BUS = (
    "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of shared "
    "memory. Please try to raise your shared memory limit."
)
KILLED = "DataLoader worker (pid 7) is killed by signal: Killed."
FULL = "unable to allocate shared memory(shm) for file </torch_7_1_0>: No space left on device (28)"
TRAINING = "lower --per_device_train_batch_size (and raise --gradient_accumulation_steps by as much)"
WORKERS = "or use --dataloader_num_workers 0"


class Arguments:
    device, gradient_checkpointing, auto_find_batch_size = GPU, False, False


@pytest.fixture(autouse=True)
def place():
    qa.out_of_memory.PLACE.__init__()
    yield
    qa.out_of_memory.PLACE.__init__()


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError(CUDA), RuntimeError(HABANA), RuntimeError("HIP error: out of memory")],
)
def test_the_batch_and_what_to_lower_are_named(error):
    note_batch("training", 3, (32, 384), Arguments)
    line = memory_problem(error)
    begin = f"out of memory on cuda in step 3 of the training, with a batch of 32 features of 384 tokens ({str(error)[:80]}"
    assert line.startswith(begin)
    assert line.endswith(f"); {TRAINING}, or add --gradient_checkpointing, or add --auto_find_batch_size")
    note_batch("evaluation", 2, (8, 128), Arguments, writes=True)
    assert memory_problem(error).endswith("); lower --per_device_eval_batch_size or --num_beams")


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError(CPU), OSError(12, "Cannot allocate memory")])
def test_the_memory_of_the_host_is_not_that_of_the_device(error):
    note_batch("training", 3, (32, 384), Arguments)
    assert memory_problem(error).startswith("out of memory on the host in step 3 of the training")


@pytest.mark.parametrize("text, advice", [(BUS, "/dev/shm"), (FULL, "/dev/shm"), (KILLED, "kills processes")])
def test_a_killed_worker_is_named(text, advice):
    line = memory_problem(RuntimeError(text))
    assert line.startswith("a worker of the data loader has ended") and advice in line and line.endswith(WORKERS)


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError(CUDA), OSError(28, "full")]
)
def test_other_errors_are_left_alone(error):
    assert memory_problem(error) is None


def test_accelerate_still_knows_these_errors():
    """--auto_find_batch_size relies on it."""
    assert all(map(should_reduce_batch_size, [torch.OutOfMemoryError(CUDA), RuntimeError(HABANA), RuntimeError(CPU)]))


def line_of(script, folder, *flags) -> tuple[int, list[str]]:
    """Run a script in a fork of this process that may take 128 MB more; return its exit status and its lines on stderr."""
    argv = ["--output_dir", folder / "out", "--max_seq_length", 384, "--doc_stride", 16, "--report_to", "none", *flags]
    argv += ["--attn_implementation", "eager"]
    pid = os.fork()
    if pid == 0:
        sys.stderr = open(folder / "err", "w", buffering=1)  # pytest has its own
        pages = int(open("/proc/self/statm").read().split()[0])
        most = pages * resource.getpagesize() + 128 * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        try:
            run_or_exit(lambda: script.main(list(map(str, argv))))
        except SystemExit as end:
            os._exit(end.code)
        finally:
            os._exit(99)
    _, status = os.waitpid(pid, 0)
    lines = (folder / "err").read_text().splitlines()
    return os.waitstatus_to_exitcode(status), [line for line in lines if line.startswith("error: ")]


def test_a_training_on_a_cpu_ends_in_a_line(tiny_model, squad_files, tmp_path):
    flags = ["--model_name_or_path", tiny_model, "--do_train", "--train_file", squad_files / "train.json"]
    status, (line,) = line_of(run_qa, tmp_path, *flags, "--per_device_train_batch_size", 64)
    assert status == 1
    assert line.startswith(
        "error: out of memory on cpu in step 1 of the training, with a batch of 64 features of 384 tokens ("
    )
    assert TRAINING in line


def test_an_evaluation_on_a_cpu_ends_in_a_line(tiny_writers, squad_files, tmp_path):
    flags = [
        "--model_name_or_path",
        tiny_writers["bart"],
        "--do_eval",
        "--validation_file",
        squad_files / "train.json",
    ]
    status, (line,) = line_of(
        run_seq2seq_qa, tmp_path, *flags, "--predict_with_generate", "--per_device_eval_batch_size", 64
    )
    assert status == 1 and "in step 1 of the evaluation, with a batch of 64 features of 384 tokens (" in line
    assert line.endswith("; lower --per_device_eval_batch_size or --num_beams")
