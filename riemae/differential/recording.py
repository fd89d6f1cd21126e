"""A pass as a record of the operations of torch that it consists of, and that record cut in two."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx


def recorded(call: Callable[..., tuple[Tensor, ...]], given: Sequence[Tensor]) -> fx.GraphModule:
    """The operations of ``call(*given)``, for any values in tensors of these shapes.

    None of them writes in place. Tensors that the call refers to are those of the record, so it
    follows their values.

    Raises:
        RuntimeError: Where the call reads numbers out of tensors, or what it raises itself.
    """
    record = make_fx(call)(*given)
    if any(map(_writes, record.graph.nodes)):
        with torch.no_grad():
            record = make_fx(functionalize(record))(*given)
    record.graph.eliminate_dead_code()
    record.recompile()
    return record


def _writes(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def cut(record: fx.GraphModule, results: int, place: int) -> tuple[fx.GraphModule, fx.GraphModule]:
    """A record in two parts: before one of its arguments is needed, and after.

    Args:
        record: The record.
        results: How many of its results come before the argument.
        place: That of the argument.

    Returns:
        ``(*other arguments) -> (*first results, *kept)`` and ``(*kept, argument) -> other
        results``.
    """
    nodes = list(record.graph.nodes)
    last = [node for node in nodes if node.op == "placeholder"][place]
    (found,) = nodes[-1].args
    late = {last}
    for node in nodes:
        if any(part in late for part in node.all_input_nodes):
            late.add(node)
    early = [node for node in nodes if node not in late and node.op != "output"]
    wanted = [part for node in nodes[:-1] if node in late for part in node.all_input_nodes]
    wanted += [node for node in found[results:] if node not in late]
    kept = [n for n in dict.fromkeys(wanted) if n not in late and n.op != "get_attr"]

    before = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in early:
        copies[node] = before.node_copy(node, copies.__getitem__)
    before.output(tuple(copies[node] for node in [*found[:results], *kept]))

    after = fx.Graph()
    copies = {node: after.placeholder(node.name) for node in [*kept, last]}
    for node in nodes[:-1]:
        if node.op == "get_attr" or (node in late and node is not last):
            copies[node] = after.node_copy(node, copies.__getitem__)
    after.output(tuple(copies[node] for node in found[results:]))
    return _module(record, before), _module(record, after)


def _module(record: fx.GraphModule, graph: fx.Graph) -> fx.GraphModule:
    # Arguments stay, whether they matter or not.
    graph.eliminate_dead_code()
    return fx.GraphModule(record, graph)
