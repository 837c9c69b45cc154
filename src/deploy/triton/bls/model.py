"""A text to image pipeline as one Triton model: tokens to text encoders, UNet and VAE decoder, served beside it.

It runs in Triton's Python backend and needs numpy. `pipeline.json` beside it says which models it calls and how. The
sampler is DDIM (Song et al. 2020, as `DDIMScheduler` of diffusers without noise of its own), with the settings of the
pipeline's scheduler. It is an example to start from: other samplers differ in `timesteps` and `step` alone.
"""

import json
import os

import numpy as np
import triton_python_backend_utils as pb_utils

TYPES = {"TYPE_FP16": np.float16, "TYPE_FP32": np.float32, "TYPE_FP64": np.float64}
TYPES |= {"TYPE_INT32": np.int32, "TYPE_INT64": np.int64}


class TritonPythonModel:
    def initialize(self, args):
        with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "pipeline.json")) as file:
            self.pipeline = json.load(file)
        self.sampler = Ddim(self.pipeline["scheduler"])

    def execute(self, requests):
        return [self.respond(request) for request in requests]

    def respond(self, request):
        try:
            latents, images = self.draw(Inputs(request))
        except (ValueError, pb_utils.TritonModelException) as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))
        tensors = [pb_utils.Tensor("images", images), pb_utils.Tensor("final_latents", latents)]
        return pb_utils.InferenceResponse(output_tensors=tensors)

    def draw(self, inputs):
        """The final latents and the images of a request."""
        guidance = inputs.number("guidance_scale", 7.5)
        steps = int(inputs.number("steps", 30))
        prompt = self.encode(inputs, "")
        batch = len(prompt["encoder_hidden_states"])
        latents = self.first_latents(inputs, batch)
        conditions = prompt
        if guidance > 1:
            negative = self.negative(inputs, prompt)
            conditions = {key: np.concatenate([negative[key], prompt[key]]) for key in prompt}
        if "time_ids" in self.pipeline["unet"]["inputs"]:
            height, width = (size * self.pipeline["vae"]["factor"] for size in latents.shape[2:])
            row = [height, width, 0, 0, height, width]
            conditions["time_ids"] = np.tile(np.float32(row), (len(conditions["encoder_hidden_states"]), 1))
        if "poa_weight" in self.pipeline["unet"]["inputs"]:
            conditions["poa_weight"] = inputs.number("poa_weight", 1.5)

        for timestep, previous in self.sampler.timesteps(steps):
            sample = np.concatenate([latents, latents]) if guidance > 1 else latents
            predicted = self.denoise(sample, timestep, conditions)
            if guidance > 1:
                unconditional, conditional = np.split(predicted, 2)
                predicted = unconditional + np.float32(guidance) * (conditional - unconditional)
            latents = self.sampler.step(latents, predicted, timestep, previous)
            if not np.isfinite(latents).all():
                raise ValueError("the UNet gave values that are not finite; one in half precision may overflow")
        return latents, self.decode(latents)

    def first_latents(self, inputs, batch):
        given = inputs.get("latents")
        if given is not None:
            if len(given) != batch:
                raise ValueError(f"{len(given)} latents for {batch} prompts")
            self.check_sides([side * self.pipeline["vae"]["factor"] for side in given.shape[2:]])
            return given.astype(np.float32)
        vae = self.pipeline["vae"]
        sides = [int(inputs.number(key, size)) for key, size in zip(("height", "width"), vae["default_size"])]
        self.check_sides(sides)
        shape = [batch, vae["channels"]] + [side // vae["factor"] for side in sides]
        noise = np.random.default_rng(int(inputs.number("seed", 0))).standard_normal(shape)
        return noise.astype(np.float32)

    def check_sides(self, sides):
        """Refuses sizes that the VAE or the UNet cannot halve as often as they do, or that the UNet was not exported for."""
        divisor = self.pipeline["vae"]["factor"] * self.pipeline["unet"]["divisor"]
        if any(side <= 0 or side % divisor for side in sides):
            raise ValueError(f"height and width must be divisible by {divisor}, not {sides}")
        only = self.pipeline["unet"]["only_size"]
        if only and list(sides) != only:
            raise ValueError(f"the UNet was exported for one size, {only}, not for {sides}")

    def encode(self, inputs, prefix):
        """What the text encoders say of the tokens in `<prefix>input_ids` and `<prefix>input_ids_2`."""
        hidden, pooled = [], None
        for index, encoder in enumerate(self.pipeline["text_encoders"]):
            name = prefix + ("input_ids" if index == 0 else f"input_ids_{index + 1}")
            tokens = inputs.get(name)
            if tokens is None:
                raise ValueError(f"the input `{name}` is missing")
            outputs = [encoder["hidden"]] + ([encoder["pooled"]] if encoder["pooled"] else [])
            encoded = call(encoder, {encoder["input"]: tokens.astype(TYPES[encoder["type"]])}, outputs)
            hidden.append(encoded[encoder["hidden"]].astype(np.float32))
            if encoder["pooled"]:
                pooled = encoded[encoder["pooled"]].astype(np.float32)
        conditions = {"encoder_hidden_states": np.concatenate(hidden, axis=-1)}
        if "text_embeds" in self.pipeline["unet"]["inputs"]:
            conditions["text_embeds"] = pooled
        return conditions

    def negative(self, inputs, prompt):
        if inputs.get("negative_input_ids") is None and self.pipeline["zeros_for_empty_prompt"]:
            return {key: np.zeros_like(value) for key, value in prompt.items()}
        negative = self.encode(inputs, "negative_")
        rows = len(prompt["encoder_hidden_states"])
        if len(negative["encoder_hidden_states"]) == 1:
            negative = {key: np.repeat(value, rows, axis=0) for key, value in negative.items()}
        if len(negative["encoder_hidden_states"]) != rows:
            raise ValueError(f"`negative_input_ids` must have one row, or {rows}")
        return negative

    def denoise(self, sample, timestep, conditions):
        unet = self.pipeline["unet"]
        fed = {"sample": sample, "timestep": timestep} | conditions
        arrays = {}
        for name, expected in unet["inputs"].items():
            value = np.asarray(fed[name], TYPES[expected["type"]])
            if value.ndim == 0:
                value = value.reshape(1)
                if expected["layout"] != "one":
                    value = np.repeat(value, len(sample))
                if expected["layout"] == "column":
                    value = value[:, None]
            arrays[name] = value
        return call(unet, arrays, [unet["output"]])[unet["output"]].astype(np.float32)

    def decode(self, latents):
        vae = self.pipeline["vae"]
        if vae["latents_mean"] and vae["latents_std"]:
            mean, deviation = (np.float32(vae[key])[:, None, None] for key in ("latents_mean", "latents_std"))
            unscaled = latents * deviation / np.float32(vae["scaling_factor"]) + mean
        else:
            unscaled = latents / np.float32(vae["scaling_factor"]) + np.float32(vae["shift_factor"] or 0)
        # One at a time: decoding takes the most memory.
        images = []
        for latent in unscaled.astype(TYPES[vae["type"]]):
            decoded = call(vae, {vae["input"]: latent[None]}, [vae["output"]])[vae["output"]]
            if not np.isfinite(decoded).all():
                raise ValueError("the VAE gave values that are not finite; one in half precision may overflow")
            images.append(decoded.astype(np.float32)[0].transpose(1, 2, 0))
        return np.round(np.clip(np.stack(images) / 2 + 0.5, 0, 1) * 255).astype(np.uint8)


class Inputs:
    """The tensors of a request."""

    def __init__(self, request):
        self.request = request

    def get(self, name):
        tensor = pb_utils.get_input_tensor_by_name(self.request, name)
        return None if tensor is None else tensor.as_numpy()

    def number(self, name, default):
        value = self.get(name)
        number = default if value is None else value.reshape(-1)[0].item()
        if not np.isfinite(number):
            raise ValueError(f"`{name}` must be a finite number, not {number}")
        return number


class Ddim:
    """The deterministic DDIM sampler."""

    def __init__(self, config):
        self.config = config
        self.length = config.get("num_train_timesteps") or 1000
        start, end = config.get("beta_start", 0.0001), config.get("beta_end", 0.02)
        schedule = config.get("beta_schedule", "linear")
        if config.get("trained_betas"):
            betas = np.float32(config["trained_betas"])
        elif schedule == "linear":
            betas = np.linspace(start, end, self.length, dtype=np.float32)
        elif schedule == "scaled_linear":
            betas = np.linspace(start**0.5, end**0.5, self.length, dtype=np.float32) ** 2
        else:  # squaredcos_cap_v2
            bar = np.cos((np.arange(self.length + 1) / self.length + 0.008) / 1.008 * np.pi / 2) ** 2
            betas = np.minimum(1 - bar[1:] / bar[:-1], 0.999).astype(np.float32)
        self.alphas = np.cumprod(1 - betas, dtype=np.float32)
        if config.get("rescale_betas_zero_snr"):
            roots = np.sqrt(self.alphas)
            self.alphas = ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2
        self.final_alpha = np.float32(1) if config.get("set_alpha_to_one", True) else self.alphas[0]

    def timesteps(self, steps):
        """Each timestep with the one that its step leads to, which is negative at the end."""
        if not 0 < steps <= self.length:
            raise ValueError(f"steps must be from 1 to {self.length}, not {steps}")
        spacing = self.config.get("timestep_spacing", "leading")
        if spacing == "linspace":
            timesteps = np.linspace(0, self.length - 1, steps).round()[::-1]
        elif spacing == "trailing":
            timesteps = np.round(np.arange(self.length, 0, -self.length / steps))[:steps] - 1
        else:
            timesteps = (np.arange(steps) * (self.length // steps))[::-1] + self.config.get("steps_offset", 0)
        stride = self.length // steps
        return [(int(timestep), int(timestep) - stride) for timestep in timesteps]

    def step(self, latents, predicted, timestep, previous):
        alpha = self.alphas[timestep]
        previous_alpha = self.alphas[previous] if previous >= 0 else self.final_alpha
        signal, noise = np.sqrt(alpha), np.sqrt(1 - alpha)
        kind = self.config.get("prediction_type", "epsilon")
        if kind == "v_prediction":
            original = signal * latents - noise * predicted
            predicted = signal * predicted + noise * latents
        elif kind == "sample":
            original = predicted
            predicted = (latents - signal * original) / noise
        else:
            original = (latents - noise * predicted) / signal
        return np.sqrt(previous_alpha) * original + np.sqrt(1 - previous_alpha) * predicted


def call(model, arrays, outputs):
    """Runs another model of the repository, in batches of what it takes at most; returns its outputs by name."""
    rows = max(len(array) for array in arrays.values())
    most = model["max_batch"] or rows
    parts = []
    for first in range(0, rows, most):
        inputs = [
            pb_utils.Tensor(name, np.ascontiguousarray(array[first : first + most] if model["max_batch"] else array))
            for name, array in arrays.items()
        ]
        request = pb_utils.InferenceRequest(
            model_name=model["model"],
            requested_output_names=outputs,
            inputs=inputs,
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
        )
        response = request.exec()
        if response.has_error():
            raise pb_utils.TritonModelException(f"{model['model']}: {response.error().message()}")
        parts.append([pb_utils.get_output_tensor_by_name(response, name).as_numpy() for name in outputs])
    return {name: np.concatenate(values) for name, values in zip(outputs, zip(*parts))}
