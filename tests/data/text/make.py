"""Makes the expected files beside it with the reference implementation: `pip install onnx==1.23.2 numpy`.

For each NAME.onnxtxt: NAME.onnx, what onnx.parser reads from it. For each NAME.onnx, including those that are built
here: NAME.printed, what onnx.printer prints.
"""

import pathlib
import random
import struct

import numpy
import onnx
from onnx import TensorProto, helper, parser, printer

FOLDER = pathlib.Path(__file__).parent


def raw_tensors():
    """An initializer of each type that onnx.printer prints, with its elements in raw_data."""
    elements = {
        TensorProto.FLOAT: struct.pack("<4f", 1, -2.5, 1e10, float("nan")),
        TensorProto.DOUBLE: struct.pack("<2d", 0.1, -1e-300),
        TensorProto.FLOAT16: numpy.array([1, -2.5, 65504], "<f2").tobytes(),
        TensorProto.BFLOAT16: bytes([0x80, 0x3F, 0x80, 0xBF]),
        TensorProto.INT8: bytes([0, 127, 128, 255]),
        TensorProto.UINT8: bytes([0, 127, 128, 255]),
        TensorProto.INT16: struct.pack("<2h", -32768, 32767),
        TensorProto.UINT16: struct.pack("<2H", 0, 65535),
        TensorProto.INT32: struct.pack("<2i", -(2**31), 2**31 - 1),
        TensorProto.UINT32: struct.pack("<1I", 2**32 - 1),
        TensorProto.INT64: struct.pack("<2q", -(2**63), 2**63 - 1),
        TensorProto.UINT64: struct.pack("<1Q", 2**64 - 1),
        TensorProto.BOOL: bytes([0, 1]),
        TensorProto.FLOAT8E4M3FN: bytes([0, 255]),
        TensorProto.FLOAT8E4M3FNUZ: bytes([0, 255]),
        TensorProto.FLOAT8E5M2: bytes([0, 255]),
        TensorProto.FLOAT8E5M2FNUZ: bytes([0, 255]),
        TensorProto.FLOAT8E8M0: bytes([0, 255]),
    }
    initializers = []
    for data_type, data in elements.items():
        size = helper.tensor_dtype_to_np_dtype(data_type).itemsize
        name = TensorProto.DataType.Name(data_type).lower() + ".raw"
        initializers.append(TensorProto(name=name, data_type=data_type, dims=[len(data) // size], raw_data=data))
    scalar = TensorProto(data_type=TensorProto.FLOAT, raw_data=struct.pack("<f", 0.5))
    node = helper.make_node("Constant", [], ["y"], value=scalar)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [])
    return helper.make_model(helper.make_graph([node], "raw tensors", [], [y], initializers), ir_version=10)


def floats():
    """Floats of all sizes: random bits, and whole numbers and powers of ten where the notation changes."""
    generator = random.Random(20261101)

    def bits(code, size):
        return struct.unpack(code, generator.randbytes(size))[0]

    exact = [float(f"{d}e{e}") for e in range(-8, 25) for d in ("1", "1.5", "9.25", "1.2345679")]
    exact += [float(2**n) for n in range(0, 90, 3)] + [float(generator.randrange(10**n)) for n in range(1, 18)]
    singles = exact + [bits("<f", 4) for _ in range(300)]
    doubles = exact + [bits("<d", 8) for _ in range(300)]
    initializers = [
        TensorProto(name="singles", data_type=TensorProto.FLOAT, dims=[len(singles)], float_data=singles),
        TensorProto(name="doubles", data_type=TensorProto.DOUBLE, dims=[len(doubles)], double_data=doubles),
    ]
    return helper.make_model(helper.make_graph([], "floats", [], [], initializers), ir_version=10)


def main():
    models = {path.stem: parser.parse_model(path.read_text()) for path in sorted(FOLDER.glob("*.onnxtxt"))}
    models |= {"raw_tensors": raw_tensors(), "floats": floats()}
    for name, model in models.items():
        (FOLDER / f"{name}.onnx").write_bytes(model.SerializeToString(deterministic=True))
        (FOLDER / f"{name}.printed").write_text(printer.to_text(model))


if __name__ == "__main__":
    main()
