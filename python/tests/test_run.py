"""Running: against diffusers' images and torch's outputs."""

import json
import shutil
import signal

import crdiff
import numpy as np
import pytest

PRUNE = {"version": 1, "crdiff": {"down": 0.3, "mid": 0.5, "up": 0.1}}


def call(pipe, case, defaults, **more):
    """Runs a case of the goldens."""
    said = {**defaults, **case}
    return pipe(
        said["prompt"],
        said["height"],
        said["width"],
        num_inference_steps=said["steps"],
        guidance_scale=said["guidance"],
        guidance_rescale=said["guidance_rescale"],
        negative_prompt=said["negative"],
        num_images_per_prompt=said["batch"],
        seed=said["seeds"],
        eta=said["eta"],
        **more,
    )


CASES = ["amplify/every", "amplify/cond", "amplify/during", "amplify/ramp", "guidance/rescale", "batch/one_seed"]


@pytest.mark.parametrize("name", CASES)
def test_images_are_those_of_diffusers(pipeline, name):
    folder, index, golden = pipeline
    case = next(case for case in index["cases"] if case["name"] == name)
    plan = {"version": 1, "crdiff": index["prune"], "amplify": case["amplify"]}
    # ONNX Runtime, the first choice, takes much longer to load a network than rten.
    pipe = crdiff.Pipeline(folder, plan, engine=None if folder.name == "sd15" else "rten")
    made = call(pipe, case, index["defaults"], scheduler="dpm++_2m_karras", output_type="np")
    expected = golden[f"{name}/latents"]
    assert np.abs(made.latents - expected).max() <= 1e-4 * max(1, np.abs(expected).max())
    pixels = np.rint(made.images * 255).astype(int)
    assert np.abs(pixels - golden[f"{name}/image"]).max() <= 1
    assert made.timings["pruned_runs"] > 0


def test_several_prompts_are_one_batch(fixtures, tmp_path):
    folder = shutil.copytree(fixtures / "pipelines/sd15", tmp_path / "sd15")
    index = json.loads((folder / "golden-prompts/index.json").read_text())
    golden = np.load(folder / "golden-prompts/golden.npz")
    pipe = crdiff.Pipeline(folder, engine="rten")
    # Latents need no VAE.
    (folder / "vae_decoder/model.onnx").write_bytes(b"no model")
    schedulers = {"one_seed": "dpm++_2m_karras", "negatives": "euler_a"}
    for case in index["cases"]:
        said = {**index["defaults"], **case, "prompt": case["prompts"], "negative": case["negatives"]}
        # One negative prompt for all may be a text.
        said["negative"] = said["negative"] if len(said["negative"]) > 1 else said["negative"][0]
        made = call(pipe, said, {}, scheduler=schedulers[case["name"]], output_type="latent")
        expected = golden[f"{case['name']}/latents"]
        assert np.abs(made.latents - expected).max() <= 1e-4 * max(1, np.abs(expected).max())
    with pytest.raises(crdiff.EngineError, match="vae_decoder"):
        pipe("the cat", 32, 32, num_inference_steps=1)


def test_forms_of_output(fixtures):
    pipe = crdiff.Pipeline(fixtures / "pipelines/sd15", PRUNE, engine="rten")
    arguments = dict(height=32, width=48, num_inference_steps=2, seed=[3, 4], num_images_per_prompt=2)
    images = pipe("the cat", **arguments).images
    assert [image.size for image in images] == [(48, 32)] * 2 and images[0].mode == "RGB"
    arrays = pipe("the cat", **arguments, output_type="np").images
    assert arrays.shape == (2, 32, 48, 3) and arrays.dtype == np.float32
    assert (np.asarray(images[1]) == np.rint(arrays[1] * 255)).all()
    made = pipe("the cat", **arguments, output_type="latent")
    assert made.images is made.latents and made.latents.shape == (2, 4, 8, 12)
    assert made.seeds == [3, 4] and "rten" in pipe.engine and pipe.default_size[0] % 8 == 0

    # A seed alone makes the image that it made in a batch.
    alone = pipe("the cat", **{**arguments, "seed": 4, "num_images_per_prompt": 1}, output_type="latent").images
    assert np.abs(alone[0] - made.latents[1]).max() < 1e-4

    class Generator:
        """As torch's, freshly seeded."""

        def initial_seed(self):
            return 4

    by_generator = dict(arguments, seed=None, generator=Generator(), num_images_per_prompt=1)
    assert (pipe("the cat", **by_generator, output_type="latent").images == alone).all()
    again = pipe("the cat", height=32, width=48, num_inference_steps=1)
    repeated = pipe("the cat", height=32, width=48, num_inference_steps=1, seed=again.seeds)
    assert (again.latents == repeated.latents).all()


