"""Script of test_gaudi_sim.py for two ranks on the simulated Gaudi: each collective, and gradients through DDP."""

import sys
from pathlib import Path

import habana_frameworks.torch.distributed.hccl as hccl
import torch
import torch.distributed as dist


sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from qa.errors import run_or_exit  # noqa: E402


def ones(*shape) -> torch.Tensor:
    return torch.ones(shape, device="hpu")


def check_collectives(rank: int) -> None:
    summed = (rank + 1) * ones(3)
    dist.all_reduce(summed)
    assert summed.tolist() == [3.0] * 3
    parts = [0 * ones(2), 0 * ones(2)]
    dist.all_gather(parts, (rank + 1) * ones(2))
    assert [part.tolist() for part in parts] == [[1.0, 1.0], [2.0, 2.0]]
    whole = 0 * ones(2, 3)
    dist.all_gather_into_tensor(whole, (rank + 1) * ones(3))
    assert whole.tolist() == [[1.0] * 3, [2.0] * 3]
    part = 0 * ones(1, 3)
    dist.reduce_scatter_tensor(part, whole)
    assert part.tolist() == [[2.0 * (rank + 1)] * 3]
    if rank == 0:
        dist.send(7 * ones(2), 1)
    else:
        received = 0 * ones(2)
        dist.recv(received, 0)
        assert received.tolist() == [7.0, 7.0]
    said = [None, None]
    dist.all_gather_object(said, f"rank {rank}")
    assert said == ["rank 0", "rank 1"]
    dist.barrier()


def check_work(rank: int) -> None:
    """The future of a collective holds the device's tensor: DDP reads its gradients there."""
    tensor = rank * ones(2)
    work = dist.broadcast(tensor, 1, async_op=True)
    work.wait()
    future = work.get_future()
    future.wait()
    assert future.value()[0].device.type == "hpu" and tensor.tolist() == [1.0, 1.0]


def check_gradients(rank: int) -> None:
    """The mean over the ranks."""
    for as_view in (True, False):
        layer = torch.nn.Linear(3, 1).to("hpu")
        model = torch.nn.parallel.DistributedDataParallel(layer, gradient_as_bucket_view=as_view)
        model((rank + 1) * ones(2, 3)).sum().backward()
        assert layer.weight.grad.device.type == "hpu" and layer.weight.grad.tolist() == [[3.0] * 3]


def main() -> None:
    size, rank, _ = hccl.initialize_distributed_hpu()
    dist.init_process_group("hccl")
    assert size == dist.get_world_size() == 2 and rank == dist.get_rank()
    check_collectives(rank)
    check_work(rank)
    check_gradients(rank)


if __name__ == "__main__":
    run_or_exit(main)
