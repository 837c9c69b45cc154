"""What the sections have in common: programs that are run, folders, results."""

import json
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
FIXTURES = HERE.parent.parent / "fixtures"
PLANS = {
    "mid": "version: 1\namplify: {weight: 1.5}\nrules: [{bypass: mid_block}]\n",
    "up3": "version: 1\namplify: {weight: 1.5}\nrules:\n  - {bypass: ['up_blocks.3.attentions.*', 'up_blocks.3.resnets.*']}\n",
    "crdiff": "version: 1\namplify: {weight: 1.5}\ncrdiff: {down: 0.2, mid: 0.2, up: 0.2}\n",
    "every": "version: 1\namplify: {weight: 1.5, every: 3}\nrules: [{bypass: mid_block}]\n",
    "cond": "version: 1\namplify: {weight: 1.5, on: cond}\nrules: [{bypass: mid_block}]\n",
}
GRAPHS = {"no": [], "yes": ["--provider-option", "enable_cuda_graph=1"]}
EXACT = ["--provider-option", "use_tf32=0"]


class Base:
    def __init__(self, args):
        self.args, self.started = args, time.monotonic()
        self.out, self.work = args.out, args.work
        for folder in (self.out, self.work):
            folder.mkdir(parents=True, exist_ok=True)
        self.results, self.lock = self.out / "results.jsonl", self.work / "gpu.lock"
        self.environment = dict(os.environ, XDG_CACHE_HOME=str(self.work / "cache"), HOME=str(self.work))
        # The driver's folder stays on the search path; CUDA's, if it is there, would hide what is looked at here.
        self.driver = [
            path
            for path in os.environ.get("LD_LIBRARY_PATH", "").split(":")
            if list(Path(path or ".").glob("libcuda.so*"))
        ]
        self.search()
        self.site = self.work / "env/lib/python3/site-packages"
        self.guard = threading.Lock()
        self.size = "32x32" if args.tiny else "256x256"  # the VAE enlarges four times
        self.provider = [] if args.tiny else ["--provider", "cuda"]

    def search(self, folders=()):
        """The environment with these folders of libraries, and for the processes from now on."""
        path = ":".join([*map(str, folders), *self.driver])
        self.environment.pop("LD_LIBRARY_PATH", None)
        if path:
            self.environment["LD_LIBRARY_PATH"] = path
        return dict(self.environment)

    def left(self):
        return self.args.seconds - (time.monotonic() - self.started)

    def tell(self, section, **row):
        line = json.dumps({"section": section, "at": round(time.monotonic() - self.started, 1), **row})
        with self.guard, open(self.results, "a") as file:
            file.write(line + "\n")
        print(line if len(line) < 1500 else line[:1500] + "...", flush=True)

    def call(self, command, timeout=60, environment=None):
        """Runs a command; (status, stdout, stderr, seconds). A status of None: it took too long."""
        begun = time.monotonic()
        timeout = max(1.0, min(timeout, self.left()))
        try:
            done = subprocess.run(
                [str(part) for part in command],
                capture_output=True,
                text=True,
                timeout=timeout,
                env=environment or self.environment,
                errors="replace",
            )
            return done.returncode, done.stdout, done.stderr, time.monotonic() - begun
        except OSError as error:
            return None, "", str(error), 0.0
        except subprocess.TimeoutExpired as error:
            return None, "", f"longer than {timeout:.0f} s; {error.stderr or ''}"[-2000:], timeout

    def crdiff(self, *arguments, provider=True, timeout=60, environment=None, program=None):
        engine = ["--ort-lib", self.library(), *(self.provider if provider else [])]
        if self.args.tiny:
            arguments = [a for a in without_options(arguments)]
        return self.call([program or self.args.crdiff, *arguments, *engine], timeout, environment)

    def library(self):
        return self.site / "onnxruntime/capi"

    # Folders ----------------------------------------------------------------------------------------

    def lay_out(self):
        """A Python environment as pip makes it: ONNX Runtime beside NVIDIA's wheels; and the library alone."""
        for folder in (self.library(), self.work / "alone"):
            folder.mkdir(parents=True, exist_ok=True)
            for file in self.args.ort_lib.glob("libonnxruntime*.so*"):
                if not (folder / file.name).exists():
                    shutil.copyfile(file, folder / file.name)
        link = self.site / "nvidia"
        if self.args.nvidia and not link.exists():
            link.symlink_to(self.args.nvidia.resolve())

    def pipeline(self, name, unet=None):
        """A copy of a fixture's pipeline, with another UNet if one is named."""
        folder = (
            self.work / "pipelines" / (name.replace("/", "-") + ("" if unet is None else f"+{unet.parent.name}"))
        )
        if folder.exists():
            return folder
        ignore = shutil.ignore_patterns("golden")
        if name == "lcm":
            shutil.copytree(FIXTURES / "pipelines/sd15", folder, ignore=ignore)
        source = FIXTURES / ("shapes/pipeline" if name == "shapes" else f"pipelines/{name}")
        shutil.copytree(source, folder, ignore=ignore, dirs_exist_ok=True)
        if unet is not None:
            (folder / "unet/model.onnx").unlink()
            for file in unet.parent.iterdir():
                target = folder / "unet" / ("model.onnx" if file == unet else file.name)
                (shutil.copytree if file.is_dir() else shutil.copyfile)(file, target)
        return folder

    def plan(self, name, text=None):
        path = self.work / f"{name}.yaml"
        path.write_text(text or PLANS[name])
        return path

    def compile(self, model, plan, emit, output):
        status, out, err, seconds = self.call(
            [self.args.crdiff, "compile", model, plan, "--emit", emit, "-o", output, "--quiet"], 120
        )
        if status != 0:
            raise RuntimeError(f"crdiff compile: {out}{err}")
        return seconds


def fit_text(folder, width):
    """Repeats or cuts the states of a small text encoder to the width that a network takes."""
    import onnx
    from onnx import TensorProto, helper

    path = folder / "text_encoder/model.onnx"
    model = onnx.load(path)
    state = model.graph.output[0]
    has = state.type.tensor_type.shape.dim[2].dim_value
    if has == width:
        return
    for node in model.graph.node:
        node.output[:] = ["narrow" if name == state.name else name for name in node.output]
        node.input[:] = ["narrow" if name == state.name else name for name in node.input]
    constants = {"times": [1, 1, -(-width // has)], "from": [0], "to": [width], "axis": [2]}
    for name, values in constants.items():
        model.graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, [len(values)], values))
    model.graph.node.append(helper.make_node("Tile", ["narrow", "times"], ["wide"]))
    model.graph.node.append(helper.make_node("Slice", ["wide", "from", "to", "axis"], [state.name]))
    state.type.tensor_type.shape.dim[2].dim_value = width
    onnx.save(model, path)


def without_options(arguments):
    """Arguments without provider options, which the CPU has none of."""
    arguments = list(arguments)
    while "--provider-option" in arguments:
        at = arguments.index("--provider-option")
        del arguments[at : at + 2]
    return arguments
