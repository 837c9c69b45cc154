"""Writes <model>.json: the shape and element type that ONNX Runtime gives each value of a fixture at three sizes.

    pip install onnx==1.23.2 onnxruntime==1.31.1 numpy
    python tests/data/shapes/make.py

Every result of every node is made an output, and the model is run without optimizations. `values` lists, in the order
of the nodes and their results, an index into `shapes`: the element type (ONNX's number) and the shape at each size.
"""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

HERE = Path(__file__).parent
FIXTURES = HERE.parents[2] / "fixtures"

# Batch, height, width, sequence; heights and widths divisible by what the model downsamples by.
SIZES = [(1, 8, 16, 5), (2, 24, 16, 7), (3, 32, 40, 11)]

# The SD3 fixture has position embeddings for 32 x 32 latents at most, and its exporter rounds odd halves wrongly.
SMALL_SIZES = {"sd3/dynamo": [(1, 8, 16, 5), (2, 12, 16, 7), (3, 16, 24, 11)]}

MODELS = [
    "sd15/torchscript",
    "sd15/dynamo",
    "sd15-mini/torchscript",
    "sd15-mini/torchscript-fp16",
    "sd15-mini/nofold",
    "sd15-mini/merged",
    "sd15-mini/dynamo",
    "sd15-mini/dynamo-opset21",
    "sd15-mini/dynamo-opset23",
    "sd15-mini/ort-basic",
    "sd15-mini/simplified",
    "sd15-mini/slim",
    "sd15-mini/quantized",
    "sd21/dynamo",
    "sdxl/torchscript",
    "sdxl/dynamo",
    "sd3/dynamo",
    "ldm/torchscript",
    "ldm/dynamo",
]


def feeds(model, size):
    batch, height, width, sequence = size
    rng = np.random.default_rng(0)
    result = {}
    constants = {i.name for i in model.graph.initializer}
    for value in model.graph.input:
        if value.name in constants:
            continue
        tensor = value.type.tensor_type
        wanted = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
        free = {4: [batch, None, height, width], 3: [batch, sequence, None], 2: [batch, None], 1: [batch], 0: []}
        shape = [w if w is not None else f for w, f in zip(wanted, free[len(wanted)], strict=True)]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        result[value.name] = rng.standard_normal(shape).astype(dtype)
    return result


def golden(path, sizes):
    model = onnx.load(path)
    names = [name for node in model.graph.node for name in node.output if name]
    inputs = {size: feeds(model, size) for size in sizes}
    del model.graph.output[:]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    runs = [session.run(names, inputs[size]) for size in sizes]
    shapes, values = {}, []
    for results in zip(*runs, strict=True):
        element_type = int(onnx.helper.np_dtype_to_tensor_dtype(results[0].dtype))
        key = json.dumps([element_type, [list(x.shape) for x in results]], separators=(",", ":"))
        values.append(shapes.setdefault(key, len(shapes)))
    return [json.loads(key) for key in shapes], values


def main():
    for name in MODELS:
        path, sizes = FIXTURES / name / "unet.onnx", SMALL_SIZES.get(name, SIZES)
        shapes, values = golden(path, sizes)
        document = {"model": f"fixtures/{name}/unet.onnx", "sizes": sizes, "shapes": shapes, "values": values}
        target = HERE / f"{name.replace('/', '-')}.json"
        target.write_text(json.dumps(document, separators=(",", ":")) + "\n")
        print(f"{name}: {len(values)} values, {len(shapes)} shapes, {target.stat().st_size} bytes")


main()
