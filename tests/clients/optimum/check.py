"""Compares images of Optimum's pipelines that run fused UNets with images of torch pipelines that mix two UNets.

    check.py CRDIFF-COMPILE

For each pipeline of fixtures/pipelines the same networks are built in torch, from the same seed. The ONNX side is a copy
of the fixture in which nothing but unet/model.onnx is replaced, by what `crdiff-compile --emit fused` makes of it. The
torch side wraps the UNet: `dense + w (pruned - dense)`, where the pruned one is edited in torch (fixtures/maker).
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import diffusers
import numpy as np
import optimum.onnxruntime
import torch
import transformers
from torch import nn

FIXTURES = Path(__file__).resolve().parents[3] / "fixtures"
sys.path.insert(0, str(FIXTURES))

import pipelines  # noqa: E402
from maker.bypass import Bypass, bypassed  # noqa: E402
from maker.prune import paper_rules, pruned  # noqa: E402

WEIGHT = 1.5
TOLERANCE = 1e-4
# What the amplification has to change at least, so that a UNet that was not replaced is noticed.
CHANGE = 1e-2
RATIOS = {"down": 0.3, "mid": 0.5, "up": 0.1}
BYPASS = {"sd15": ["mid_block.attentions.0", "up_blocks.1.resnets.1"], "sdxl": ["mid_block", "up_blocks.1.resnets.1"]}
SIZES = ((48, 64), (40, 72))
KINDS = {"sd15": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline"}


def plans(name: str, unet: nn.Module) -> dict[str, tuple[dict[str, Any], nn.Module]]:
    """Each plan, and the network that torch makes of it."""
    masked = pruned(unet, paper_rules(unet, RATIOS)).model
    bypasses = [Bypass(tuple(BYPASS[name]))]
    return {
        "crdiff": ({"crdiff": RATIOS}, masked),
        "bypass": ({"rules": [{"bypass": BYPASS[name]}]}, bypassed(unet, bypasses)),
        "both": ({"crdiff": RATIOS, "rules": [{"bypass": BYPASS[name]}]}, bypassed(masked, bypasses)),
    }


def images(pipe: Any) -> np.ndarray:
    """Pictures of several sizes, all values in one array."""
    pipe.set_progress_bar_config(disable=True)
    made = []
    for height, width in SIZES:
        # numpy's numbers, because the two diffusers pipelines need not draw theirs in the same way.
        latents = np.random.default_rng(7).standard_normal((1, 4, height // 4, width // 4), dtype=np.float32)
        made.append(pipe(
            prompt=pipelines.PROMPT, negative_prompt=pipelines.NEGATIVE, height=height, width=width,
            num_inference_steps=8, guidance_scale=5.0, latents=torch.from_numpy(latents), output_type="np",
        ).images.ravel())  # fmt: skip
    return np.concatenate(made)


def check(name: str, compiler: str, work: Path) -> bool:
    saved, exported = work / f"{name}-torch", work / name
    pipelines.PIPELINES[name](saved)
    shutil.copytree(FIXTURES / "pipelines" / name, exported, ignore=shutil.ignore_patterns("golden"))
    original = (exported / "unet" / "model.onnx").read_bytes()
    (work / "dense.onnx").write_bytes(original)

    torch_pipe = getattr(diffusers, KINDS[name]).from_pretrained(saved)
    onnx_kind = getattr(optimum.onnxruntime, f"ORT{KINDS[name]}")
    dense = images(torch_pipe)
    kept = report(f"{name} dense", images(onnx_kind.from_pretrained(exported)), dense, None)
    networks, forward = plans(name, torch_pipe.unet), torch_pipe.unet.forward
    for plan_name, (plan, other) in networks.items():
        path = work / "plan.yaml"
        path.write_text(json.dumps({"version": 1, **plan, "amplify": {"weight": WEIGHT}}))
        model = exported / "unet" / "model.onnx"
        subprocess.run(
            [compiler, work / "dense.onnx", path, "--emit", "fused", "-o", model, "--quiet"], check=True
        )

        def mixed(*args: Any, other: nn.Module = other, **kwargs: Any) -> tuple[torch.Tensor]:
            one, two = forward(*args, **kwargs)[0], other(*args, **kwargs)[0]
            return (one + WEIGHT * (two - one),)

        torch_pipe.unet.forward = mixed
        kept &= report(
            f"{name} {plan_name}", images(onnx_kind.from_pretrained(exported)), images(torch_pipe), dense
        )
    return kept


def report(case: str, found: np.ndarray, expected: np.ndarray, dense: np.ndarray | None) -> bool:
    difference = float(np.abs(found - expected).max())
    change = None if dense is None else float(np.abs(expected - dense).max())
    good = bool(difference <= TOLERANCE and (change is None or change >= CHANGE))
    made = "" if change is None else f"{change:.3f}"
    print(f"| {case} | {difference:.1e} | {made} | {'ok' if good else 'FAILED'} |", flush=True)
    return good


def main() -> None:
    logging.disable(logging.WARNING)
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    packages = ("torch", "diffusers", "transformers", "optimum", "optimum-onnx", "onnxruntime")
    print(", ".join(f"{package} {version(package).split('+')[0]}" for package in packages))
    print(f"\n| | largest difference from torch | of amplification | at most {TOLERANCE:g} |\n|---|---:|---:|---|")
    with torch.no_grad(), tempfile.TemporaryDirectory() as work:
        results = [check(name, os.path.abspath(sys.argv[1]), Path(work)) for name in KINDS]
    if not all(results):
        raise SystemExit("Optimum with a fused UNet does not make the image of torch")


if __name__ == "__main__":
    main()
