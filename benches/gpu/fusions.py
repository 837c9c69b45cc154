#!/usr/bin/env python3
"""ONNX Runtime's fusions for GPUs on a UNet: fusions.py IN OUT. Prints how many of each it made."""

import argparse
import builtins
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnxruntime.transformers import optimizer
from onnxruntime.transformers.fusion_options import FusionOptions

# The optimizer puts its own folder on the path and imports its modules from there.
import fusion_attention_unet  # isort: skip
import fusion_base  # isort: skip


class AsInt(type):
    def __call__(cls, value):
        return builtins.int(value.item() if isinstance(value, np.ndarray) else value)

    def __instancecheck__(cls, value):
        return isinstance(value, builtins.int)


class Integer(metaclass=AsInt):
    """`int`, also of an array with one element, which NumPy 2.4 refuses and the fusions rely on."""


def add_initializer(self, name, data_type, dims, vals, raw=True, add=fusion_base.Fusion.add_initializer):
    """Adds weights in the type that is declared: a GroupNorm's are float32 in a network of half precision too."""
    add(self, name, data_type, dims, np.asarray(vals).astype(helper.tensor_dtype_to_np_dtype(data_type)), raw)


def drop_casts(graph):
    """Computes the scales of attentions in half precision: the fusions know no Casts there."""
    made_by = {name: node for node in graph.node for name in node.output}
    half = helper.make_tensor("half_one", TensorProto.FLOAT16, [], np.ones(1, np.float16))
    instead = {}

    def parents(node, *kinds):
        for kind in kinds:
            node = made_by.get(node.input[-1 if node.op_type == "Div" else 0])
            if node is None or node.op_type != kind:
                return
            yield node

    for cast in graph.node:
        if cast.op_type != "Cast" or next(a.i for a in cast.attribute if a.name == "to") != TensorProto.FLOAT16:
            continue
        # Cast to half, Sqrt, Cast to float, 1 / x, Cast to half.
        scale = [node for node in parents(cast, "Div", "Cast", "Sqrt", "Cast", "Slice")]
        if len(scale) == 5:
            scale[0].input[:] = [half.name, scale[2].output[0]]
            instead[cast.output[0]] = scale[0].output[0]
        if len([node for node in parents(cast, "Reshape", "Transpose", "MatMul")]) == 3:
            instead[cast.output[0]] = cast.input[0]
    if instead:
        graph.initializer.append(half)
    for node in graph.node:
        node.input[:] = [instead.get(name, name) for name in node.input]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--float32", action="store_true", help="the CPU's attentions are in single precision only")
    args = parser.parse_args()
    begun = time.monotonic()
    fusion_attention_unet.int = Integer
    fusion_base.Fusion.add_initializer = add_initializer
    options = FusionOptions("unet")
    if args.float32:
        options.enable_packed_qkv = options.enable_packed_kv = False
    source = onnx.load(args.model)
    drop_casts(source.graph)
    model = optimizer.optimize_model(
        source,
        model_type="unet",
        num_heads=0,
        hidden_size=0,
        opt_level=0,
        optimization_options=options,
        use_gpu=True,
    )
    print(model.get_fused_operator_statistics())
    left = [node.name for node in model.model.graph.node if node.op_type == "Softmax"]
    print("attentions that stay unfused:", left)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    partial = args.output.with_suffix(".partial")
    model.save_model_to_file(str(partial), use_external_data_format=False)
    partial.rename(args.output)
    print(f"{time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
