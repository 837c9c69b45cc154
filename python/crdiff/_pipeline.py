"""From a prompt to images."""

from __future__ import annotations

import logging
import operator
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from crdiff import _crdiff
from crdiff._compiler import PlanLike, Progress, as_plan, as_progress
from crdiff._engine import (
    Compiled,
    Memory,
    Provider,
    array,
    engine_options,
    from_native,
    optional_array,
)

__all__ = ["Interleave", "Pipeline", "PipelineOutput"]

log = logging.getLogger("crdiff")

Events = Callable[[str, Any], None]


def _loading(progress: Progress) -> Events:
    """Returns the listener for compiling plans and opening models."""
    advance = as_progress(progress)

    def listener(name: str, value: Any) -> None:
        if name == "notice":
            log.info("%s", value)
        elif advance is not None:
            advance(name, value)

    return listener


class PipelineOutput:
    """The images of a call, and the latents and seeds behind them.

    Attributes:
        images: as `output_type` says: a list of `PIL.Image.Image`; an array `[batch, height, width, 3]` of float32 from 0
            to 1; or the latents.
        latents: the final latents, before the VAE: `[batch, channels, height, width]`, float32.
        seeds: the seeds that were used; the same ones make the same images.
        scheduler: the scheduler that ran.
        timings: where the time went, in seconds, and how often the `dense` and the `pruned` network ran.
    """

    def __init__(self, images: Any, latents: Any, seeds: list[int], scheduler: str, timings: dict[str, float]):
        self.images, self.latents, self.seeds = images, latents, seeds
        self.scheduler, self.timings = scheduler, timings

    def __repr__(self) -> str:
        return f"PipelineOutput({len(self.images)} images, seeds={self.seeds}, scheduler={self.scheduler!r})"


class _Networks:
    """The networks of a plan on an engine: the arguments that `Pipeline` and `Interleave` have in common."""

    _native: Any
    _open: Callable[..., Any]

    def __init__(
        self,
        path: str | os.PathLike[str],
        plan: PlanLike | None = None,
        *,
        device: str | None = None,
        providers: Sequence[Provider] | None = None,
        provider_options: Mapping[str, Any] | None = None,
        provider_libraries: Mapping[str, str | os.PathLike[str]] | None = None,
        engine: str | None = None,
        library: str | os.PathLike[str] | None = None,
        memory: Memory = "fast",
        threads: int | None = None,
        compiled: Compiled = "cache",
        progress: Progress = None,
    ):
        self._native = self._open(
            path,
            None if plan is None else as_plan(plan),
            engine=engine_options(
                engine, library, providers, memory, threads, device, provider_options, provider_libraries
            ),
            compiled=compiled,
            listener=_loading(progress),
        )
        log.info("%s", self._native.engine)

    @property
    def engine(self) -> str:
        """The engine that runs, and why it."""
        engine: str = self._native.engine
        return engine


