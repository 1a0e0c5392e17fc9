"""`hccl`: collectives between cards, by gloo, and the ranks that mpirun assigns."""

import os

import torch.distributed as dist


NAMES = {
    "RANK": "OMPI_COMM_WORLD_RANK",
    "WORLD_SIZE": "OMPI_COMM_WORLD_SIZE",
    "LOCAL_RANK": "OMPI_COMM_WORLD_LOCAL_RANK",
}


def make_group(store, rank, size, timeout):
    return dist.ProcessGroupGloo(store, rank, size, timeout=timeout)


def take_ranks_of_mpi() -> None:
    """Copy mpirun's variables to those that PyTorch reads, unless torchrun set them."""
    for name, of_mpi in NAMES.items():
        if of_mpi in os.environ:
            os.environ.setdefault(name, os.environ[of_mpi])
    if "RANK" in os.environ:
        os.environ.setdefault("MASTER_ADDR", "localhost")
        os.environ.setdefault("MASTER_PORT", "12345")


def initialize_distributed_hpu(world_size=None, rank=None, local_rank=None) -> tuple[int, int, int]:
    """World size, rank and local rank; -1 for the ranks of a single process."""
    size = int(os.environ.get("WORLD_SIZE", 1))
    return size, int(os.environ.get("RANK", -1)), int(os.environ.get("LOCAL_RANK", -1))


take_ranks_of_mpi()
if "hccl" not in dist.Backend.backend_list:
    dist.Backend.register_backend("hccl", make_group, devices=["cpu", "hpu"])
