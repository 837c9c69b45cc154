#!/usr/bin/env python3
"""diffusers' own network: exports it, and times it eager and compiled. `run.py` starts this.

Random weights and the configuration of Stable Diffusion 1.5; with --tiny a small network of the same kind, on the CPU.
Appends a line of JSON to RESULTS as soon as something is measured.
"""

import argparse
import fcntl
import json
import statistics
import time
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import EulerDiscreteScheduler, UNet2DConditionModel

FOUR_STAGES = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
SD15 = {"cross_attention_dim": 768, "attention_head_dim": 8, "block_out_channels": (320, 640, 1280, 1280)}
TINY = {
    "cross_attention_dim": 32,
    "attention_head_dim": 4,
    "block_out_channels": (16, 32, 32, 32),
    "norm_num_groups": 4,
}
GUIDANCE = 7.5


@contextmanager
def alone(lock):
    """Keeps the device to one process while something is timed."""
    with open(lock, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def network(args):
    torch.manual_seed(0)
    config = TINY if args.tiny else SD15
    model = UNet2DConditionModel(
        sample_size=64, down_block_types=FOUR_STAGES[0], up_block_types=FOUR_STAGES[1], **config
    )
    return model.to(args.device, args.dtype).eval().requires_grad_(False), config["cross_attention_dim"]


def export(model, width, args):
    """As TorchScript's exporter writes it: one file, all sizes dynamic."""
    sample = torch.randn(2, 4, args.size, args.size, device=args.device, dtype=args.dtype)
    text = torch.randn(2, 77, width, device=args.device, dtype=args.dtype)
    names = ["sample", "timestep", "encoder_hidden_states"]
    axes = {
        "sample": {0: "batch", 2: "height", 3: "width"},
        "timestep": {0: "steps"},
        "encoder_hidden_states": {0: "batch", 1: "sequence"},
        "out_sample": {0: "batch", 2: "height", 3: "width"},
    }
    partial = args.export.with_suffix(".partial")
    torch.onnx.export(
        model,
        (sample, torch.tensor([500], device=args.device)),
        str(partial),
        kwargs={"encoder_hidden_states": text, "return_dict": False},
        dynamo=False,
        opset_version=17,
        do_constant_folding=True,
        input_names=names,
        output_names=["out_sample"],
        dynamic_axes=axes,
    )
    partial.rename(args.export)


def synchronize(args):
    if args.device == "cuda":
        torch.cuda.synchronize()


@torch.inference_mode()
def image(call, width, args, steps):
    """Seconds of a denoising loop with guidance, without text encoder and VAE, and of each step of it."""
    scheduler = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    scheduler.set_timesteps(steps, device=args.device)
    text = torch.randn(2, 77, width, device=args.device, dtype=args.dtype)
    latents = (
        torch.randn(1, 4, args.size, args.size, device=args.device, dtype=args.dtype) * scheduler.init_noise_sigma
    )
    synchronize(args)
    started, each = time.perf_counter(), []
    for t in scheduler.timesteps:
        begun = time.perf_counter()
        doubled = scheduler.scale_model_input(torch.cat([latents] * 2), t)
        output = call(doubled, t, encoder_hidden_states=text, return_dict=False)[0]
        unconditional, conditional = output.chunk(2)
        guided = unconditional + GUIDANCE * (conditional - unconditional)
        latents = scheduler.step(guided, t, latents, return_dict=False)[0]
        synchronize(args)
        each.append(time.perf_counter() - begun)
    return time.perf_counter() - started, each


def measure(name, call, width, args):
    warm, _ = image(call, width, args, 3)
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with alone(args.lock):
        runs = [image(call, width, args, args.steps) for _ in range(args.runs)]
    seconds = sorted(total for total, _ in runs)
    steps = [step for _, each in runs for step in each]
    row = {
        "section": "torch",
        "name": name,
        "steps": args.steps,
        "first_three_steps_s": warm,
        "image_s": statistics.median(seconds),
        "images_s": seconds,
        "step_ms": 1e3 * statistics.median(steps),
    }
    if args.device == "cuda":
        row["allocated_peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
        row["reserved_mib"] = torch.cuda.memory_reserved() / 2**20
    tell(row, args)


def tell(row, args):
    with open(args.results, "a") as file:
        file.write(json.dumps(row) + "\n")
    print(row, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--export", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--lock", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--compile", nargs="*", default=["default", "reduce-overhead"])
    args = parser.parse_args()
    args.device, args.dtype, args.size = ("cpu", torch.float32, 8) if args.tiny else ("cuda", torch.float16, 64)

    begun = time.perf_counter()
    model, width = network(args)
    built = time.perf_counter()
    export(model, width, args)
    done = time.perf_counter()
    row = {"section": "torch", "name": "export", "build_s": built - begun, "export_s": done - built}
    tell(row | {"torch": torch.__version__, "mib": args.export.stat().st_size / 2**20}, args)

    measure("eager", model, width, args)
    model = model.to(memory_format=torch.channels_last)
    measure("eager, channels_last", model, width, args)
    for mode in args.compile:
        torch._dynamo.reset()
        compiled = torch.compile(model, mode=mode, fullgraph=True)
        begun = time.perf_counter()
        image(compiled, width, args, 2)
        tell({"section": "torch", "name": f"compiling, {mode}", "seconds": time.perf_counter() - begun}, args)
        measure(f"compiled, {mode}, channels_last", compiled, width, args)


if __name__ == "__main__":
    main()