class Pipeline(_Networks):
    """A pipeline's folder, as Optimum exports it, and a plan: `Pipeline("sd15-onnx", "plan.yaml")("a lighthouse").images[0]`.

    The dense and the pruned network are mixed as the plan's `amplify` says, in this package's own loop; neither torch nor
    diffusers is needed. Networks are loaded when they first run, and kept. Calls from several threads take turns.

    Args:
        path: the pipeline's folder: Stable Diffusion 1 and 2, SDXL, and their turbo and consistency descendants.
        plan: a file, a YAML text, or a dict; `None` runs the pipeline as it is. It is compiled on first use.
        device: a word that stands for a provider and its options: `"cpu"`, `"gpu"`, `"npu"`, or a provider's name. What is not
            there is an error.
        providers: ONNX Runtime's execution providers, the preferred one first, by its names (`"CUDAExecutionProvider"`) or
            short ones (`"cuda"`), or pairs of a name and options. By default those of the plan's `runtime`, whose options
            count for each provider that runs, after those that are given.
        provider_options: options of providers, of the first one unless the key names another: `{"cuda.device_id": 1}`.
        provider_libraries: plug-in libraries of providers, files by names of your choice.
        engine: `"ort"` or `"rten"`; by default ONNX Runtime where it is found, else rten, which is compiled in.
        library: the ONNX Runtime library, or its folder. By default that of the installed `onnxruntime`.
        memory: `"low"` has both networks share their weights in memory, and branches run in turn; slower.
        threads: threads within an operator; by default one a core.
        compiled: where the compiled plan is kept: `"cache"` is the user's cache, with a copy of the network beside it;
            `"beside"` is beside the network, whose weights it shares.
        progress: as in `compile`, while the plan is compiled.

    Raises:
        PlanError: the plan is wrong or does not fit the network.
        ModelError: the folder is no pipeline, or a file in it is wrong.
        EngineError: the engine that was asked for is not there.
    """

    _native: _crdiff.Pipeline
    _open = staticmethod(_crdiff.Pipeline.open)

    @property
    def default_size(self) -> tuple[int, int]:
        """Height and width of images by default, in pixels."""
        return self._native.default_size

    def __call__(
        self,
        prompt: str | Sequence[str],
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: Any = None,
        latents: Any = None,
        output_type: Literal["pil", "np", "latent"] = "pil",
        callback_on_step_end: Callable[[Pipeline, int, float, dict[str, Any]], Any] | None = None,
        *,
        seed: int | Sequence[int] | None = None,
        guidance_rescale: float = 0.0,
        clip_skip: int | None = None,
        scheduler: str | None = None,
        weight: float | None = None,
        tile: bool = False,
        callback_on_preview: Callable[[Pipeline, int, int, Any], Any] | None = None,
        preview_steps: int = 5,
        progress: Progress = None,
    ) -> PipelineOutput:
        """Makes images. Names and meanings are those of diffusers' pipelines, and so are the images of a seed.

        Args:
            prompt: what to draw; several prompts are one batch.
            height: of the images, in pixels; by default what the network was made for.
            width: of the images, in pixels.
            num_inference_steps: steps of the sampler.
            guidance_scale: classifier-free guidance; none up to 1.
            negative_prompt: what to stay away from; of several prompts one for all, or one for each.
            num_images_per_prompt: how many images of each prompt; those of a prompt follow each other.
            eta: the share of fresh noise in DDIM.
            generator: a `torch.Generator` on the CPU, freshly seeded, or a list of one an image: its seed is used.
            latents: the first latents instead of random ones: `[batch, channels, height / 8, width / 8]`, standard normal.
            output_type: what `images` is: `"pil"`, `"np"` or `"latent"`, for which the VAE does not run.
            callback_on_step_end: called with the pipeline, the step from 0, the timestep and an empty dict when the
                networks have first run for a step. What it returns doesn't matter; what it raises stops the run.
            seed: a seed, or one for each image; a random one by default, which `seeds` of the output tells.
            guidance_rescale: as in diffusers.
            clip_skip: layers of the text encoders to leave out at their end (SDXL).
            scheduler: another scheduler than the pipeline's, by the names of `crdiff run --scheduler`.
            weight: w, instead of the plan's `amplify.weight`: 0 is the dense network, 1 the pruned one.
            tile: decode large images in tiles.
            callback_on_preview: called with the pipeline, the step, the image's place in the batch and a `PIL.Image.Image`: what
                it will be, as far as the network knows. What it raises stops the run.
            preview_steps: how many steps there are from one preview to the next.
            progress: called with a stage and the steps done since the last call; or a `tqdm`.

        Raises:
            ValueError: an argument is wrong.
            EngineError: a network cannot be loaded or run.
        """
        if output_type not in ("pil", "np", "latent"):
            raise ValueError(f"output_type must be 'pil', 'np' or 'latent', not {output_type!r}")
        if preview_steps < 1:
            raise ValueError(f"preview_steps must be 1 or more, not {preview_steps}")
        seeds = _seeds(seed, generator)
        advance = as_progress(progress)

        def listener(name: str, value: Any) -> None:
            if name == "warning":
                log.warning("%s", value)
            elif name == "step":
                if advance is not None:
                    advance("sampling", 1)
                if callback_on_step_end is not None:
                    callback_on_step_end(self, value[0], value[1], {})
            elif name == "preview" and callback_on_preview is not None:
                (step, index), made = value
                callback_on_preview(self, step, index, _images([made], "pil")[0])

        made = self._native.run(
            {
                "prompts": _texts(prompt, "prompt"),
                "negative_prompts": [] if negative_prompt is None else _texts(negative_prompt, "negative_prompt"),
                "height": height,
                "width": width,
                "steps": num_inference_steps,
                "guidance": guidance_scale,
                "guidance_rescale": guidance_rescale,
                "batch": num_images_per_prompt,
                "seeds": seeds,
                "latents": optional_array(latents, "latents"),
                "scheduler": scheduler,
                "eta": eta,
                "clip_skip": clip_skip,
                "weight": weight,
                "tile": tile,
                "decode": output_type != "latent",
                "preview": None if callback_on_preview is None else preview_steps,
            },
            listener=listener,
        )
        found = from_native(made["latents"])
        images = found if output_type == "latent" else _images(made["images"], output_type)
        return PipelineOutput(images, found, seeds, made["scheduler"], made["timings"])


