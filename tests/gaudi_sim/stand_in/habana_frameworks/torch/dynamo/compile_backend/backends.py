"""`torch.compile(backend="hpu_backend")`; PyTorch finds it by the entry point of the package, when it is first named."""

import torch
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch._prims_common import is_contiguous_or_false
from torch.fx.experimental.symbolic_shapes import optimization_hint

from ... import counting


def compile_graph(graph: torch.fx.GraphModule, inputs):
    """Count a compilation: of a forward, of a backward, of a shape not seen before. Run the graph as it is."""
    counting.counters["compiles"] += 1
    places = [node.meta.get("val") for node in graph.graph.nodes if node.op == "placeholder"]
    counting.counters["symbolic_graphs"] += not all(is_static(place) for place in places)
    return make_boxed_func(TracedLayouts(graph).run)


def is_static(place) -> bool:
    """Return whether an input of a graph is a tensor of a fixed shape."""
    return isinstance(place, torch.Tensor) and all(isinstance(size, int) for size in place.shape)


class TracedLayouts(torch.fx.Interpreter):
    """Runs a graph, with every result laid out in memory as it was when the graph was traced.

    PyTorch traces in the belief that a Gaudi's results are contiguous (torch/_subclasses/fake_impls.py); those of the
    host keep their operands' order, and a `view` that was traced may then be impossible.
    """

    def __init__(self, graph: torch.fx.GraphModule):
        super().__init__(graph)
        self.orders = {node: traced_order(node) for node in graph.graph.nodes if node.op == "call_function"}

    def run_node(self, node):
        result, order = super().run_node(node), self.orders.get(node)
        if order is None or result.permute(order).is_contiguous():
            return result
        back = sorted(range(len(order)), key=order.__getitem__)
        return result.permute(order).contiguous().permute(back)


def traced_order(node: torch.fx.Node) -> tuple[int, ...] | None:
    """Return the dimensions of a node's tensor from the widest stride to the narrowest; None if there are gaps."""
    traced = node.meta.get("val")
    if not isinstance(traced, torch.Tensor):
        return None
    order = tuple(sorted(range(traced.dim()), key=lambda place: -optimization_hint(traced.stride(place), fallback=1)))
    return order if is_contiguous_or_false(traced.permute(order)) else None


hpu_backend = aot_autograd(fw_compiler=compile_graph, bw_compiler=compile_graph)
