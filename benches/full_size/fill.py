"""Gives a graph without weights random ones, so that it can be measured at its full size.

    fill.py GRAPH.onnx[.gz] FOLDER              FOLDER/model.onnx and the data files that it names
    fill.py --half-inline GRAPH.onnx FOLDER     FOLDER/model.onnx alone: weights as float16, inside the model

Every initializer whose data is external gets normal values with standard deviation 1 / sqrt(fan in), the same at every
run. The graph comes out as it went in, but for `--half-inline`, where float32 becomes float16 throughout.
"""

import argparse
import gzip
from pathlib import Path

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

PIECE = 1 << 24


def elements(tensor, rng):
    """The new elements of `tensor`, in pieces."""
    kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    count = int(np.prod(tensor.dims, dtype=np.int64))
    scale = (max(tensor.dims) / max(count, 1)) ** 0.5 if len(tensor.dims) > 1 else 0.05
    for start in range(0, count, PIECE):
        values = rng.standard_normal(min(PIECE, count - start), dtype=np.float32)
        values *= np.float32(scale)
        yield values.astype(kind)


def fill_files(model, folder):
    """Writes the data files that `model` names."""
    rng = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        place = {entry.key: entry.value for entry in tensor.external_data}
        path = folder / place["location"]
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "r+b" if path.exists() else "wb") as file:
            file.seek(int(place.get("offset", 0)))
            for piece in elements(tensor, rng):
                file.write(piece.tobytes())


def fill_inline(model):
    """Puts float16 weights into `model`, and makes the rest of it float16."""
    graph = model.graph
    rng = np.random.default_rng(0)
    # The scales of a Resize are float32 in every model.
    kept = {name for node in graph.node if node.op_type == "Resize" for name in node.input[1:]}
    for tensor in graph.initializer:
        external = tensor.data_location == TensorProto.EXTERNAL
        if tensor.data_type == TensorProto.FLOAT and tensor.name not in kept:
            tensor.data_type = TensorProto.FLOAT16 if external else halve(tensor)
        if external:
            tensor.raw_data = b"".join(piece.tobytes() for piece in elements(tensor, rng))
            del tensor.external_data[:]
            tensor.ClearField("data_location")
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
            if attribute.type == AttributeProto.TENSOR and not kept.intersection(node.output):
                halve(attribute.t)
    for value in [*graph.input, *graph.output, *graph.value_info]:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16


def halve(tensor):
    """Makes a small float32 tensor float16; returns the type that it has then."""
    if tensor.data_type == TensorProto.FLOAT:
        values = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return tensor.data_type


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graph", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--half-inline", action="store_true")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    data = args.graph.read_bytes()
    if args.graph.suffix == ".gz":
        data = gzip.decompress(data)
    model = onnx.load_from_string(data)
    if args.half_inline:
        fill_inline(model)
        data = model.SerializeToString()
    else:
        fill_files(model, args.folder)
    (args.folder / "model.onnx").write_bytes(data)


if __name__ == "__main__":
    main()
