"""Runs a model of Triton's Python backend: run_bls.py REQUEST.json; ../pipeline.rs says what is in it."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import triton_python_backend_utils as pb_utils

request = json.loads(Path(sys.argv[1]).read_text())
repository, name = Path(request["repository"]), request["model"]
pb_utils.serve(repository, request["configs"])
spec = importlib.util.spec_from_file_location("model", repository / name / "1" / "model.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
model = module.TritonPythonModel()
model.initialize({"model_name": name, "model_config": json.dumps(request["configs"][name])})

config = request["configs"][name]
for run in request["runs"]:
    inputs = {
        key: np.array(given["values"], pb_utils.TYPES[given["type"]]).reshape(given["dims"])
        if "values" in given
        else np.load(given["file"])
        for key, given in run["inputs"].items()
    }
    pb_utils.check(config, inputs)
    asked = pb_utils.InferenceRequest(name, [], [], pb_utils.PreferredMemory(0))
    asked._inputs = [pb_utils.Tensor(*pair) for pair in inputs.items()]
    del pb_utils.calls[:]
    [response] = model.execute([asked])
    answer = {"calls": pb_utils.calls}
    if response.has_error():
        answer["error"] = response.error().message()
    else:
        for output in config["output"]:
            array = pb_utils.get_output_tensor_by_name(response, output["name"]).as_numpy()
            dims = [int(dim) for dim in output["dims"]]
            assert array.dtype == pb_utils.TYPES[output["dataType"]], output
            assert len(dims) == array.ndim and all(d in (-1, n) for d, n in zip(dims, array.shape)), output
            np.save(f"{run['output']}.{output['name']}.npy", np.ascontiguousarray(array))
    Path(f"{run['output']}.json").write_text(json.dumps(answer))
