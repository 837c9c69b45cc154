"""Where ONNX Runtime is."""

import os
from importlib.util import find_spec

from crdiff import _crdiff


def look_for_onnxruntime() -> None:
    """Has the engine look for ONNX Runtime where this Python would import it from, without importing it."""
    spec = find_spec("onnxruntime")
    if spec is not None and spec.origin:
        _crdiff.look_for_onnxruntime_in(os.path.dirname(os.path.dirname(spec.origin)))
