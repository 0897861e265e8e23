"""What every benchmark writes beside its results: command, commit, machine, versions. Import it before torch."""

import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from circuitsieve.cli.console import set_up_libraries

set_up_libraries()


def surroundings() -> dict[str, Any]:
    """Command, commit, machine and versions, fit for JSON."""
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    return {
        "command": shlex.join(["python", *sys.argv]),
        "commit": subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip(),
        "machine": {
            "cpus": os.cpu_count(),
            "processor": platform.machine(),
            "python": platform.python_version(),
        },
        "versions": {name: version(name) for name in ("circuitsieve", "torch", "transformers")},
    }
