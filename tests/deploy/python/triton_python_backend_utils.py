"""A stand-in for the module of Triton's Python backend: requests to other models run in ONNX Runtime.

A request is checked as Triton checks it against the model's configuration, which `serve` is given (as JSON, from
config.pbtxt): all inputs there, their types, their shapes, the largest batch.
"""

from pathlib import Path

import numpy as np
import onnxruntime

TRITONSERVER_MEMORY_CPU = 0
TYPES = {"TYPE_FP16": np.float16, "TYPE_FP32": np.float32, "TYPE_INT32": np.int32, "TYPE_INT64": np.int64}
TYPES |= {"TYPE_UINT8": np.uint8}

repository = None
configs = {}
sessions = {}
calls = []


def serve(folder, by_name):
    global repository
    repository = Path(folder)
    configs.update(by_name)


class TritonModelException(Exception):
    pass


class TritonError:
    def __init__(self, message):
        self._message = message

    def message(self):
        return self._message


class Tensor:
    def __init__(self, name, array):
        assert isinstance(array, np.ndarray), name
        self._name, self._array = name, array

    def name(self):
        return self._name

    def as_numpy(self):
        return self._array


class PreferredMemory:
    def __init__(self, memory_type, memory_type_id=0):
        self.memory_type = memory_type


class InferenceResponse:
    def __init__(self, output_tensors=(), error=None):
        self._tensors, self._error = list(output_tensors), error

    def has_error(self):
        return self._error is not None

    def error(self):
        return self._error

    def output_tensors(self):
        return self._tensors


def get_input_tensor_by_name(request, name):
    return next((tensor for tensor in request.inputs() if tensor.name() == name), None)


def get_output_tensor_by_name(response, name):
    return next((tensor for tensor in response.output_tensors() if tensor.name() == name), None)


class InferenceRequest:
    def __init__(self, model_name, requested_output_names, inputs, preferred_memory=None):
        self.model_name, self.outputs, self._inputs = model_name, requested_output_names, inputs
        # Without it an output may be in GPU memory, where as_numpy() fails.
        assert preferred_memory is not None and preferred_memory.memory_type == TRITONSERVER_MEMORY_CPU

    def inputs(self):
        return self._inputs

    def exec(self):
        config = configs[self.model_name]
        try:
            feeds = check(config, {tensor.name(): tensor.as_numpy() for tensor in self._inputs})
        except ValueError as error:
            return InferenceResponse(error=TritonError(str(error)))
        unknown = set(self.outputs) - {output["name"] for output in config["output"]}
        assert not unknown, unknown
        if self.model_name not in sessions:
            path = repository / self.model_name / "1" / "model.onnx"
            # Small networks load longer than they run.
            options = onnxruntime.SessionOptions()
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.intra_op_num_threads = 1
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            sessions[self.model_name] = session
        calls.append(self.model_name)
        results = sessions[self.model_name].run(self.outputs, feeds)
        return InferenceResponse([Tensor(*pair) for pair in zip(self.outputs, results)])


def check(config, arrays):
    """The arrays as the backend gets them."""
    most = config.get("maxBatchSize", 0)
    feeds = {}
    known = {given["name"]: given for given in config["input"]}
    if set(arrays) - set(known):
        raise ValueError(f"unexpected inputs {set(arrays) - set(known)}")
    for name, given in known.items():
        if name not in arrays:
            if given.get("optional"):
                continue
            raise ValueError(f"expected the input '{name}'")
        array = arrays[name]
        if array.dtype != TYPES[given["dataType"]]:
            raise ValueError(f"'{name}' is {array.dtype}, expected {given['dataType']}")
        shape, dims = list(array.shape), [int(dim) for dim in given["dims"]]
        batch = []
        if most > 0:
            if not shape or shape[0] > most:
                raise ValueError(f"'{name}' has shape {shape}, the largest batch is {most}")
            batch, shape = shape[:1], shape[1:]
        if len(shape) != len(dims) or any(dim not in (-1, size) for size, dim in zip(shape, dims)):
            raise ValueError(f"'{name}' has shape {shape}, expected {dims}")
        if "reshape" in given:
            assert not given["reshape"].get("shape"), "only scalars are reshaped"
            array = array.reshape(batch)
        elif given.get("scalar"):
            array = array.reshape(())
        feeds[name] = array
    return feeds
