"""The fixtures of the repository, for tests of the installed package. Nothing here imports torch, and nothing needs to."""

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

FIXTURES = Path(__file__).parents[2] / "fixtures"
CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="session", autouse=True)
def interrupts():
    """Ctrl-C raises, even where the tests were started in the background of a shell, which ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def fixtures():
    return FIXTURES


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """A user's cache of its own for each test."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", os.fspath(folder))
    return folder


@pytest.fixture
def unet(tmp_path):
    """A UNet in a folder of its own."""
    return Path(shutil.copy(FIXTURES / "sd15-mini/torchscript/unet.onnx", tmp_path / "unet.onnx"))


class Golden:
    """The outputs that torch computed from a network, and its inputs."""

    def __init__(self, family):
        folder = FIXTURES / family
        self.model = folder / "torchscript/unet.onnx"
        self.index = json.loads((folder / "golden/index.json").read_text())
        self._inputs = np.load(folder / "golden/inputs.npz")
        self._outputs = np.load(folder / "golden/outputs.npz")
        self.size = self.index["sizes"][0]["name"]

    def inputs(self):
        names = [name.split("/")[1] for name in self._inputs if name.startswith(f"{self.size}/")]
        return {name: self._inputs[f"{self.size}/{name}"] for name in names}

    def output(self, case):
        return self._outputs[f"{case}/{self.size}"]

    def amplified(self, case, weight):
        """dense + w (other - dense), by its definition."""
        dense = self.output("dense").astype(np.float64)
        return dense + weight * (self.output(case) - dense)


@pytest.fixture(scope="session")
def sd15():
    return Golden("sd15")


@pytest.fixture(scope="session")
def mini():
    """A smaller one, each row of whose batch has a timestep of its own."""
    return Golden("sd15-mini")


@pytest.fixture(scope="session")
def sdxl():
    return Golden("sdxl")


@pytest.fixture(params=["sd15", "sdxl"], scope="session")
def pipeline(request):
    """A pipeline's folder, the plan of its goldens, and the goldens of diffusers."""
    folder = FIXTURES / "pipelines" / request.param
    index = json.loads((folder / "golden/index.json").read_text())
    return folder, index, np.load(folder / "golden/golden.npz")
