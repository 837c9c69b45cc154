"""Builds engines of models with TensorRT for RTX, which needs no GPU for it.

Takes a file with JSON, a list of {"model": PATH, "shapes": [min, opt, max]}, and prints for each a line of JSON with the
size of the engine.
"""

import json
import sys

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


for asked in json.load(open(sys.argv[1])):
    logger = Logger()
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(asked["model"]):
        errors = [str(parser.get_error(i)) for i in range(parser.num_errors)]
        sys.exit(f"{asked['model']}: {errors} {logger.said}")
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
    print(json.dumps({"engine": engine.nbytes}), flush=True)
