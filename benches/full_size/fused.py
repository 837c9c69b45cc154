#!/usr/bin/env python3
"""Measures fused graphs against dense and pruned network one after the other, in ONNX Runtime on the CPU.

Two processes for each plan, both with default session options: one has the dense and the pruned network loaded, the
other the fused graph. They run in turn, with the same inputs, so that whatever else the machine does falls on both
alike. README.md says what the columns mean.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

from run import HERE, REPOSITORY, python_with_peers

PLANS = {
    "mid_block bypassed": "rules: [{bypass: mid_block}]",
    "up_blocks.3 bypassed": 'rules: [{bypass: ["up_blocks.3.attentions.*", "up_blocks.3.resnets.*"]}]',
    "crdiff 0.2 / 0.2 / 0.2": "crdiff: {down: 0.2, mid: 0.2, up: 0.2}",
}
GIB = 1 << 30


class Worker:
    """A process with the sessions of `models`; its memory is watched from outside."""

    def __init__(self, python, models, args):
        command = [python, HERE / "fused.py", "--worker", *models, "--size", args.size, "--batch", str(args.batch)]
        command += ["--threads", str(args.threads), *(f"--option={option}" for option in args.option)]
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.private_peak = 0
        threading.Thread(target=self._watch, daemon=True).start()
        self.loading = self._answer()["seconds"]

    def _answer(self):
        line = self.child.stdout.readline()
        if not line:
            raise SystemExit("a worker ended: see above")
        return json.loads(line)

    def _watch(self):
        while self.child.poll() is None:
            self.private_peak = max(self.private_peak, self.memory("RssAnon"))
            time.sleep(0.02)

    def memory(self, field):
        """Bytes of `field` of the process's status; 0 once it has ended."""
        try:
            status = Path(f"/proc/{self.child.pid}/status").read_text()
        except OSError:
            return 0
        return next((int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith(field)), 0)

    def run(self):
        self.child.stdin.write("run\n")
        self.child.stdin.flush()
        return self._answer()

    def end(self):
        self.child.stdin.close()
        self.child.wait()


def worker(args):
    """Loads the models, then runs all of them, one after the other, for every line that is read."""
    import numpy as np
    import onnxruntime as ort

    started = time.perf_counter()
    options = ort.SessionOptions()
    options.intra_op_num_threads = args.threads
    for key, value in (option.split("=", 1) for option in args.option):
        options.add_session_config_entry(key, value)
    sessions = [ort.InferenceSession(m, options, providers=["CPUExecutionProvider"]) for m in args.worker]
    print(json.dumps({"seconds": time.perf_counter() - started}), flush=True)
    height, width = map(int, args.size.split("x"))
    rng = np.random.default_rng(0)
    sizes = {"sample": [args.batch, 4, height, width], "encoder_hidden_states": [args.batch, 77, None]}
    kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}
    inputs = {}
    for info in sessions[0].get_inputs():
        if info.name == "timestep":
            inputs[info.name] = np.full([args.batch] * len(info.shape), 500, kinds[info.type])
            continue
        wanted = sizes.get(info.name, [args.batch, None])
        dims = [size or (fixed if isinstance(fixed, int) else 768) for size, fixed in zip(wanted, info.shape)]
        inputs[info.name] = rng.standard_normal(dims, dtype=np.float32).astype(kinds[info.type])
    for _ in sys.stdin:
        before, started = time.process_time(), time.perf_counter()
        outputs = [session.run(None, inputs)[0] for session in sessions]
        wall, cpu = time.perf_counter() - started, time.process_time() - before
        mean = float(np.mean(np.abs(outputs[-1].astype(np.float64))))
        print(json.dumps({"wall": wall, "cpu": cpu, "mean": mean}), flush=True)


