"""HPU graphs: counted, and really computed at each replay."""

import functools

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

from .. import counting


class GraphedForward:
    """A module's forward as if captured: one graph per kind of input, replayed when the kind comes again.

    It runs the forward itself each time, so gradients and results are right; a card would run the recorded kernels.
    Without gradients the tensors that it returns are the graph's own: its next replay overwrites them, as on a card.
    """

    def __init__(self, forward, max_graphs: int | None = None):
        functools.update_wrapper(self, forward)  # the trainer reads which inputs the model takes
        self.forward = forward
        self.max_graphs = max_graphs
        self.captured = {}  # the tensors of each graph's outputs, by the kind of its inputs

    def __call__(self, *args, **kwargs):
        kind = input_hash((args, kwargs))
        outputs = self.forward(*args, **kwargs)
        if kind in self.captured:
            counting.counters["graph_replays"] += 1
        elif self.max_graphs is None or len(self.captured) < self.max_graphs:
            self.captured[kind] = tree_map_only(torch.Tensor, torch.Tensor.clone, tree_leaves(outputs))
            counting.counters["graph_captures"] += 1
        if torch.is_grad_enabled() or kind not in self.captured:
            return outputs
        return in_place_of(self.captured[kind], outputs)


def in_place_of(leaves: list, outputs):
    """Return outputs with their tensors in the memory of others."""
    found, structure = tree_flatten(outputs)
    for index, (old, new) in enumerate(zip(leaves, found)):
        if isinstance(new, torch.Tensor):
            found[index] = old.detach().copy_(new)
    return tree_unflatten(found, structure)


def wrap_in_hpu_graph(module, *, max_graphs: int | None = None, **options):
    """Wrap the module's forward; return the module. Options that steer a card's caches change nothing here."""
    counting.counters["graph_wraps"] += 1
    module.forward = GraphedForward(module.forward, max_graphs)
    return module


class ModuleCacher:
    """HPU graphs for training: `ModuleCacher(max_graphs)(model=model, inplace=True)`."""

    def __init__(self, max_graphs: int | None = None):
        self.max_graphs = max_graphs

    def __call__(self, model, inplace: bool = True, **options):
        if not inplace:
            raise NotImplementedError("simulated Gaudi: ModuleCacher with inplace=False")
        return wrap_in_hpu_graph(model, max_graphs=self.max_graphs)


class HPUGraph:
    """The operations between `capture_begin` and `capture_end`, which `replay` runs again on the same tensors.

    It records each operation with its operands; a replay repeats them and puts the new values into the tensors that the
    capture made. Values that left the device during the capture (`.item()`) would be old at a replay: that raises.
    """

    def __init__(self):
        self.recorder = None
        self.captured = False

    def capture_begin(self, *args, **kwargs) -> None:
        self.recorder = Recorder()
        self.recorder.__enter__()

    def capture_end(self) -> None:
        self.recorder.__exit__(None, None, None)
        self.captured = True
        counting.counters["graph_captures"] += 1

    def replay(self, asynchronous: bool = False) -> None:
        if not self.captured:
            raise RuntimeError("HPUGraph: nothing was captured")
        counting.counters["graph_replays"] += 1
        with torch.no_grad():
            for operation, args, kwargs, results in self.recorder.tape:
                repeat(operation, args, kwargs, results)


def repeat(operation, args, kwargs, results: list[torch.Tensor]) -> None:
    """Run a recorded operation again and copy its results into the tensors of the capture."""
    operands = {id(leaf) for leaf in tree_leaves((args, kwargs))}
    for old, new in zip(results, tree_leaves(operation(*args, **kwargs))):
        if id(old) not in operands and old.data_ptr() != new.data_ptr():  # neither in-place nor a view
            old.detach().copy_(new)


class Recorder(TorchDispatchMode):
    """Record the operations that run while it is entered."""

    def __init__(self):
        super().__init__()
        self.tape = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation is torch.ops.aten._local_scalar_dense.default:
            raise NotImplementedError("simulated Gaudi: a value cannot leave the device while a graph is captured")
        results = operation(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(results) if isinstance(leaf, torch.Tensor)]
        self.tape.append((operation, args, kwargs or {}, tensors))
        return results


class CachedParams:
    """A graph with the tensors it reads and writes, as optimum-habana keeps them."""

    def __init__(self, graph_inputs, graph_outputs, graph):
        self.graph_inputs = graph_inputs
        self.graph_outputs = graph_outputs
        self.graph = graph


def input_hash(inputs) -> int:
    """Equal for inputs that one graph serves: same structure, shapes and types of tensors, same other values."""
    leaves, structure = tree_flatten(inputs)
    return hash((str(structure), tuple(map(kind_of, leaves))))


def kind_of(leaf):
    if isinstance(leaf, torch.Tensor):
        return tuple(leaf.shape), leaf.dtype, leaf.device.type
    return repr(leaf) if isinstance(leaf, (bool, int, float, str)) else type(leaf).__name__


def copy_to(to, source) -> None:
    """Copy the tensors of one structure into those of another, for a replay on new values."""
    for new, old in zip(tree_leaves(source), tree_leaves(to)):
        if isinstance(new, torch.Tensor):
            old.copy_(new)
