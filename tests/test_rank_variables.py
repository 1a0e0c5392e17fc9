"""Which rank a process is, by the variables of whatever started it: `qa.ranks`."""

import os

import pytest

from qa.errors import UserError
from qa.ranks import place_process, rank_variables


NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SLURM_JOB = {"SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "node[3-4]", "SLURM_NTASKS": "4", "SLURM_NNODES": "2"}


def variables(text: str) -> dict[str, str]:
    """Return the variables of a text such as `A=1 B=2`."""
    return dict(word.split("=") for word in text.split())


def ompi(rank: int, size: int, local_rank: int, local_size: int) -> str:
    values = {"RANK": rank, "SIZE": size, "LOCAL_RANK": local_rank, "LOCAL_SIZE": local_size}
    return " ".join(f"OMPI_COMM_WORLD_{name}={value}" for name, value in values.items())


def task(rank: int, local_rank: int, nodes: str = "2", tasks: str = "2(x2)") -> dict[str, str]:
    """Return the variables of a task of `srun -n 4` on two nodes."""
    node = rank // 2
    step = f"SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=4 SLURM_STEP_NUM_NODES={nodes} SLURM_STEP_TASKS_PER_NODE={tasks}"
    step += f" SLURM_STEP_NODELIST=node[3-4] SLURM_PROCID={rank} SLURM_LOCALID={local_rank} SLURM_NODEID={node}"
    return SLURM_JOB | variables(step)


MASTER = "MASTER_ADDR=node-1 MASTER_PORT=29511"
PLACED = {  # by what started the process: its variables, and the values of NAMES, of which - is not set
    "torchrun": (f"RANK=3 WORLD_SIZE=4 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2 {MASTER}", "3 4 1 2 node-1 29511"),
    "deepspeed": (f"RANK=1 WORLD_SIZE=2 LOCAL_RANK=1 LOCAL_SIZE=2 {MASTER}", "1 2 1 2 node-1 29511"),
    "by hand on one node": ("RANK=1 WORLD_SIZE=2 MASTER_ADDR=localhost", "1 2 1 - localhost 29500"),
    "PyTorchJob's master": ("RANK=0 WORLD_SIZE=2 MASTER_ADDR=localhost MASTER_PORT=23456", "0 2 0 - localhost 23456"),
    "PyTorchJob": (f"RANK=1 WORLD_SIZE=2 {MASTER}", "1 2 0 1 node-1 29511"),
    "mpirun on one node": (ompi(1, 2, 1, 2), "1 2 1 2 127.0.0.1 29500"),
    "mpirun on two nodes": (f"{ompi(3, 4, 1, 2)} {MASTER}", "3 4 1 2 node-1 29511"),
    "mpirun and an address": (f"{ompi(1, 2, 1, 2)} MASTER_ADDR=127.0.0.1 MASTER_PORT=5", "1 2 1 2 127.0.0.1 5"),
    "mpirun and a number of ranks": (f"WORLD_SIZE=2 {ompi(1, 2, 1, 2)}", "1 2 1 2 127.0.0.1 29500"),
    "torchrun below mpirun": (f"RANK=5 WORLD_SIZE=8 LOCAL_RANK=1 LOCAL_WORLD_SIZE=4 {ompi(1, 2, 0, 1)} {MASTER}", "5 8 1 4 node-1 29511"),
    "mpirun below srun": (f"SLURM_PROCID=0 SLURM_STEP_ID=1 SLURM_STEP_NUM_TASKS=3 {ompi(1, 2, 1, 2)}", "1 2 1 2 127.0.0.1 29500"),
    "MPICH": ("PMI_RANK=1 PMI_SIZE=2 MPI_LOCALRANKID=1 MPI_LOCALNRANKS=2", "1 2 1 2 127.0.0.1 29500"),
    "MPICH below srun": ("PMI_RANK=1 PMI_SIZE=2 MPI_LOCALRANKID=1 MPI_LOCALNRANKS=2 SLURM_PROCID=0 SLURM_STEP_ID=1 SLURM_STEP_NUM_TASKS=1", "1 2 1 2 127.0.0.1 29500"),
    "MVAPICH": ("MV2_COMM_WORLD_RANK=0 MV2_COMM_WORLD_SIZE=2 MV2_COMM_WORLD_LOCAL_RANK=0 MV2_COMM_WORLD_LOCAL_SIZE=2", "0 2 0 2 127.0.0.1 29500"),
    "PALS": (f"PMI_RANK=5 PMI_SIZE=8 PMI_LOCAL_RANK=1 PMI_LOCAL_SIZE=4 {MASTER}", "5 8 1 4 node-1 29511"),
    "srun on two nodes": (task(3, 1), "3 4 1 2 node3 11873"),
    "srun over PMI": (task(3, 1) | variables("PMI_RANK=3 PMI_SIZE=4 PMIX_RANK=3"), "3 4 1 2 node3 11873"),
    "srun on one node": (task(1, 1, nodes="1", tasks="4"), "1 4 1 4 127.0.0.1 11873"),
    "srun and a wrapper's own names": (task(3, 1) | variables(f"RANK=3 WORLD_SIZE=4 {MASTER}"), "3 4 1 2 node-1 29511"),
    "srun in a container": ("SLURM_PROCID=1 SLURM_NTASKS=2 SLURM_LOCALID=0 MASTER_ADDR=node-1", "1 2 0 - node-1 29500"),
    "srun's rank alone, on one node": ("SLURM_PROCID=1 SLURM_NTASKS=2 MASTER_ADDR=127.0.0.1", "1 2 1 2 127.0.0.1 29500"),
}  # fmt: skip
ALONE = {
    "a shell": "",
    "mpirun -n 1": ompi(0, 1, 0, 1),
    "srun -n 1": "SLURM_JOB_ID=7 SLURM_NTASKS=4 SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=1 SLURM_PROCID=0 SLURM_LOCALID=0",
    "a batch script": "SLURM_JOB_ID=7 SLURM_NTASKS=2 SLURM_NPROCS=2 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0",
    "a shell of salloc": "SLURM_JOB_ID=7 SLURM_NTASKS=2 SLURM_TASKS_PER_NODE=2",
    "an interactive step": "SLURM_JOB_ID=7 SLURM_NTASKS=2 SLURM_STEP_ID=4294967290 SLURM_STEP_NUM_TASKS=1 SLURM_PROCID=0",
    "its own run in each task": f"WORLD_SIZE=1 {ompi(1, 2, 1, 2)}",
    "no distribution, as PyTorch wrote it": "LOCAL_RANK=-1",
}
REFUSED = {
    "mpirun on two nodes": (ompi(3, 4, 1, 2), "MASTER_ADDR is not set"),
    "each node's own address": (f"{ompi(1, 2, 0, 1)} MASTER_ADDR=127.0.0.1", "MASTER_ADDR=127.0.0.1 is a different machine on each node"),
    "a task in a container": ("SLURM_PROCID=1 SLURM_NTASKS=2", "MASTER_ADDR is not set"),
    "a task without its place on the node": (f"SLURM_PROCID=1 SLURM_NTASKS=2 {MASTER}", "SLURM_PROCID=1, but SLURM_LOCALID is not set"),
    "no size": ("RANK=0", "RANK=0, but WORLD_SIZE is not set"),
    "no rank": ("WORLD_SIZE=2", "WORLD_SIZE=2, but RANK is not set"),
    "prterun": ("PMIX_RANK=0", "PMIX_RANK=0, but WORLD_SIZE is not set"),
    "the rank on the node alone": ("LOCAL_RANK=0", "LOCAL_RANK=0, but RANK is not set"),
    "a rank too many": (f"RANK=2 WORLD_SIZE=2 {MASTER}", "RANK=2, but WORLD_SIZE=2: ranks count from 0"),
    "no number": (f"RANK=one WORLD_SIZE=2 {MASTER}", "RANK='one' is not a whole number"),
    "no port": (ompi(0, 2, 0, 2) + " MASTER_PORT=x", "MASTER_PORT='x' is not a whole number"),
    "an earlier job's rank": (f"RANK=0 WORLD_SIZE=2 {ompi(1, 2, 1, 2)}", "RANK=0 contradicts OMPI_COMM_WORLD_RANK=1"),
}  # fmt: skip


@pytest.mark.parametrize("name", PLACED)
def test_the_place_of_a_rank(name):
    given, expected = PLACED[name]
    found = rank_variables(given if isinstance(given, dict) else variables(given))
    assert " ".join(found.get(each, "-") for each in NAMES) == expected


@pytest.mark.parametrize("name", ALONE)
def test_a_process_that_is_alone(name):
    assert rank_variables(variables(ALONE[name])) == {}


@pytest.mark.parametrize("name", REFUSED)
def test_a_variable_that_is_missing_or_wrong(name):
    given, beginning = REFUSED[name]
    with pytest.raises(UserError) as error:
        rank_variables(variables(given))
    assert str(error.value).startswith(beginning) and len(error.value.problems) == 1


def test_jobs_of_one_node_meet_at_different_ports():
    jobs = [f"{ompi(0, 2, 0, 2)} PMIX_NAMESPACE=prterun-node-{number}@1" for number in (1, 2)]
    first, second = (rank_variables(variables(job))["MASTER_PORT"] for job in jobs)
    assert first != second and all(10000 <= int(port) < 30000 for port in (first, second))


def test_a_run_of_its_own_is_alone_for_accelerate_too():
    os.environ.update(variables(f"WORLD_SIZE=1 {ompi(1, 2, 1, 2)} PMI_SIZE=2"))
    place_process()
    assert not {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "RANK"} & set(os.environ)
