"""CR-Diff for exported ONNX diffusion UNets: the programs `crdiff` and `crdiff-compile`.

There is no Python API: `python -m crdiff ...` is `crdiff ...`, and `find_program` tells where a program is.
"""

import os
import sys
import sysconfig
from importlib.metadata import version

__all__ = ["find_program"]
__version__ = version("crdiff")


def find_program(name="crdiff"):
    """The path of a program that came with this package.

    Raises FileNotFoundError if it is in none of the places where pip puts programs.
    """
    file = name + (sysconfig.get_config_var("EXE") or "")
    user = sysconfig.get_preferred_scheme("user") if hasattr(sysconfig, "get_preferred_scheme") else None
    places = [sysconfig.get_path("scripts"), os.path.join(sys.prefix, "bin")]
    if user:
        places.append(sysconfig.get_path("scripts", user))
    # `pip install --target FOLDER` puts programs into FOLDER/bin.
    places.append(os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "bin"))
    for place in places:
        path = os.path.join(place, file)
        if os.path.isfile(path):
            return path
    raise FileNotFoundError(f"{file} is in none of {', '.join(places)}: was crdiff installed with pip?")
