"""Runs a model as anyone would with Python's onnxruntime: run.py REQUEST.json; ../main.rs says what is in it."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

request = json.loads(Path(sys.argv[1]).read_text())
session = onnxruntime.InferenceSession(request["model"], providers=["CPUExecutionProvider"])
for run in request["runs"]:
    feed = {
        name: np.fromfile(given["file"], given["type"]).reshape(given["dims"])
        for name, given in run["inputs"].items()
    }
    [output] = session.run(None, feed)
    output.tofile(run["output"])
print(json.dumps({
    "version": onnxruntime.__version__,
    "inputs": [info.name for info in session.get_inputs()],
    "outputs": [info.name for info in session.get_outputs()],
}))
