"""Say in one line what is missing before an installation starts. Must run under any Python 3."""

import os
import shutil
import sys

if sys.version_info < (3, 11):
    sys.exit(
        "stepwise needs Python 3.11 or later; %s is %d.%d. Give another one: make demo PYTHON=python3.12"
        % (sys.executable, sys.version_info[0], sys.version_info[1])
    )
try:
    import ensurepip  # noqa: F401
    import venv  # noqa: F401
except ImportError:
    sys.exit(
        "This Python cannot make virtual environments; install its venv package (Debian: apt install python3-venv)."
    )
compilers = [os.environ.get("CXX"), "c++", "g++", "clang++"]
if not any(name and shutil.which(name.split()[0]) for name in compilers):
    sys.exit(
        "No C++ compiler found, and llama.cpp has to be compiled. Debian or Ubuntu: apt install g++; "
        "Fedora: dnf install gcc-c++; macOS: xcode-select --install"
    )