def _texts(given: str | Sequence[str], what: str) -> list[str]:
    texts = [given] if isinstance(given, str) else list(given)
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"{what} must be a str or a list of them, not of {type(text).__name__}")
    return texts


def _seeds(seed: int | Sequence[int] | None, generator: Any) -> list[int]:
    if seed is not None and generator is not None:
        raise ValueError("give a seed or a generator, not both")
    given: Any = seed if generator is None else generator
    if given is None:
        given = int.from_bytes(os.urandom(4), "little")
    several = given if isinstance(given, (list, tuple)) else [given]
    seeds = [one.initial_seed() if hasattr(one, "initial_seed") else one for one in several]
    for one in seeds:
        if not hasattr(one, "__index__"):
            raise TypeError(f"a seed is a whole number or a torch.Generator, not {type(one).__name__}")
    return [operator.index(one) for one in seeds]


def _images(made: list[tuple[int, int, bytes]], output_type: str) -> Any:
    if output_type == "pil":
        from PIL import Image

        return [Image.frombytes("RGB", (width, height), pixels) for height, width, pixels in made]
    import numpy as np

    arrays = [np.frombuffer(pixels, dtype=np.uint8).reshape(height, width, 3) for height, width, pixels in made]
    return np.stack(arrays).astype(np.float32) / np.float32(255)


class Interleave(_Networks):
    """The networks of a plan for a loop of your own: `predicted = net(latents, t, encoder_hidden_states)`.

    With one prediction for `dense + w (pruned - dense)` it stands where the UNet stood; guidance and the sampler stay yours.

    Args:
        path: the exported UNet.
        plan: as in `Pipeline`. If its `amplify` changes from step to step or from branch to branch, give `weight` with each
            call.

    The other arguments, and what is raised, are those of `Pipeline`.
    """

    _native: _crdiff.Interleave
    _open = staticmethod(_crdiff.Interleave.open)

    def __call__(
        self,
        sample: Any,
        timestep: Any,
        encoder_hidden_states: Any,
        *,
        text_embeds: Any = None,
        time_ids: Any = None,
        timestep_cond: Any = None,
        weight: float | None = None,
    ) -> Any:
        """Returns the amplified prediction, a float32 array of numpy with the dimensions of `sample`.

        Arrays are numpy's, or anything with `__array__` or DLPack in the host's memory, such as torch's on the CPU. Each has
        the batch in front.

        Args:
            sample: the scaled latents, `[batch, channels, height, width]`.
            timestep: one number, or an array of one, in training steps.
            encoder_hidden_states: the text encoders' states, `[batch, tokens, width]`.
            text_embeds: SDXL's pooled text, `[batch, width]`.
            time_ids: SDXL's sizes, `[batch, 6]`.
            timestep_cond: the embedded guidance scale of distilled networks, `[batch, width]`.
            weight: w, instead of the plan's: 0 runs the dense network alone, 1 the pruned one alone.

        Raises:
            ValueError: an array is missing or has the wrong dimensions, or the plan's weight is no number.
            EngineError: a network fails.
        """
        if weight is None:
            weight = self._native.weight
        if weight is None:
            raise ValueError("the plan's `amplify` changes from step to step: give the weight of this call")
        fed = {
            "sample": array(sample, "sample"),
            "timestep": float(timestep.item() if hasattr(timestep, "item") else timestep),
            "context": array(encoder_hidden_states, "encoder_hidden_states"),
            "pooled": optional_array(text_embeds, "text_embeds"),
            "time_ids": optional_array(time_ids, "time_ids"),
            "timestep_cond": optional_array(timestep_cond, "timestep_cond"),
        }
        return from_native(self._native.call(fed, float(weight)))