def measure(name, plan, model, args, python):
    """Compiles `plan`, runs both ways in turn; returns what was found."""
    folder = model.parent
    path, report = folder / "bench-fused.yaml", folder / "bench-fused.json"
    path.write_text(f"version: 1\n{plan}\namplify: {{weight: 1.5}}\n")
    outputs = {kind: folder / f"bench-fused-{kind}.onnx" for kind in ("pruned", "fused")}
    try:
        for kind, output in outputs.items():
            subprocess.run(
                [args.crdiff, model, path, "--emit", kind, "-o", output, "--weights", "share", "--quiet",
                 "--at", args.size, "--report", report], check=True,
            )
        expected = json.loads(report.read_text())["fused"]
        two = Worker(python, [model, outputs["pruned"]], args)
        fused = Worker(python, [outputs["fused"]], args)
        rounds = []
        for round_ in range(args.repeat + 1):
            pair = {"two": two.run(), "fused": fused.run(), "load": os.getloadavg()[0]}
            print(f"{name} {round_}: two {pair['two']['wall']:.2f} s, fused {pair['fused']['wall']:.2f} s, "
                  f"load {pair['load']:.1f}", file=sys.stderr)
            rounds.append(pair)
        found = {
            "expected": expected["expected_time"],
            "memory": {
                key: {"peak": worker.memory("VmHWM"), "private": worker.private_peak, "loading": worker.loading}
                for key, worker in (("two", two), ("fused", fused))
            },
            "rounds": rounds[1:],
        }
        two.end()
        fused.end()
        return found
    finally:
        for file in folder.glob("bench-fused*"):
            file.unlink()


def table(found):
    lines = [
        "| plan | two runs | fused | ratio | of the processor | expected | private memory | ratio | resident | ratio |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in found.items():
        def median(of, rounds=row["rounds"]):
            return statistics.median(of(pair) for pair in rounds)

        two, fused = row["memory"]["two"], row["memory"]["fused"]

        def memory(key, two=two, fused=fused):
            return f"{two[key] / GIB:.2f}, {fused[key] / GIB:.2f} GiB | {fused[key] / two[key]:.2f}"

        wall, cpu = (median(lambda p, k=k: p["fused"][k] / p["two"][k]) for k in ("wall", "cpu"))
        lines.append(
            f"| {name} | {median(lambda p: p['two']['wall']):.2f} s | {median(lambda p: p['fused']['wall']):.2f} s "
            f"| {wall:.3f} | {cpu:.3f} | {row['expected']:.3f} | {memory('private')} | {memory('peak')} |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="a folder with model.onnx and its data")
    parser.add_argument("--size", default="64x64", help="height x width of the latents [%(default)s]")
    parser.add_argument("--batch", type=int, default=1, help="latents at once [%(default)s]")
    parser.add_argument("--repeat", type=int, default=5, help="rounds that count [%(default)s]")
    parser.add_argument("--threads", type=int, default=0, help="threads of ONNX Runtime [its own choice]")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE",
                        help="a session option of ONNX Runtime, such as session.disable_prepacking=1")
    parser.add_argument("--plan", action="append", choices=PLANS, help="which plans [all]")
    parser.add_argument("--crdiff", type=Path, help="the compiler [built from this repository]")
    parser.add_argument("--json", type=Path, help="write every run here")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args)
        return
    if args.crdiff is None:
        subprocess.run(["cargo", "build", "--release", "--bin", "crdiff-compile"], cwd=REPOSITORY, check=True)
        args.crdiff = REPOSITORY / "target" / "release" / "crdiff-compile"
    python = python_with_peers()
    model = args.folder.resolve() / "model.onnx"
    report = {"processors": os.cpu_count(), "load_before": os.getloadavg(), "options": args.option, "plans": {}}
    for name in args.plan or PLANS:
        report["plans"][name] = measure(name, PLANS[name], model, args, python)
        report["load_after"] = os.getloadavg()
        if args.json:
            args.json.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report["plans"]))


if __name__ == "__main__":
    main()
