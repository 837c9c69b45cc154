"""Long calls let other threads of Python run."""

import json
import sys
import threading
import time

import crdiff
import crdiff.search
import pytest

PRUNE = {"version": 1, "crdiff": {"down": 0.3, "mid": 0.5, "up": 0.1}, "amplify": {"weight": 1.5}}
SPACE = {
    "version": 1,
    "variables": {"w": {"number": [0, 2]}},
    "plan": {**PRUNE, "amplify": {"weight": "$w"}},
    "prompts": ["the cat"],
    "sampling": {"size": "32x32", "steps": 1},
    "objective": {"command": ["sh", "-c", "wc -c < \"$0\"", "{image}"]},
}


@pytest.fixture
def ticks():
    """Counts how often another thread runs, where the interpreter never makes this one wait: only calls let it."""
    count, done = [0], threading.Event()

    def tick():
        while not done.is_set():
            count[0] += 1
            time.sleep(0)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e6)
    other = threading.Thread(target=tick, daemon=True)
    other.start()
    yield lambda: count[0]
    done.set()
    other.join()
    sys.setswitchinterval(interval)


def made(fixtures, tmp_path):
    """Calls without anything that is done once."""
    unet, output = fixtures / "sd15-mini/torchscript/unet.onnx", tmp_path / "out.onnx"
    folder, plan = fixtures / "pipelines/sd15", crdiff.Plan.parse("plan", json.dumps(PRUNE))
    crdiff.compile(unet, plan, output)
    pipe = crdiff.Pipeline(folder, plan, engine="rten")
    trials = crdiff.search.Trials(folder, SPACE, engine="rten")
    return {
        "compile": lambda: crdiff.compile(unet, plan, output),
        "verify": lambda: crdiff.verify(unet, output, plan),
        "diff": lambda: crdiff.diff(unet, output),
        "digest": lambda: crdiff.digest(unet),
        "inspect": lambda: crdiff.inspect(unet),
        "print": lambda: crdiff.print(unet),
        "pipeline": lambda: pipe("x", 32, 32, num_inference_steps=1, seed=0, output_type="latent"),
        "trial": lambda: trials({"w": 1.5}),
    }


def test_the_gil_is_released(fixtures, tmp_path, ticks):
    calls = made(fixtures, tmp_path)

    def runs_beside(call):
        for _ in range(200):
            before = ticks()
            call()
            if ticks() > before:
                return True
        return False

    for name, call in calls.items():
        call()
        assert runs_beside(call), name
    # It runs beside nothing that holds on to the GIL.
    assert not runs_beside(lambda: sorted(range(10_000)))
