"""Reads models with TensorRT for RTX, which needs no GPU for it, and builds engines of some.

Takes a file with JSON, a list of {"model": PATH, "shapes": [min, opt, max] or null}, and prints for each a line of JSON: a
digest of all constants of the network as it was parsed, their number, and the size of the engine that was built.
"""

import ctypes
import hashlib
import json
import sys

import numpy as np
import tensorrt_rtx_bindings as trt


class Logger(trt.ILogger):
    def __init__(self):
        super().__init__()
        self.said = []

    def log(self, severity, message):
        if severity <= trt.ILogger.WARNING:
            self.said.append(message)


def shapes(text):
    """`sample:1x4x64x64,...` as trtexec and ONNX Runtime's options write it."""
    pairs = (part.rsplit(":", 1) for part in text.split(","))
    return {name: tuple(int(size) for size in dims.split("x")) for name, dims in pairs}


class Tensor(ctypes.Structure):
    """NVIDIA's `nvinfer1::Weights`."""

    _fields_ = [("type", ctypes.c_int32), ("values", ctypes.c_void_p), ("count", ctypes.c_int64)]


def elements(weights):
    """The bytes of a tensor."""
    data = weights if isinstance(weights, np.ndarray) else weights.numpy()
    if isinstance(data, np.ndarray):
        return data.tobytes()
    # numpy has no bfloat16, so they are read where pybind11's object says that the structure is.
    assert data.dtype == trt.bfloat16, data.dtype
    tensor = Tensor.from_address(ctypes.c_void_p.from_address(id(data) + object.__basicsize__).value)
    assert (tensor.type, tensor.count) == (int(data.dtype), data.size)
    return ctypes.string_at(tensor.values, data.nbytes)


def constants(network):
    digests = []
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.CONSTANT:
            layer.__class__ = trt.IConstantLayer
            digests.append(hashlib.sha256(elements(layer.weights)).hexdigest())
        elif layer.type == trt.LayerType.CONVOLUTION:
            layer.__class__ = trt.IConvolutionLayer
            digests.extend(hashlib.sha256(elements(w)).hexdigest() for w in (layer.kernel, layer.bias))
    return hashlib.sha256("".join(digests).encode()).hexdigest(), len(digests)


for asked in json.load(open(sys.argv[1])):
    logger = Logger()
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(asked["model"]):
        errors = [str(parser.get_error(i)) for i in range(parser.num_errors)]
        sys.exit(f"{asked['model']}: {errors} {logger.said}")
    digest, count = constants(network)
    found = {"constants": count, "digest": digest, "layers": network.num_layers}
    if asked["shapes"]:
        config = builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM89, 0)
        profile = builder.create_optimization_profile()
        least, usual, most = (shapes(text) for text in asked["shapes"])
        for name in least:
            profile.set_shape(name, least[name], usual[name], most[name])
        config.add_optimization_profile(profile)
        engine = builder.build_serialized_network(network, config)
        if engine is None:
            sys.exit(f"{asked['model']}: no engine: {logger.said}")
        found["engine"] = engine.nbytes
    print(json.dumps(found), flush=True)
