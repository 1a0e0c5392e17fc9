"""One preparation a node, on ranks that are children of this process; whole runs on ranks are in runs/test_ranks.py."""

import os
import time
from multiprocessing import get_context
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import bytes_of, rows_of
from small_tokenizers import make_rows

import qa.node
import utils_qa
from qa.arguments import DataArguments
from qa.errors import UserError
from qa.node import once_a_node
from qa.preparation import prepare
from qa.shared import SharedFile
from qa.workers import share


RANKS = 3


class Unreadable(SharedFile):
    """A file of a process that another one may not see."""

    @classmethod
    def at(cls, *place):
        raise PermissionError("no permission")


class Prepared:
    """Some features, for whatever reads them."""

    shared = None

    def __init__(self, array: np.ndarray):
        self.array = array


def count(board) -> int:
    """Prepare, so that the test sees it; return how often it was done before."""
    return board.add("prepared", 1) - 1


def fail(error: Exception):
    raise error


def outcome(args, function, **replaced):
    """Return what a rank gets out of a preparation, or its error."""
    before = {name: getattr(qa.node, name) for name in replaced}
    vars(qa.node).update(replaced)
    try:
        return once_a_node(args, function)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        vars(qa.node).update(before)


def run_rank(rank: int, folder) -> None:
    """Take part in all cases; write their outcomes, and exit without what the parent would do at its end."""
    board = torch.distributed.FileStore(str(folder / "board"), RANKS)
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(folder / "store"), RANKS), rank=rank, world_size=RANKS
    )
    args = SimpleNamespace(world_size=RANKS, process_index=rank)
    array = np.arange(10_000)
    outcomes = {
        "shared": outcome(args, lambda: {"number": count(board), "array": array * 2, "rank": rank}),
        "mistake": outcome(args, lambda: fail(UserError("first", "second"))),
        "bug": outcome(args, lambda: fail(KeyError("id"))),
        "unseen": outcome(args, lambda: count(board) and rank, SharedFile=Unreadable),
        "two machines": outcome(args, lambda: rank, machine=lambda: str(rank > 0)),
        "mistake of the second machine": outcome(
            args, lambda: rank and fail(UserError("no file")), machine=lambda: str(rank > 0)
        ),
    }
    outcomes["shared"]["array"][0] = rank  # on this rank alone
    features = once_a_node(args, lambda: Prepared(array))
    share(features)
    outcomes["file for workers"] = os.fstat(features.shared.descriptor).st_ino
    del os.memfd_create  # as on other systems than Linux
    outcomes["no shared memory"] = outcome(args, lambda: rank)
    torch.save(outcomes, folder / f"{rank}.pt")
    os._exit(0)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> list[dict]:
    """Return the outcomes of all cases, by rank."""
    folder = tmp_path_factory.mktemp("node")
    ranks = [get_context("fork").Process(target=run_rank, args=(rank, folder)) for rank in range(RANKS)]
    for process in ranks:
        process.start()
    give_up = time.monotonic() + 300
    for process in ranks:
        process.join(max(1, give_up - time.monotonic()))
        process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(RANKS)]


def test_one_rank_prepares_for_all(outcomes):
    for rank, found in enumerate(outcomes):
        assert (found["shared"]["number"], found["shared"]["rank"]) == (0, 0)
        assert found["shared"]["array"].tolist() == [rank, *range(2, 20_000, 2)]


def test_workers_of_all_ranks_read_one_file(outcomes):
    assert len({found["file for workers"] for found in outcomes}) == 1
    features = Prepared(np.arange(3))
    share(features)  # of the only rank
    assert features.array.tolist() == [0, 1, 2]
    workers = SharedFile(os.dup(features.shared.descriptor), features.shared.sizes).read()
    workers.array[0] = 9  # for itself alone
    assert features.array[0] == 0


def test_an_error_of_one_rank_is_one_of_all(outcomes):
    assert [found["mistake"] for found in outcomes] == ["UserError: first\nsecond"] * RANKS
    assert [found["bug"].partition(" (at")[0] for found in outcomes] == [
        "KeyError: 'id'",
        *["Stopped: error: KeyError: 'id'"] * 2,
    ]
    (message,) = {found["mistake of the second machine"] for found in outcomes}
    assert message.startswith("UserError: rank 1 on ") and message.endswith(": no file")


def test_ranks_that_do_not_see_each_other_prepare_on_their_own(outcomes):
    assert sorted(found["unseen"] for found in outcomes) == [0, 1, 2]
    assert [found["two machines"] for found in outcomes] == [0, 1, 1]
    assert [found["no shared memory"] for found in outcomes] == [0, 1, 2]


def test_a_kill_leaves_no_file():
    file = SharedFile.of({"array": np.arange(3), "empty": np.zeros(0)})
    link = f"/proc/self/fd/{file.descriptor}"
    assert os.readlink(link) == "/memfd:shared (deleted)"
    del file
    assert not os.path.exists(link)


def test_nothing_is_kept_that_training_does_not_read(tokenizers):
    """Rows, their ids and the characters of tokens are for answers."""
    rows = {split: rows_of(*make_rows(80, seed=3)) for split in ("train", "validation")}
    features = prepare(
        rows,
        DataArguments(),
        SimpleNamespace(world_size=1),
        64,
        of_split=lambda _, part: utils_qa.prepare_features(part, tokenizers["bert"], 64, 16),
        report=lambda *_: None,
    )
    assert list(rows) == ["validation"]
    sizes = {split: bytes_of(part) for split, part in features.items()}
    tokens = features["train"].tokens.ids
    assert sizes["train"] < 1.1 * (tokens.nbytes + 32 * len(features["train"]) + 12 * 2 * 80)
    assert sizes["train"] < 0.6 * sizes["validation"]
    assert "offset_mapping" in features["validation"].as_dict(0)