def test_given_latents_and_weights(fixtures):
    pipe = crdiff.Pipeline(fixtures / "pipelines/sd15", PRUNE, engine="rten")
    latents = np.random.default_rng(0).standard_normal((1, 4, 8, 8))
    arguments = dict(height=32, width=32, num_inference_steps=1, latents=latents, output_type="latent", guidance_scale=1.0)
    dense, pruned, mixed = (pipe("x", **arguments, weight=weight) for weight in (0, 1, 3))
    assert dense.timings["pruned_runs"] == 0 and pruned.timings["dense_runs"] == 0
    # One step without guidance is linear in the network's output.
    expected = dense.latents + 3 * (pruned.latents - dense.latents)
    assert np.abs(mixed.latents - expected).max() < 1e-3
    plain = crdiff.Pipeline(fixtures / "pipelines/sd15", engine="rten")
    assert (plain("x", **arguments).latents == dense.latents).all()
    with pytest.raises(ValueError, match="weight"):
        plain("x", **arguments, weight=2)


def test_callbacks_hear_of_steps_and_can_stop(fixtures):
    pipe = crdiff.Pipeline(fixtures / "pipelines/sd15", engine="rten")
    steps, advanced = [], []

    def heard(pipeline, step, timestep, more):
        assert pipeline is pipe and more == {}
        steps.append((step, timestep))

    small = dict(height=32, width=32, seed=0, scheduler="ddim")
    pipe("x", num_inference_steps=3, callback_on_step_end=heard, progress=lambda *told: advanced.append(told), **small)
    assert [step for step, _ in steps] == [0, 1, 2] and steps[0][1] > steps[1][1] > steps[2][1]
    assert advanced == [("sampling", 1)] * 3

    def stop(pipeline, step, timestep, more):
        steps.append(step)
        if step == 1:
            raise LookupError("enough")

    steps.clear()
    with pytest.raises(LookupError, match="enough"):
        pipe("x", num_inference_steps=500, callback_on_step_end=stop, **small)
    assert steps == [0, 1]
    with pytest.raises(KeyboardInterrupt):
        pipe("x", num_inference_steps=500, callback_on_step_end=lambda *_: signal.raise_signal(signal.SIGINT), **small)
    assert len(pipe("x", num_inference_steps=1, **small).images) == 1


def test_previews_end_in_the_image(fixtures):
    pipe = crdiff.Pipeline(fixtures / "pipelines/sd15", engine="rten")
    seen = []

    def heard(pipeline, step, index, image):
        assert pipeline is pipe
        seen.append((step, index, image))

    small = dict(height=32, width=40, seed=[1, 2], num_images_per_prompt=2, scheduler="euler", num_inference_steps=4)
    made = pipe("x", callback_on_preview=heard, preview_steps=2, **small)
    assert [(step, index) for step, index, _ in seen] == [(1, 0), (1, 1), (3, 0), (3, 1)]
    # Euler's last step ends where the network says the clean latents are.
    for image, (_, _, preview) in zip(made.images, seen[2:]):
        assert np.abs(np.asarray(image, int) - np.asarray(preview, int)).max() <= 1
    with pytest.raises(ValueError, match="preview_steps"):
        pipe("x", callback_on_preview=heard, preview_steps=0, **small)


