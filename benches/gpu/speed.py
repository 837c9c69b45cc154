"""Sections about how long a network of full size takes, and how much memory."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time

import numpy as np

from base import GRAPHS, HERE, Base, fit_text
from torch_side import alone


class Speed(Base):
    def start_torch(self):
        self.export = self.work / "export/model.onnx"
        self.export.parent.mkdir(exist_ok=True)
        command = [sys.executable, HERE / "torch_side.py", "--export", self.export, "--results", self.results]
        command += ["--lock", self.lock, "--steps", self.args.steps, "--runs", self.args.runs]
        command += ["--tiny"] if self.args.tiny else []
        log = open(self.out / "torch.log", "w")
        # Its compiler's processes leave cores to what is timed beside it.
        environment = dict(os.environ, TORCHINDUCTOR_COMPILE_THREADS="6")
        self.torch = subprocess.Popen([str(part) for part in command], stdout=log, stderr=log, env=environment)

    def await_export(self):
        while not self.export.exists():
            if self.torch.poll() not in (None, 0) or self.left() < 5:
                raise RuntimeError("torch exported nothing: see torch.log")
            time.sleep(0.2)

    def fuse(self):
        """Starts ONNX Runtime's fusions for GPUs on the original and on what crdiff makes of it."""
        self.await_export()
        self.variants()
        self.fusing = {}
        for name in ("model.onnx", "mid.onnx", "mid.fused.onnx"):
            source = self.full / "unet" / name
            target = self.full_fused / "unet" / name
            log = open(self.out / f"fusions-{name}.log", "w")
            command = [
                sys.executable,
                HERE / "fusions.py",
                source,
                target,
                *(["--float32"] if self.args.tiny else []),
            ]
            self.fusing[name] = (
                subprocess.Popen([str(part) for part in command], stdout=log, stderr=log),
                target,
                time.monotonic(),
            )

    def variants(self):
        """Pipelines around the exported network, and its compiled forms."""
        self.full, self.full_fused = self.work / "full", self.work / "full-fused"
        for folder in (self.full, self.full_fused):
            shutil.copytree(self.pipeline("sd15"), folder, dirs_exist_ok=True)
            for file in (folder / "unet").glob("*.onnx"):
                file.unlink()
            fit_text(folder, 32 if self.args.tiny else 768)
        model = self.full / "unet/model.onnx"
        os.rename(self.export, model)
        seconds = {}
        for name, emit in (
            ("mid", "pruned"),
            ("mid", "fused"),
            ("up3", "pruned"),
            ("up3", "fused"),
            ("crdiff", "pruned"),
        ):
            end = "onnx" if emit == "pruned" else "fused.onnx"
            seconds[f"{name}.{end}"] = self.compile(model, self.plan(name), emit, model.with_name(f"{name}.{end}"))
        self.tell("full", name="compiled", seconds=seconds)

    def bench(self, label, folder, *more, timeout=100, program=None):
        command = [
            "bench",
            folder,
            "--size",
            self.size,
            "--steps",
            self.args.steps,
            "--runs",
            self.args.runs,
            "--json",
            *more,
        ]
        with alone(self.lock):
            status, out, err, seconds = self.crdiff(*command, timeout=timeout, program=program)
        row = {"name": label, "status": status, "seconds": seconds}
        try:
            for kind in json.loads(out)["kinds"]:
                row[kind["name"]] = {
                    key: round(value, 2) for key, value in kind.items() if isinstance(value, (int, float))
                }
        except ValueError:
            row["said"] = (out + err)[-1500:]
        self.tell("full", **row)

    def forms(self, name):
        unet = self.full / "unet"
        return [
            "--plan",
            self.plan(name),
            "--pruned",
            unet / f"{name}.onnx",
            "--fused",
            unet / f"{name}.fused.onnx",
        ]

    def speed(self):
        self.bench("mid_block bypassed, CUDA graphs", self.full, *self.forms("mid"), *GRAPHS["yes"])
        self.bench("mid_block bypassed", self.full, *self.forms("mid"))

    def speed_more(self):
        unet = self.full / "unet"
        self.bench("up_blocks.3 bypassed, CUDA graphs", self.full, *self.forms("up3"), *GRAPHS["yes"])
        if self.args.before:
            self.bench("another build", self.full, program=self.args.before)
        self.bench(
            "every third step amplified, CUDA graphs",
            self.full,
            "--plan",
            self.plan("every"),
            "--pruned",
            unet / "mid.onnx",
            *GRAPHS["yes"],
        )
        self.bench("prefer_nhwc, CUDA graphs", self.full, "--provider-option", "prefer_nhwc=1", *GRAPHS["yes"])
        self.bench(
            "crdiff 0.2, CUDA graphs",
            self.full,
            "--plan",
            self.plan("crdiff"),
            "--pruned",
            unet / "crdiff.onnx",
            *GRAPHS["yes"],
        )

    def speed_fused(self):
        for name, (child, target, begun) in self.fusing.items():
            try:
                status = child.wait(timeout=max(1, self.left() - 30))
            except subprocess.TimeoutExpired:
                child.kill()
                status = None
            size = target.stat().st_size / 2**20 if target.exists() else None
            self.tell(
                "fusions",
                name=name,
                status=status,
                mib=size,
                log=(self.out / f"fusions-{name}.log").read_text()[-1500:],
            )
        unet = self.full_fused / "unet"
        options = ["--plan", self.plan("mid"), "--pruned", unet / "mid.onnx"]
        options += ["--fused", unet / "mid.fused.onnx"] if (unet / "mid.fused.onnx").exists() else []
        self.bench("ONNX Runtime's fusions, CUDA graphs", self.full_fused, *options, *GRAPHS["yes"])
        self.bench("ONNX Runtime's fusions", self.full_fused, *options)

    def memory(self):
        """The most GPU memory of a run of each kind in a process of its own, and how far their latents are apart."""
        unet, latents = self.full / "unet", {}
        pair = ["--plan", self.plan("mid"), "--pruned", unet / "mid.onnx"]
        for name, more in {
            "dense": ["--dense"],
            "two sessions": pair,
            "fused": ["--fused", unet / "mid.fused.onnx"],
            "dense, CUDA graphs": ["--dense", *GRAPHS["yes"]],
            "two sessions, CUDA graphs": [*pair, *GRAPHS["yes"]],
            "two sessions, kSameAsRequested": [
                *pair,
                "--provider-option",
                "arena_extend_strategy=kSameAsRequested",
            ],
        }.items():
            file = self.work / "memory.npy"
            command = [
                "run",
                self.full,
                *more,
                "--prompt",
                "the cat",
                "--seed",
                1,
                "--size",
                self.size,
                "--steps",
                6,
                "--json",
            ]
            with alone(self.lock), Watch() as watch:
                status, out, err, seconds = self.crdiff(
                    *command, "-o", self.work / "memory.png", "--save-latents", file
                )
            row = {"status": status, "seconds": seconds, "peak_mib": watch.peak, "before_mib": watch.before}
            if status == 0:
                latents[name] = np.load(file)
                row["largest"] = float(np.abs(latents[name]).max())
                for other in ("dense", "two sessions"):
                    if other in latents:
                        row[f"from {other}"] = float(np.abs(latents[name] - latents[other]).max())
            else:
                row["said"] = (out + err)[-800:]
            self.tell("memory", name=name, **row)

    def wait_for_torch(self):
        try:
            elapsed = time.monotonic() - self.started
            self.torch.wait(timeout=max(1, min(self.args.torch_seconds - elapsed, self.left())))
        except subprocess.TimeoutExpired:
            self.torch.kill()
            self.tell("torch", name="stopped: took too long")


class Watch:
    """The device's memory in use, looked at every 20 ms."""

    def __enter__(self):
        self.peak = self.before = None
        try:
            import pynvml

            pynvml.nvmlInit()
            device = pynvml.nvmlDeviceGetHandleByIndex(0)
            self.used = lambda: pynvml.nvmlDeviceGetMemoryInfo(device).used / 2**20
            self.peak = self.before = self.used()
        except Exception:  # no driver, no library: memory stays unknown
            return self
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.look)
        self.thread.start()
        return self

    def look(self):
        while not self.stop.wait(0.02):
            self.peak = max(self.peak, self.used())

    def __exit__(self, *_):
        if self.peak is not None:
            self.stop.set()
            self.thread.join()
