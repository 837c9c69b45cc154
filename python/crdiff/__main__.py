"""The programs `crdiff` and `crdiff-compile`; `python -m crdiff ...` is `crdiff ...`."""

import signal
import sys

from crdiff import _crdiff
from crdiff._engine import look_for_onnxruntime


def _run(program, name):
    # As in a program of its own: Ctrl-C ends what doesn't handle it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    look_for_onnxruntime()
    sys.exit(program([name, *sys.argv[1:]]))


def crdiff():
    _run(_crdiff.crdiff, "crdiff")


def crdiff_compile():
    _run(_crdiff.crdiff_compile, "crdiff-compile")


if __name__ == "__main__":
    crdiff()
