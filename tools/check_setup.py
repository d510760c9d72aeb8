"""Says in one line what is missing to set up duckvec, and exits with 1 then.

It is run by make before anything is installed, by whichever Python there is: so it
keeps to the syntax of Python 3.6.
"""

import os
import shutil
import sys
import sysconfig
from importlib.util import find_spec

OLDEST = (3, 10)


def missing() -> str:
    """One sentence with the way out, or '' where everything is there."""
    if sys.version_info < OLDEST:
        return (
            f"duckvec needs Python {OLDEST[0]}.{OLDEST[1]} or newer, not "
            f"{sys.version_info[0]}.{sys.version_info[1]} ({sys.executable}): "
            "name another with PYTHON=…"
        )
    lacks = []
    packages = []
    if not (find_spec("venv") and find_spec("ensurepip")):
        lacks.append("Python's venv")
        packages.append("python3-venv")
    # The compiler that setuptools will call: $CXX, or the one Python was built with.
    compiler = os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++"
    if not shutil.which(compiler.split()[0]):
        lacks.append(f"a C++ compiler ({compiler})")
        packages.append("g++")
    header = os.path.join(sysconfig.get_path("include"), "Python.h")
    if not os.path.exists(header):
        lacks.append(f"Python's headers ({header})")
        packages.append("python3-dev")
    if not lacks:
        return ""
    return f"Missing: {', '.join(lacks)}. apt-get install {' '.join(packages)}"


if __name__ == "__main__":
    sys.exit(missing() or 0)