def test_mistakes_of_a_call(fixtures, tmp_path):
    pipe = crdiff.Pipeline(fixtures / "pipelines/sd15", engine="rten")
    for wrong, said in [
        (dict(height=33, width=32), "divisible by"),
        (dict(num_inference_steps=0), "step"),
        (dict(scheduler="best"), "best"),
        (dict(output_type="jpeg"), "output_type"),
        (dict(seed=1, generator=2), "not both"),
    ]:
        with pytest.raises(ValueError, match=said):
            pipe("x", **{"num_inference_steps": 1, **wrong})
    with pytest.raises(TypeError, match="prompt must be a str or a list"):
        pipe(["x", 3])
    with pytest.raises(ValueError, match="3 negative prompts for 2 prompts"):
        pipe(["x", "y"], negative_prompt=["a", "b", "c"])
    with pytest.raises(TypeError, match="latents must be an array"):
        pipe("x", latents="noise")
    with pytest.raises(crdiff.ModelError, match="no pipeline"):
        crdiff.Pipeline(tmp_path)
    with pytest.raises(crdiff.EngineError, match="quantum"):
        crdiff.Pipeline(fixtures / "pipelines/sd15", engine="quantum")
    with pytest.raises(crdiff.EngineError, match="NoSuch"):
        crdiff.Pipeline(fixtures / "pipelines/sd15", providers=["NoSuchExecutionProvider"])
    with pytest.raises(crdiff.PlanError):
        crdiff.Pipeline(fixtures / "pipelines/sd15", {"version": 1, "rules": [{"bypass": "nothing"}]})


def test_devices_and_providers(sd15, tmp_path):
    case = next(case for case in sd15.index["cases"] if case["kind"] == "prune")
    plan = {**case["plan"], "amplify": {"weight": 1.8}}
    inputs = sd15.inputs().values()
    for asked in [{"device": "cpu"}, {"providers": ["cpu"]}]:
        net = crdiff.Interleave(sd15.model, plan, engine="ort", **asked)
        assert np.abs(net(*inputs) - sd15.amplified(case["name"], 1.8)).max() < 5e-4

    missing = {"x": tmp_path / "missing.so"}
    no_library = {"x": tmp_path / "text.so"}
    no_library["x"].write_text("no library")
    of_plan = {**plan, "runtime": {"options": {"cuda": {"device_id": 1}}}}
    for plan_given, asked, said in [
        (plan, {"device": "vpu"}, "unknown device `vpu`"),
        (plan, {"device": "npu"}, "no execution provider for device `npu`"),
        (plan, {"device": "cpu", "providers": ["cpu"]}, "not both"),
        (plan, {"device": "cuda", "provider_options": {"device": 0}}, "did you mean `device_id`"),
        (plan, {"providers": [("tensorrt", {}), "cuda"], "provider_options": {"cuda.tf32": 0}}, "of the cuda provider"),
        (plan, {"provider_options": {"device_id": 0}}, "a provider that isn't run"),
        (plan, {"provider_libraries": missing}, "provider library x=.*missing.so"),
        (plan, {"provider_libraries": no_library}, "provider library x=.*text.so"),
        (plan, {"provider_libraries": missing, "engine": "rten"}, "rten has no execution providers"),
        (of_plan, {}, "cuda, which is not in its `providers`"),
        # The plan's options fit it.
        (of_plan, {"device": "cuda"}, "on cuda: this build of ONNX Runtime doesn't have it"),
    ]:
        with pytest.raises(crdiff.EngineError, match=said):
            crdiff.Interleave(sd15.model, plan_given, **asked)


@pytest.mark.parametrize("engine", ["ort", "rten"])
def test_a_loop_of_ones_own(sd15, engine):
    case = next(case for case in sd15.index["cases"] if case["kind"] == "prune")
    inputs = sd15.inputs()
    net = crdiff.Interleave(sd15.model, {**case["plan"], "amplify": {"weight": 1.8}}, engine=engine)
    found = net(inputs["sample"], inputs["timestep"], inputs["encoder_hidden_states"])
    assert found.dtype == np.float32
    assert np.abs(found - sd15.amplified(case["name"], 1.8)).max() < 5e-4
    for weight, expected in [(0, sd15.output("dense")), (1, sd15.output(case["name"]))]:
        assert np.abs(net(*inputs.values(), weight=weight) - expected).max() < 1e-4
    inputs["timestep"] = np.array([inputs["timestep"]])
    assert (net(*inputs.values()) == found).all()


