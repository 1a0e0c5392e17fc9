"""The number of graphs that `torch.compile` may have."""

import numpy as np
import pytest
import torch

import qa.graphs
from qa.arguments import DataArguments
from qa.device import training_arguments
from qa.fallback import OwnFeatures
from qa.seq2seq import tokenize_targets
from qa.stages import lay_out


LENGTHS = range(8, 28)  # more than PyTorch's own limit, which is 8


def features_of(lengths) -> OwnFeatures:
    plain = {"cls_index": 0, "example_id": "a"}
    windows = (plain | {"input_ids": [1] * length, "offset_mapping": [None] * length} for length in lengths)
    return OwnFeatures([{"id": "a"}], windows)


@pytest.fixture
def graphs(monkeypatch):
    """Return a list of the graphs that are compiled, and restore PyTorch's limits at the end."""
    made = []
    for name in ("recompile_limit", "accumulated_recompile_limit"):
        monkeypatch.setattr(torch._dynamo.config, name, 8)
    yield made
    torch.compiler.reset()


def run_compiled(lengths, graphs: list) -> None:
    """Call a compiled module with a batch of each length."""

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    module = torch.compile(torch.nn.Embedding(2, 4), backend=backend, dynamic=False)
    for length in lengths:
        module(torch.ones(1, length, dtype=torch.long))


def test_each_length_of_a_run_without_padding_has_a_graph(graphs):
    qa.graphs.allow_graphs({"train": features_of([*LENGTHS, *LENGTHS])}, one_length=False)
    run_compiled(LENGTHS, graphs)
    assert len(graphs) == len(LENGTHS)


def test_the_graphs_of_earlier_runs_in_a_process_do_not_count(graphs, tmp_path):
    args = training_arguments(False)(output_dir=str(tmp_path), use_cpu=True, torch_compile=True)
    for _ in range(3):
        lay_out({}, DataArguments(), args, length=8)
        run_compiled(LENGTHS[:8], graphs)
    assert len(graphs) == 24


def test_shapes_of_a_split(writers):
    features = features_of([8, 8, 9])
    assert [qa.graphs.most_shapes(features, one_length) for one_length in (True, False)] == [1, 2]
    features.targets = tokenize_targets(["a", "a b", "a b c"], writers["t5"], max_length=9)
    assert [qa.graphs.most_shapes(features, one_length) for one_length in (True, False)] == [1, 6]
    features.widths = np.array([16, 32, 48])
    assert [qa.graphs.most_shapes(features, one_length) for one_length in (True, False)] == [3, 3]
