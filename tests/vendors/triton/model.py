"""A Python-based backend of Triton that takes the place of its onnxruntime backend: runs `1/model.onnx` in ONNX Runtime.

As the real one it joins the requests of a call along the batch, which the server has let it have together.
"""

import json
import os

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        path = os.path.join(args["model_repository"], args["model_version"], "model.onnx")
        # Small networks load longer than they run.
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.joins = json.loads(args["model_config"])["max_batch_size"] > 0

    def execute(self, requests):
        given = [
            [pb_utils.get_input_tensor_by_name(request, one.name).as_numpy() for request in requests]
            for one in self.session.get_inputs()
        ]
        if self.joins:
            rows = [len(array) for array in given[0]]
            outputs = self.run([np.concatenate(arrays) for arrays in given])
            parts = zip(*(np.split(output, np.cumsum(rows)[:-1]) for output in outputs))
        else:
            parts = [self.run(arrays) for arrays in zip(*given)]
        return [self.answer(part) for part in parts]

    def run(self, arrays):
        known = self.session.get_inputs()
        fed = {one.name: array if one.shape else array.reshape(()) for one, array in zip(known, arrays)}
        return self.session.run(None, fed)

    def answer(self, arrays):
        names = [one.name for one in self.session.get_outputs()]
        return pb_utils.InferenceResponse([pb_utils.Tensor(*pair) for pair in zip(names, arrays)])
