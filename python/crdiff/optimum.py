"""Plans for Optimum's pipelines: `ORTStableDiffusionPipeline`, `ORTStableDiffusionXLPipeline` and their kin.

    >>> pipe = ORTStableDiffusionPipeline.from_pretrained("sd15-onnx")
    >>> crdiff.optimum.apply(pipe, "plan.yaml")
    >>> pipe("a lighthouse in a storm").images[0]
"""

from __future__ import annotations

import logging
import os
from typing import Any

from crdiff import _crdiff
from crdiff._compiler import PlanLike, Progress, as_plan
from crdiff._engine import Compiled
from crdiff._pipeline import _loading

__all__ = ["Applied", "apply"]

log = logging.getLogger("crdiff")

WEIGHT = "poa_weight"


class _Weighted:
    """A session whose graph has one input more, w. It is fed here; everything else is the session's."""

    def __init__(self, session: Any, weight: float):
        self.__dict__.update(_session=session, _weight=weight)

    def run(self, output_names: Any, input_feed: dict[str, Any], run_options: Any = None) -> Any:
        return self._session.run(output_names, {**input_feed, WEIGHT: self._fed()}, run_options)

    def run_with_iobinding(self, iobinding: Any, run_options: Any = None) -> None:
        iobinding.bind_cpu_input(WEIGHT, self._fed())
        self._session.run_with_iobinding(iobinding, run_options)

    def _fed(self) -> Any:
        import numpy as np

        return np.array(self._weight, dtype=np.float32)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_session"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__:
            self.__dict__[name] = value
        else:
            setattr(self._session, name, value)


class Applied:
    """A plan that a pipeline runs.

    Attributes:
        path: the compiled graph, in the user's cache or beside the pipeline's network.
    """

    def __init__(self, part: Any, dense: Any, path: str):
        self._part, self._dense, self.path = part, dense, path

    @property
    def weight(self) -> float | None:
        """w, which can be set between two images or two steps; `None` if it is compiled in."""
        session = self._part.session
        return session._weight if isinstance(session, _Weighted) else None

    @weight.setter
    def weight(self, weight: float) -> None:
        session = self._part.session
        if not isinstance(session, _Weighted):
            raise AttributeError("the weight is compiled in: apply the plan with runtime_weight=True")
        session._weight = float(weight)

    def remove(self) -> None:
        """Has the pipeline run as it was before."""
        _set_session(self._part, self._dense)


def apply(
    pipe: Any,
    plan: PlanLike,
    *,
    runtime_weight: bool = False,
    compiled: Compiled = "cache",
    progress: Progress = None,
) -> Applied:
    """Has a pipeline of Optimum run a plan: its UNet's session becomes one of the compiled graph.

    Nothing is written into the pipeline's folder, unless `compiled` says so. The graph has both networks and their mix (or,
    with the plan's `mode: weights`, one network), so one session takes the place of one session, with the same providers
    and options; the scheduler, guidance and callbacks of the pipeline stay as they are.

    Args:
        pipe: a pipeline with a `unet` that runs a `session` of ONNX Runtime.
        plan: a file, a YAML text, or a dict. Its `amplify` must be the same at every step.
        runtime_weight: feed w with each run, so that `weight` of what is returned can be set, instead of compiling it in.
        compiled: where the compiled graph is kept: `"cache"` is the user's cache, with a copy of the network beside it;
            `"beside"` is beside the network, whose weights it shares.
        progress: as in `compile`.

    Returns:
        What can set the weight and take the plan away again.

    Raises:
        TypeError: the pipeline has no such part.
        PlanError: the plan is wrong or does not fit the network.
        Error: the plan cannot be one graph, since its `amplify` changes from step to step.
    """
    import onnxruntime

    part = getattr(pipe, "unet", None)
    session: Any = getattr(part, "session", None)
    model = getattr(session, "_model_path", None)
    if model is None:
        raise TypeError(f"{type(pipe).__name__} has no unet with a session of ONNX Runtime that was made from a file")
    path, weight = _crdiff.one_graph(
        os.fspath(model),
        as_plan(plan),
        runtime_weight=runtime_weight,
        compiled=compiled,
        listener=_loading(progress),
    )
    options = session.get_provider_options()
    providers = [(name, options.get(name, {})) for name in session.get_providers()]
    made = onnxruntime.InferenceSession(path, sess_options=session.get_session_options(), providers=providers)
    _set_session(part, made if weight is None else _Weighted(made, weight))
    log.info("%s runs %s", type(pipe).__name__, path)
    return Applied(part, session, path)


def _set_session(part: Any, session: Any) -> None:
    part.session = session
    # Optimum binds inputs and outputs to a session that it has seen before.
    if hasattr(part, "_io_binding"):
        own = session._session if isinstance(session, _Weighted) else session
        part._io_binding = type(part._io_binding)(own)
