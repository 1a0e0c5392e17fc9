"""The results of an evaluation that ranks keep: rows in the order of the samples, losses, and when outputs are read."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import examples
from hypothesis import given
from hypothesis import strategies as st

import qa.kept_rows
from qa.kept_rows import KeptRows, StepOutputs


ALONE = SimpleNamespace(num_processes=1, is_main_process=True)


def outputs(*tensors: torch.Tensor, loss: float = 0.0, counted: int = 1) -> StepOutputs:
    return StepOutputs(torch.tensor(loss), torch.tensor(counted), tensors)


@examples(100)
@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 3), st.integers(1, 300))
def test_rows_of_all_ranks_are_in_the_order_of_the_samples(samples, batch, ranks, chunk):
    """The last step is short, on a rank maybe empty, and exchanged pieces end within a row."""
    said, losses = np.random.default_rng(0).normal(size=(2, samples, 2))
    steps, sent = -(-samples // (batch * ranks)), []
    kept = [KeptRows(steps, batch) for _ in range(ranks)]
    for step, rank in np.ndindex(steps, ranks):
        part = slice((step * ranks + rank) * batch, (step * ranks + rank + 1) * batch)
        rows, counted = torch.from_numpy(said[part]), len(losses[part])
        loss = float(losses[part, 0].mean()) if counted else float("nan")
        kept[rank].add(outputs(rows, rows[:, 0] > 0, loss=loss, counted=counted))
    qa.kept_rows.CHUNK, before = chunk, qa.kept_rows.CHUNK
    for rank in reversed(range(ranks)):  # rank 0 last, which receives what the others have sent
        kept[rank].take()
        sent.insert(0, [])

        def gather(piece, rank=rank):
            sent[0].append(piece)
            return torch.cat([pieces[len(sent[0]) - 1] for pieces in sent]) if rank == 0 else piece.repeat(ranks)

        accelerator = SimpleNamespace(
            num_processes=ranks, is_main_process=rank == 0, device=torch.device("cpu"), gather=gather
        )
        loss, tables = kept[rank].mean_loss(accelerator), kept[rank].tables(accelerator)
        assert (tables is None) == (rank > 0)
    qa.kept_rows.CHUNK = before
    assert tables[0][:samples].tolist() == said.tolist()
    assert tables[1][:samples].tolist() == (said[:, 0] > 0).tolist() and tables[1].dtype == bool
    assert loss == pytest.approx(losses[:, 0].mean(), abs=1e-6)


def test_outputs_are_read_one_step_late_as_they_were():
    """The next replay of a graph overwrites its outputs, and a step is read when the next one has begun."""
    kept, output, read = KeptRows(steps=2, batch=3), torch.zeros(3), []

    def to_rows(tensor):
        read.append(tensor.tolist())
        return [tensor.numpy()]

    for step in range(2):
        output.fill_(step)
        kept.add(StepOutputs(None, None, (output,), to_rows))
        assert len(read) == step
    output.fill_(9)
    kept.take()
    kept.take()
    assert kept.tables(ALONE)[0].tolist() == [0, 0, 0, 1, 1, 1] and len(read) == 2
    assert kept.mean_loss(ALONE) is None


def test_more_rows_than_asked_for_are_not_dropped():
    for steps, batch in ((1, 3), (2, 2)):
        kept = KeptRows(steps, batch)
        with pytest.raises(ValueError, match=f"got over {steps} steps of {batch} rows"):
            for _ in range(3):
                kept.add(outputs(torch.zeros(3)))
