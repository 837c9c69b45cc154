"""crdiff run against Optimum's Python pipeline with two UNets, side by side on ONNX Runtime's CPU.

    python compare.py PIPELINE PRUNED --crdiff target/release/crdiff --ort-lib libonnxruntime.so.1.31.1

PIPELINE is a folder as Optimum exports it, PRUNED its UNet compiled with `crdiff compile`. Both run the same library with
the same number of threads, size, steps and guidance, both warm. Rounds alternate, so that whatever else the machine does
falls on both; the medians count. Attention takes memory by the square of the latents' pixels: begin with a small size. Only the sampling is timed: prompts and VAE are the same sessions on both sides.
"""

import argparse
import json
import statistics
import subprocess
import time

import numpy as np
import onnxruntime
import torch
from optimum.onnxruntime import ORTStableDiffusionPipeline


class TwoUnets:
    """Dense and pruned UNet as one: dense + w (pruned - dense).

    Optimum binds a UNet's output over its `sample`: each gets a copy of the sample, and the first output is kept apart
    before the second UNet runs. Otherwise the second one reads what the first one wrote.
    """

    def __init__(self, dense, pruned, weight):
        self.dense, self.pruned, self.weight = dense, pruned, weight
        self.seconds = 0.0

    def __getattr__(self, name):
        return getattr(self.__dict__["dense"], name)

    def __call__(self, sample, timestep, **inputs):
        inputs["return_dict"] = False
        started = time.perf_counter()
        dense = self.dense(sample.clone(), timestep, **inputs)[0].clone()
        pruned = self.pruned(sample.clone(), timestep, **inputs)[0].clone()
        self.seconds += time.perf_counter() - started
        return (dense + self.weight * (pruned - dense),)


def load(folder, threads):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return ORTStableDiffusionPipeline.from_pretrained(
        folder, provider="CPUExecutionProvider", session_options=options
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline")
    parser.add_argument("pruned")
    parser.add_argument("--crdiff", default="crdiff")
    parser.add_argument("--ort-lib", required=True)
    parser.add_argument("--size", type=int, default=64, help="height and width in pixels")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--weight", type=float, default=1.5)
    arguments = parser.parse_args()

    pipeline = load(arguments.pipeline, arguments.threads)
    other = load(arguments.pipeline, arguments.threads).unet
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = arguments.threads
    other.session = onnxruntime.InferenceSession(arguments.pruned, options, providers=["CPUExecutionProvider"])
    unets = TwoUnets(pipeline.unet, other, arguments.weight)
    pipeline.unet = unets
    pipeline.set_progress_bar_config(disable=True)
    shape = (1, 4, arguments.size // pipeline.vae_scale_factor, arguments.size // pipeline.vae_scale_factor)
    latents = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    np.save("latents.npy", latents)

    def optimum():
        unets.seconds = 0.0
        marks = {}

        def step_end(pipe, step, timestep, tensors):
            marks["end"] = time.perf_counter()
            marks["latents"] = tensors["latents"].numpy().copy()
            return tensors

        prepare = pipeline.scheduler.set_timesteps

        def set_timesteps(*args, **kwargs):
            marks["start"] = time.perf_counter()
            return prepare(*args, **kwargs)

        pipeline.scheduler.set_timesteps = set_timesteps
        pipeline(
            "a lighthouse in a storm", height=arguments.size, width=arguments.size, guidance_scale=7.5,
            num_inference_steps=arguments.steps, latents=torch.from_numpy(latents), callback_on_step_end=step_end,
            callback_on_step_end_tensor_inputs=["latents"], output_type="latent",
        )
        pipeline.scheduler.set_timesteps = prepare
        return (marks["end"] - marks["start"]) * 1e3, unets.seconds * 1e3, marks["latents"]

    engine = ["--engine", "ort", "--ort-lib", arguments.ort_lib, "--threads", str(arguments.threads)]
    common = ["--pruned", arguments.pruned, "--size", f"{arguments.size}x{arguments.size}", "--guidance", "7.5"]
    common += ["--steps", str(arguments.steps), "--json"]

    def crdiff_latents():
        command = [arguments.crdiff, "run", arguments.pipeline, *common, *engine, "--weight", str(arguments.weight)]
        command += ["--prompt", "a lighthouse in a storm", "--latents", "latents.npy", "--save-latents", "final.npy"]
        subprocess.run([*command, "-o", "out.png", "--force"], check=True, capture_output=True)
        return np.load("final.npy")

    def crdiff():
        command = [arguments.crdiff, "bench", arguments.pipeline, *common, *engine, "--runs", "1"]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        kind = next(kind for kind in json.loads(output)["kinds"] if kind["name"] == "amplified")
        return kind["sampling_ms"], kind["dense_ms"] + kind["pruned_ms"]

    times = {"optimum": [], "crdiff": []}
    _, _, first = optimum()  # warms up, as `crdiff bench` does
    second = crdiff_latents()
    for _ in range(arguments.rounds):
        times["optimum"].append(optimum()[:2])
        times["crdiff"].append(crdiff())
    print(f"largest difference of final latents: {np.abs(first - second).max():.2e} of {np.abs(first).max():.2f}")
    print(f"{'':8} {'sampling':>10} {'networks':>10} {'outside':>10}   ms, median of {arguments.rounds}")
    for name, runs in times.items():
        total, networks = (statistics.median(run[i] for run in runs) for i in (0, 1))
        print(f"{name:8} {total:10.1f} {networks:10.1f} {total - networks:10.1f}")


if __name__ == "__main__":
    main()
