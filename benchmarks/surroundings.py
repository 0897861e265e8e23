"""What every benchmark writes beside its results: command, machine and versions. Import it before torch and transformers."""

import os
import platform
import shlex
import sys
from importlib.metadata import version
from typing import Any

from circuitsieve.console import set_up_libraries

set_up_libraries()


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
