"""What every benchmark writes beside its results: command, machine and versions. Import it before torch and transformers."""

import os
import platform
import shlex
import sys
from importlib.metadata import version
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # all three are read when the libraries are first imported
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def surroundings() -> dict[str, Any]:
    """Command, machine and versions, fit for JSON."""
    return {
        "command": shlex.join(["python", *sys.argv]),
        "machine": {
            "cpus": os.cpu_count(),
            "processor": platform.machine(),
            "python": platform.python_version(),
        },
        "versions": {name: version(name) for name in ("circuitsieve", "torch", "transformers")},
    }
