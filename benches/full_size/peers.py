"""The same edits with what Python users have: one of them, in a process of its own.

    peers.py PEER MODEL OUTPUT BLOCK

Every bypass does what `bypass: BLOCK` does: whoever reads the residual Add of the block (found by its name, as the
TorchScript exporter writes it) reads what the block was given; then nodes and weights that nothing reads go.
"""

import re
import sys
from pathlib import Path


def skip_of(scope, add_inputs, made_in_block):
    """Which operand of the residual Add comes from outside the block."""
    outside = [name for name in add_inputs if name not in made_in_block]
    if len(outside) != 1:
        raise SystemExit(f"{scope}/Add has no skip operand")
    return outside[0]


def bypass_proto(graph, scope):
    """Bypasses `scope` in a GraphProto."""
    add = next(node for node in graph.node if node.name == f"{scope}/Add")
    made = {name for node in graph.node if node.name.startswith(f"{scope}/") for name in node.output}
    skip = skip_of(scope, add.input, made)
    for node in graph.node:
        for slot, name in enumerate(node.input):
            if name == add.output[0]:
                node.input[slot] = skip
    read = {output.name for output in graph.output}
    kept = []
    for node in reversed(graph.node):
        if read.intersection(node.output):
            read.update(node.input)
            kept.append(node)
    kept.reverse()
    initializers = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(kept)
    graph.initializer.extend(initializers)


def onnx_headers(model, output, scope):
    """onnx, weights never loaded; the output names the data file that is there."""
    import onnx

    proto = onnx.load(model, load_external_data=False)
    bypass_proto(proto.graph, scope)
    onnx.save(proto, output)


def onnx_loaded(model, output, scope):
    """onnx, weights loaded and saved."""
    import onnx

    proto = onnx.load(model)
    bypass_proto(proto.graph, scope)
    save(proto, output)


def save(proto, output):
    import onnx

    # Protobuf refuses to serialize more than 2 GiB.
    external = sum(len(tensor.raw_data) for tensor in proto.graph.initializer) > 1 << 30
    options = {"save_as_external_data": True, "location": f"{Path(output).name}_data"} if external else {}
    onnx.save(proto, output, **options)


def ir_bypassed(model, scope):
    import onnx_ir as ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    loaded = ir.load(model)
    block = [node for node in loaded.graph if (node.name or "").startswith(f"{scope}/")]
    add = next(node for node in block if node.name == f"{scope}/Add")
    made = {value.name for node in block for value in node.outputs}
    skip = skip_of(scope, [value.name for value in add.inputs], made)
    ir.convenience.replace_all_uses_with(add.outputs[0], next(v for v in add.inputs if v.name == skip))
    return RemoveUnusedNodesPass()(loaded).model


def ir_headers(model, output, scope):
    """onnx-ir; the output names the data file that is there."""
    import onnx_ir as ir

    ir.save(ir_bypassed(model, scope), output)


def ir_copied(model, output, scope):
    """onnx-ir: weights mapped, then copied."""
    import onnx_ir as ir

    ir.save(ir_bypassed(model, scope), output, external_data=f"{Path(output).name}_data")


def graphsurgeon(model, output, scope):
    """onnx-graphsurgeon."""
    import onnx
    import onnx_graphsurgeon as gs

    graph = gs.import_onnx(onnx.load(model))
    block = [node for node in graph.nodes if node.name.startswith(f"{scope}/")]
    add = next(node for node in block if node.name == f"{scope}/Add")
    made = {value.name for node in block for value in node.outputs}
    skip = skip_of(scope, [value.name for value in add.inputs], made)
    source = next(value for value in add.inputs if value.name == skip)
    old = add.outputs[0]
    for node in list(old.outputs):
        node.inputs = [source if value is old else value for value in node.inputs]
    graph.cleanup()
    save(gs.export_onnx(graph), output)


def numpy_prune(model, output, _):
    """numpy: CR-Diff at 0.2 in each part, all weights loaded and saved."""
    import numpy as np
    import onnx
    from onnx import numpy_helper

    proto = onnx.load(model)
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    pools = {"down_blocks": {}, "mid_block": {}, "up_blocks": {}}
    for node in proto.graph.node:
        scope = node.name.lstrip("/").replace("/", ".")
        target = ".attn1." in scope or ".ff." in scope
        if node.op_type not in ("MatMul", "Gemm", "Conv") or not target or node.input[1] not in weights:
            continue
        pools[scope.split(".")[0]][node.input[1]] = weights[node.input[1]]
    for pool in pools.values():
        arrays = {name: numpy_helper.to_array(tensor) for name, tensor in pool.items()}
        magnitudes = np.concatenate([np.abs(array).ravel() for array in arrays.values()])
        k = int(magnitudes.size * 0.2)
        threshold = np.partition(magnitudes, k - 1)[k - 1]
        for name, array in arrays.items():
            pruned = np.where(np.abs(array) > threshold, array, array.dtype.type(0))
            pool[name].raw_data = pruned.tobytes()
    save(proto, output)


PEERS = {
    "onnx-headers": onnx_headers,
    "onnx-loaded": onnx_loaded,
    "onnx-ir-headers": ir_headers,
    "onnx-ir-copied": ir_copied,
    "graphsurgeon": graphsurgeon,
    "numpy-prune": numpy_prune,
}

if __name__ == "__main__":
    peer, model, output, block = sys.argv[1:]
    # mid_block.attentions.0 is the scope /mid_block/attentions.0.
    PEERS[peer](model, output, "/" + re.sub(r"\.(?!\d)", "/", block))
