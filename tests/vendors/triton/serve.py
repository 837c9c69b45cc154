"""Runs Triton's server on a repository, and requests over HTTP: serve.py REQUEST.json; ../triton.rs says what is in it."""

import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

import numpy as np

TYPES = {"FP16": np.float16, "FP32": np.float32, "INT32": np.int32, "INT64": np.int64, "UINT8": np.uint8}
PATIENCE = 120


def backends(server, packages, folder):
    """A folder of backends: Python's, for this Python, with these packages, and one in place of onnxruntime's."""
    python = folder / "python"
    shutil.copytree(server / "backends/python", python)
    stub = "triton_python_backend_stub"
    shutil.copy(server / "python_backend_stubs/{}.{}".format(*sys.version_info) / stub, python)
    # Python looks for packages of its own only.
    for package in packages.iterdir():
        if package.name.startswith(("numpy", "onnxruntime")):
            (python / package.name).symlink_to(package)
    (folder / "onnxruntime").mkdir()
    shutil.copy(Path(__file__).with_name("model.py"), folder / "onnxruntime")


def call(address, method, path, body=None, headers=()):
    connection = HTTPConnection(*address, timeout=PATIENCE)
    connection.request(method, path, body, dict(headers))
    response = connection.getresponse()
    return response.status, response.headers, response.read()


def infer(address, model, inputs):
    """The outputs by name, or an error, by KServe's protocol with tensors as bytes."""
    described, tensors = [], []
    for name, given in inputs.items():
        if "file" in given:
            array = np.load(given["file"])
        else:
            array = np.array(given["values"], TYPES[given["type"].removeprefix("TYPE_")]).reshape(given["dims"])
        kind = next(name for name, kind in TYPES.items() if kind == array.dtype)
        size = {"binary_data_size": array.nbytes}
        described.append({"name": name, "shape": array.shape, "datatype": kind, "parameters": size})
        tensors.append(array.tobytes())
    header = json.dumps({"inputs": described, "parameters": {"binary_data_output": True}}).encode()
    length = "Inference-Header-Content-Length"
    headers = [(length, str(len(header)))]
    body = b"".join([header, *tensors])
    status, headers, answer = call(address, "POST", f"/v2/models/{model}/infer", body, headers)
    if status != 200:
        return {"error": json.loads(answer)["error"]}, {}
    at = int(headers[length])
    outputs = {}
    for one in json.loads(answer[:at])["outputs"]:
        size = one["parameters"]["binary_data_size"]
        outputs[one["name"]] = np.frombuffer(answer[at : at + size], TYPES[one["datatype"]]).reshape(one["shape"])
        at += size
    assert at == len(answer)
    return {}, outputs


def statistics(address):
    """How often each model ran, for how many rows."""
    _, _, answer = call(address, "GET", "/v2/models/stats")
    models = json.loads(answer)["model_stats"]
    return {one["name"]: [one["execution_count"], one["inference_count"]] for one in models}


def run(address, asked):
    """Runs requests one after the other; those in a list are sent at once."""
    for group in asked["runs"]:
        before = statistics(address)
        with ThreadPoolExecutor(len(group)) as pool:
            answers = list(pool.map(lambda run: infer(address, run["model"], run["inputs"]), group))
        after = statistics(address)
        calls = {name: [b - a for a, b in zip(before[name], after[name])] for name in after}
        for one, (said, outputs) in zip(group, answers):
            for name, array in outputs.items():
                np.save(f"{one['output']}.{name}.npy", array)
            Path(f"{one['output']}.json").write_text(json.dumps(said | {"calls": calls}))


def main():
    asked = json.loads(Path(sys.argv[1]).read_text())
    packages = Path(asked["packages"])
    server = packages / "pytriton/tritonserver"
    # Copies don't find them by themselves.
    libraries = packages / "nvidia_pytriton.libs"
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        backends(server, packages, Path(folder))
        free.bind(("127.0.0.1", 0))
        address = free.getsockname()
        free.close()
        log = open(Path(folder) / "log", "w+")
        started = subprocess.Popen(
            [server / "bin/tritonserver", f"--model-repository={asked['repository']}"]
            + [f"--backend-directory={folder}", f"--http-port={address[1]}"]
            + ["--http-address=127.0.0.1", "--allow-grpc=false", "--allow-metrics=false"],
            stdout=log,
            stderr=log,
            env=os.environ | {"LD_LIBRARY_PATH": f"{libraries}:{sysconfig.get_config_var('LIBDIR')}"},
        )
        try:
            wait(started, address)
            run(address, asked)
        except Exception:
            log.seek(0)
            sys.stderr.write(log.read())
            raise
        finally:
            started.terminate()
            started.wait()


def wait(started, address):
    until = time.monotonic() + PATIENCE
    while True:
        try:
            if call(address, "GET", "/v2/health/ready")[0] == 200:
                return
        except OSError:
            pass
        if started.poll() is not None or time.monotonic() > until:
            raise RuntimeError("Triton does not serve the repository")
        time.sleep(0.05)


main()