def test_a_loop_of_ones_own_for_sdxl(sdxl):
    case = next(case for case in sdxl.index["cases"] if case["kind"] == "bypass" and sdxl.size in case["outputs"])
    inputs = sdxl.inputs()
    net = crdiff.Interleave(sdxl.model, {**case["plan"], "amplify": {"weight": 2}}, engine="rten")

    class Tensor:
        """An array that says so by DLPack alone."""

        def __init__(self, array):
            self.__dlpack__, self.__dlpack_device__ = array.__dlpack__, array.__dlpack_device__

    class Boxed:
        """An array that becomes one of numpy."""

        def __init__(self, array):
            self.array = array

        def __array__(self, dtype=None, copy=None):
            return self.array

    found = net(
        Tensor(inputs["sample"]),
        inputs["timestep"],
        Boxed(inputs["encoder_hidden_states"]),
        text_embeds=inputs["text_embeds"],
        time_ids=inputs["time_ids"],
    )
    assert np.abs(found - sdxl.amplified(case["name"], 2)).max() < 5e-4
    with pytest.raises(crdiff.ModelError, match="text_embeds"):
        net(inputs["sample"], inputs["timestep"], inputs["encoder_hidden_states"])


def test_models_are_compared_by_numbers(sd15, tmp_path):
    case = next(case for case in sd15.index["cases"] if case["kind"] == "prune")
    pruned = tmp_path / "pruned.onnx"
    crdiff.compile(sd15.model, case["plan"], pruned)
    same = crdiff.compare(sd15.model, sd15.model, sizes=["16x8", (8, 8)], sequence=5, engine="rten")
    assert same and same.within and same.verdict == "equal" and len(same.findings) == 2
    given = dict(inputs=sd15.inputs(), engine="rten")
    off = crdiff.compare(sd15.model, pruned, **given)
    assert not off and off.verdict == "out of tolerance"
    expected = np.abs(sd15.output("dense") - sd15.output(case["name"])).max()
    assert crdiff.compare(sd15.model, pruned, **given, atol=1.01 * expected, rtol=0)
    assert not crdiff.compare(sd15.model, pruned, **given, atol=0.99 * expected, rtol=0)
    with pytest.raises(crdiff.EngineError, match="timestep|encoder_hidden_states"):
        crdiff.compare(sd15.model, pruned, inputs={"sample": sd15.inputs()["sample"]}, engine="rten")


def test_a_weight_that_changes_must_be_given(sd15):
    inputs = sd15.inputs()
    for amplify in [{"weight": {"from": 1, "to": 2}}, {"every": 2}, {"on": "cond"}]:
        net = crdiff.Interleave(sd15.model, {**PRUNE, "amplify": amplify}, engine="rten")
        with pytest.raises(ValueError, match="weight of this call"):
            net(*inputs.values())
        assert net(*inputs.values(), weight=1.5).shape == inputs["sample"].shape


def test_compiled_plans_are_kept(unet, cache):
    before = set(unet.parent.iterdir())
    crdiff.Interleave(unet, PRUNE, engine="rten")
    assert set(unet.parent.iterdir()) == before
    kept = list(cache.rglob("*.onnx"))
    assert len(kept) == 2
    times = [path.stat().st_mtime_ns for path in kept]
    crdiff.Interleave(unet, PRUNE, engine="rten")
    assert [path.stat().st_mtime_ns for path in kept] == times
    crdiff.Interleave(unet, PRUNE, engine="rten", compiled="beside")
    assert len(set(unet.parent.glob("unet.crdiff-*.onnx"))) == 1
