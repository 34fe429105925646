"""`without_detach`: a graph of which no gradient is taken any more needs no `detach`."""

from __future__ import annotations

from tracegrad.ir.graph import Graph, GraphBuilder, Value
from tracegrad.ir.passes.cse import eliminate_common_nodes
from tracegrad.ir.primitive import get


def without_detach(graph: Graph) -> Graph:
    """Let readers of a detached value read the value itself, and merge what is then the same.

    Pure; idempotent. For graphs that are about to be computed: their derivatives change. Outputs
    stay as distinct from each other and from the inputs as they were: of two that became one value
    the later is a `detach` of it.
    """
    if all(n.primitive.name != "detach" for n in graph.nodes):
        return graph
    same: dict[Value, Value] = {}
    builder = GraphBuilder(graph.name)
    builder.inputs.extend(graph.inputs)
    for node in graph.nodes:
        inputs = tuple(same.get(v, v) for v in node.inputs)
        if node.primitive.name == "detach":
            same[node.out] = inputs[0]
        else:
            same[node.out] = builder.append(
                node.primitive, inputs, node.params, location=node.location, name=node.out.name
            )
    plain = eliminate_common_nodes(builder.finish([same.get(v, v) for v in graph.outputs]))
    taken = set(graph.inputs)
    last = GraphBuilder(graph.name)
    last.inputs.extend(graph.inputs)
    last.nodes.extend(plain.nodes)
    outputs: list[Value] = []
    for old, v in zip(graph.outputs, plain.outputs, strict=True):
        if v in taken and old not in graph.inputs:
            made = graph.producer(old)
            where = None if made is None else made.location
            v = last.append(get("detach"), (v,), {}, location=where, name=old.name)
        taken.add(v)
        outputs.append(v)
    return last.finish(outputs)
