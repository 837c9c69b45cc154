"""Compiles, verifies and runs plans for diffusion networks exported to ONNX: CR-Diff and other changes that need no training.

    >>> import crdiff
    >>> plan = {"version": 1, "rules": [{"bypass": "mid_block.attentions.0"}]}
    >>> report = crdiff.compile("unet.onnx", plan)
    >>> report.outputs[0].path
    'unet.pruned.onnx'
    >>> crdiff.verify("unet.onnx", "unet.pruned.onnx", plan).proven
    True

Functions take models as files or bytes, and plans as files, YAML text or dicts. They release the GIL, Ctrl-C stops them, and
their results are what the program `crdiff` prints as JSON. Warnings go to the logger `crdiff`.
"""

from crdiff import _compiler, _errors, _pipeline, _report
from crdiff._compiler import *
from crdiff._crdiff import __version__
from crdiff._errors import *
from crdiff._pipeline import *
from crdiff._report import *

__all__ = ["__version__"]
__all__ += _compiler.__all__
__all__ += _errors.__all__
__all__ += _pipeline.__all__
__all__ += _report.__all__
