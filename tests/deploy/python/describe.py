"""What ONNX Runtime says of models: describe.py MODEL... prints a list of their inputs and outputs as JSON."""

import json
import sys

import onnxruntime


def describe(model):
    options = onnxruntime.SessionOptions()
    # Shapes are inferred at every level, and nothing is to be run.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    infos = {"inputs": session.get_inputs(), "outputs": session.get_outputs()}
    return {key: [{"name": i.name, "type": i.type, "shape": i.shape} for i in infos[key]] for key in infos}


print(json.dumps([describe(model) for model in sys.argv[1:]]))
