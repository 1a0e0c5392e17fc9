"""torchrun whose store listens on loopback where all ranks are on this machine; started in place of torchrun.

Ranks meet at the store, and it takes objects from whoever connects. PyTorch 2.13 lets it listen on every address of the
machine, also for `--master_addr 127.0.0.1`. With MPI rank 0 has the store: see `qa.upstream`.
"""

import ipaddress
import socket

from torch.distributed import TCPStore


def loopback_store(host_name: str, port: int, world_size=None, is_master: bool = False, *args, **kwargs) -> TCPStore:
    """Return a TCPStore; one that listens does so on its `host_name` alone, if that is an address of loopback."""
    if is_master and is_loopback(host_name):
        listener = socket.create_server((host_name, port), backlog=1024)
        kwargs["master_listen_fd"] = listener.detach()
    return TCPStore(host_name, port, world_size, is_master, *args, **kwargs)


def is_loopback(host: str) -> bool:
    """Return whether a host is an IPv4 address of loopback.

    >>> is_loopback("127.0.0.1"), is_loopback("10.0.0.1"), is_loopback("node-1")
    (True, False, False)
    """
    try:
        return ipaddress.IPv4Address(host).is_loopback
    except ValueError:
        return False


def main() -> None:
    """Run torchrun."""
    from torch.distributed import run
    from torch.distributed.elastic.rendezvous import static_tcp_rendezvous

    static_tcp_rendezvous.TCPStore = loopback_store
    run.main()


if __name__ == "__main__":
    main()
