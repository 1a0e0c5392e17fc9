"""A light script for the launcher's tests, which does what its second argument says.

python echo_rank.py FOLDER DEED [anything]: writes FOLDER/RANK.json (process, arguments, environment, cores), then

- `echo` ends, `lines` prints (on two ranks), `wait` waits, `stubborn` waits and ignores signals;
- `meet` prints what ranks send each other through the port of rank 0, `meet_in_torch` through torch.distributed;
- `fail` ends rank 1 with status 7 while the others wait;
- `save` waits, and after SIGTERM or SIGINT takes 1 s, and rank 1 another 1.5 s, to write FOLDER/RANK.saved.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path


NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
NAMES += (
    "CROSS_RANK",
    "CROSS_SIZE",
    "HLS_MODULE_ID",
    "PMIX_RANK",
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
)
NAMES += ("NODE", "HOME", "PATH", "PYTHONPATH", "PT_HPU_LAZY_MODE", "HABANA_LOGS", "HF_HOME", "HF_TOKEN", "LANG")
NAMES += ("PT_HPU_RECIPE_CACHE_CONFIG",)


def main() -> None:
    folder, deed = Path(sys.argv[1]), sys.argv[2]
    rank = os.environ["RANK"]
    if deed == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if deed == "save":
        signal.signal(signal.SIGTERM, save)
        signal.signal(signal.SIGINT, save)
    waits = deed in ("fail", "wait", "stubborn", "save")
    child = subprocess.Popen(["sleep", "300"]) if waits else None  # as a data loader's worker would be
    said = {
        "pid": os.getpid(),
        "parent": os.getppid(),
        "engine": parent_of(os.getppid()),
        "child": child.pid if child else None,
        "arguments": sys.argv[3:],
        "folder": os.getcwd(),
        "environment": {name: os.environ.get(name) for name in NAMES},
        "cores": sorted(os.sched_getaffinity(0)),
    }
    (folder / f"{rank}.part").write_text(json.dumps(said))
    (folder / f"{rank}.part").rename(folder / f"{rank}.json")
    if deed == "lines":
        print_lines(int(rank))
    if deed.startswith("meet"):
        met = (meet_in_torch if deed == "meet_in_torch" else meet)(int(rank), f"{folder}/{rank}")
        print("met", *met, flush=True)
    while len(list(folder.glob("*.json"))) < int(os.environ["WORLD_SIZE"]):
        time.sleep(0.01)
    if deed == "fail" and rank == "1":
        sys.exit(7)
    if waits:
        time.sleep(300)


def meet(rank: int, text: str) -> list[str]:
    """Return the texts of two ranks; rank 0 listens as PyTorch's store does."""
    place = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    if rank == 0:
        time.sleep(0.3)  # so that all ranks of another job would find this port first
        with socket.create_server(place) as server, server.accept()[0] as other:
            texts = [text, other.recv(1000).decode()]
            other.sendall("\n".join(texts).encode())
            return texts
    while True:
        try:
            with socket.create_connection(place) as first:
                first.sendall(text.encode())
                return first.recv(2000).decode().split("\n")
        except ConnectionRefusedError:
            time.sleep(0.01)


def meet_in_torch(rank: int, text: str) -> list[str]:
    import torch.distributed

    torch.distributed.init_process_group("gloo")
    texts = [""] * int(os.environ["WORLD_SIZE"])
    torch.distributed.all_gather_object(texts, text)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    time.sleep(0.5)  # for its threads
    return texts


def parent_of(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def save(number: int, frame) -> None:
    """Write the signal into a file, as a rank would write its part of a checkpoint, and end as it would."""
    rank = os.environ["RANK"]
    time.sleep(1 + 1.5 * int(rank))
    print(f"rank {rank} has saved")
    (Path(sys.argv[1]) / f"{rank}.saved").write_text(str(number))
    sys.exit(128 + number)


def print_lines(rank: int) -> None:
    """Short lines in pieces, one longer than any pipe takes at once, one without an end, and a progress bar."""
    for number in range(200):
        for piece in (f"rank {rank}", f" line {number}", "\n"):
            sys.stdout.write(piece)
            sys.stdout.flush()
    print(f"rank {rank} " + "x" * 200_000)
    for percent in (0, 50, 100):
        print(f"\r{percent}%", end="", file=sys.stderr)
    print(file=sys.stderr)
    print(f"rank {rank} has no end", end="")


if __name__ == "__main__":
    main()
