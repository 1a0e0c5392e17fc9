"""Where ranks meet: `qa.meeting`. Each rank is a forked process of this one."""

import multiprocessing
import os
import socket

import pytest
import torch.distributed as dist
from helpers import addresses_listening, free_port, own_address
from torch.distributed import TCPStore

import qa.meeting
from qa.errors import UserError
from qa.meeting import meet
from qa.ranks import place_process


SECONDS = 60  # for ranks that do meet


def rank_process(rank: int, port: int, seconds: float, given: dict, results) -> None:
    """Meet the others, add up ranks with them, and put the outcome into a queue."""
    qa.meeting.FIRST_LINE_SECONDS = 0.2
    folder, without = given.pop("folder", "out"), given.pop("without", "")
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": "2"} | given
    for name in without.split():
        del os.environ[name]
    printed = []
    qa.meeting.print = lambda text, **options: printed.append(text)
    try:
        place_process()
        meet(folder, seconds, on_cards=True)
        listening = addresses_listening(port)
        dist.init_process_group("gloo")
        everything = [None, None]
        dist.all_gather_object(everything, rank)
        dist.barrier()
        results.put((rank, printed, (everything, listening)))
    except UserError as error:
        results.put((rank, printed, str(error)))
    dist.is_initialized() and dist.destroy_process_group()


def outcomes(ranks: dict[int, dict], seconds: float = SECONDS) -> tuple[dict, dict, int]:
    """Return by process what it printed and how it ended, and the port; `ranks` has their variables, by the rank of each."""
    port, context = free_port(), multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [
        context.Process(target=rank_process, args=(rank, port, seconds, given, results), daemon=True)
        for rank, given in ranks.items()
    ]
    for process in processes:
        process.start()
    found = sorted((results.get(timeout=120) for _ in processes), key=lambda each: each[0])
    for process in processes:
        process.join(60)
    printed, ends = ({rank: each[column] for rank, *each in found} for column in (0, 1))
    return printed, ends, port


def test_ranks_meet_and_the_process_group_uses_their_store():
    printed, ends, _ = outcomes({0: {}, 1: {}})
    assert ends == {rank: ([0, 1], ["0100007F"]) for rank in (0, 1)}  # 127.0.0.1


def test_the_master_of_a_pytorchjob_is_reached_at_its_address():
    """It has localhost as MASTER_ADDR itself."""
    addresses = ("localhost", own_address())
    names = {"without": "LOCAL_RANK LOCAL_WORLD_SIZE"}
    ranks = {rank: names | {"MASTER_ADDR": addresses[rank], "HLS_MODULE_ID": str(rank)} for rank in (0, 1)}
    _, ends, _ = outcomes(ranks)
    assert [ends[rank][0] for rank in (0, 1)] == [[0, 1]] * 2


def test_a_rank_that_waits_says_for_whom_and_gives_up():
    for rank, other in ((0, "rank 1 at"), (1, "rank 0 at")):
        printed, ends, port = outcomes({rank: {}}, seconds=1)
        advice = "this machine; if there are several, set MASTER_ADDR to the name of rank 0's node"
        place = f"{other} 127.0.0.1 ({advice}), port {port}" + " (Connection refused)" * rank
        assert set(printed[rank]) == {f"rank {rank} of 2 on {socket.gethostname()} waits for {place}"}
        assert ends[rank].startswith(
            f"rank {rank} of 2 has waited 1 s (--ddp_timeout) for {place}; start every rank with"
        )


def test_a_rank_waits_for_rank_0_which_waits_for_others():
    printed, ends, _ = outcomes({rank: {"WORLD_SIZE": "3"} for rank in (0, 1)}, seconds=1)
    assert printed[1][0].startswith(
        f"rank 1 of 3 on {socket.gethostname()} waits for rank 0 at 127.0.0.1 (this machine"
    )
    assert printed[1][0].endswith(", which waits for other ranks") and ends[0].startswith("rank 0 of 3 has waited 1 s")


def test_a_rank_of_another_run_does_not_take_part():
    """Process 2 is rank 1 too; one of them is the first."""
    _, ends, _ = outcomes({0: {}, 1: {}, 2: {"RANK": "1", "LOCAL_RANK": "1"}})
    (error,) = (end for end in ends.values() if isinstance(end, str))
    assert error.startswith("another process is rank 1 at 127.0.0.1 ") and isinstance(ends[0], tuple)
    assert error.endswith(
        ": another run is there, or two processes have RANK=1; set MASTER_PORT to a free port for all ranks"
    )


def test_ranks_that_torchrun_starts_again_meet_anew():
    """Its store outlives them."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    names = {"MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    first, second = (names | {"TORCHELASTIC_RESTART_COUNT": count} for count in "01")
    ends = outcomes({rank: first | {"LOCAL_RANK": "0"} for rank in (0, 1)})[1]
    assert all("have the same card" in end for end in ends.values())
    ends = outcomes({0: second, 1: second})[1]
    assert [end[0] for end in ends.values()] == [[0, 1]] * 2


@pytest.mark.parametrize(
    "given, problem",
    [
        ({"HLS_MODULE_ID": "3"}, "ranks 0 and 1 have the same card, 3, of one machine; unset HLS_MODULE_ID"),
        ({"HABANA_VISIBLE_MODULES": "5"}, "ranks 0 and 1 have the same card, 5, of one machine"),
        ({"LOCAL_RANK": "0"}, "ranks 0 and 1 have the same card, 0, of one machine"),
        (
            {"folder": "out{rank}"},
            "rank 0 has --output_dir out0, rank 1 has out1: the ranks of a run need the same folder",
        ),
    ],
)
def test_what_reached_both_ranks_alike(given, problem):
    each = {rank: {name: value.format(rank=rank) for name, value in given.items()} for rank in (0, 1)}
    _, ends, _ = outcomes(each)
    assert ends[0] == ends[1] and ends[0].startswith(problem)


def test_a_port_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        printed, ends, _ = outcomes({0: {"MASTER_PORT": str(taken.getsockname()[1])}})
    assert "Address already in use" in ends[0] and "set MASTER_PORT to a free port" in ends[0]
