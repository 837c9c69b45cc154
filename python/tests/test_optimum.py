"""Plans on Optimum's pipelines. Optimum needs torch, which these tests do without, so the part of it that is changed stands
here as Optimum has it: a UNet with a session, bound inputs and outputs, and `forward`."""

import crdiff
import crdiff.optimum
import numpy as np
import onnxruntime
import pytest


class Unet:
    """The attributes and the call of `ORTUnet` (optimum-onnx 0.1)."""

    def __init__(self, session, use_io_binding):
        self.session = session
        self.use_io_binding = use_io_binding
        self._io_binding = onnxruntime.IOBinding(session)
        self.input_names = {found.name: index for index, found in enumerate(session.get_inputs())}
        self.output_names = {found.name: index for index, found in enumerate(session.get_outputs())}

    def forward(self, **inputs):
        if not self.use_io_binding:
            return self.session.run(None, {name: inputs[name] for name in self.input_names})[0]
        for name in self.input_names:
            value = inputs[name]
            self._io_binding.bind_input(name, "cpu", 0, value.dtype, value.shape, value.ctypes.data)
        # As Optimum does, the output is bound to the memory of the sample.
        sample = inputs["sample"]
        self._io_binding.bind_output("out_sample", "cpu", 0, sample.dtype, sample.shape, sample.ctypes.data)
        self.session.run_with_iobinding(self._io_binding)
        return sample


class Pipe:
    def __init__(self, model, use_io_binding=False):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.unet = Unet(session, use_io_binding)


def inputs(golden):
    return {name: value.copy() for name, value in golden.inputs().items()}


def plan_of(golden, kind, **amplify):
    case = next(case for case in golden.index["cases"] if case["kind"] == kind and golden.size in case["outputs"])
    return case["name"], {**case["plan"], "amplify": amplify}


@pytest.mark.parametrize("use_io_binding", [False, True])
@pytest.mark.parametrize("family", ["mini", "sdxl"])
def test_a_pipeline_runs_the_plan(request, family, use_io_binding):
    golden = request.getfixturevalue(family)
    name, plan = plan_of(golden, "bypass", weight=1.7)
    pipe = Pipe(golden.model, use_io_binding)
    before, dense = pipe.unet.session, pipe.unet.forward(**inputs(golden))
    assert np.abs(dense - golden.output("dense")).max() < 1e-4
    applied = crdiff.optimum.apply(pipe, plan)
    found = pipe.unet.forward(**inputs(golden))
    assert np.abs(found - golden.amplified(name, 1.7)).max() < 5e-4
    assert applied.weight is None and crdiff.verify(golden.model, applied.path, plan, emit="fused")
    session = pipe.unet.session
    assert session.get_providers() == before.get_providers()
    assert session.get_session_options().intra_op_num_threads == 1
    applied.remove()
    assert pipe.unet.session is before
    assert np.abs(pipe.unet.forward(**inputs(golden)) - dense).max() < 1e-6


@pytest.mark.parametrize("use_io_binding", [False, True])
def test_the_weight_can_change_at_run_time(mini, use_io_binding):
    name, plan = plan_of(mini, "prune", weight={"from": 1.5, "to": 2.5})
    pipe = Pipe(mini.model, use_io_binding)
    with pytest.raises(crdiff.Error, match="changes from step to step"):
        crdiff.optimum.apply(pipe, plan)
    applied = crdiff.optimum.apply(pipe, plan, runtime_weight=True)
    assert applied.weight == 1.5
    for weight in [1.5, 0.0, 1.0, 2.5]:
        applied.weight = weight
        found = pipe.unet.forward(**inputs(mini))
        assert np.abs(found - mini.amplified(name, weight)).max() < 5e-4
    # Everything else is the session's.
    assert [found.name for found in pipe.unet.session.get_outputs()] == ["out_sample"]


def test_a_plan_of_one_network(mini):
    _, plan = plan_of(mini, "prune", weight=1.5, mode="weights")
    pipe = Pipe(mini.model)
    applied = crdiff.optimum.apply(pipe, plan)
    assert crdiff.verify(mini.model, applied.path, plan, emit="amplified")
    with pytest.raises(ValueError, match="one network"):
        crdiff.optimum.apply(Pipe(mini.model), plan, runtime_weight=True)
    with pytest.raises(AttributeError, match="runtime_weight"):
        applied.weight = 2


def test_what_is_no_such_pipeline(mini):
    with pytest.raises(TypeError, match="no unet"):
        crdiff.optimum.apply(object(), {"version": 1})
