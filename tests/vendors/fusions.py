"""Runs ONNX Runtime's transformer fusions on models, and what can be run of the results.

Takes paths of models, prints for each a line of JSON: how many operators of each kind there are after the fusions for
GPUs, and how far the outputs of the model with those fusions that the CPU has kernels for are from its own, as a part of
their range.
"""

import collections
import json
import logging
import sys

import numpy as np
import onnx
import onnxruntime
from onnxruntime.transformers.fusion_options import FusionOptions
from onnxruntime.transformers.optimizer import optimize_model

logging.disable(logging.WARNING)


def sized(path):
    """The model with the sizes of its inputs, whose shapes take a tenth of the time to infer."""
    model = onnx.load(path)
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        named = {0: 2} if len(dims) else {}
        # What the full graph keeps has the size of the sample.
        if value.name == "sample" or value.name.startswith("cache"):
            named |= {2: 16, 3: 24}
        elif len(dims) == 3:
            named |= {1: 7}
        for at, size in named.items():
            dims[at].dim_value = size
    return model


def fused(model, **switches):
    options = FusionOptions("unet")
    for name, value in switches.items():
        setattr(options, name, value)
    return optimize_model(model, model_type="unet", opt_level=0, use_gpu=True, optimization_options=options)


def outputs(model):
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(7)
    feeds = {}
    for value in session.get_inputs():
        if "int64" in value.type:
            feeds[value.name] = np.full(value.shape, 500, np.int64)
        else:
            feeds[value.name] = random.standard_normal(value.shape).astype(np.float32)
    return session.run(None, feeds)[0]


for path in sys.argv[1:]:
    counts = collections.Counter(node.op_type for node in fused(sized(path)).model.graph.node)
    # No kernels for these on the CPU.
    gpu = ["enable_group_norm", "enable_nhwc_conv", "enable_skip_group_norm", "enable_bias_splitgelu", "enable_bias_add"]
    runs = fused(sized(path), **{name: False for name in gpu}, enable_packed_kv=False, enable_packed_qkv=False)
    attentions = sum(node.op_type == "MultiHeadAttention" for node in runs.model.graph.node)
    expected, found = outputs(sized(path).SerializeToString()), outputs(runs.model.SerializeToString())
    off = float(np.abs(found - expected).max() / np.ptp(expected))
    print(json.dumps({"counts": counts, "attentions_run": attentions, "off": off}), flush=True)
