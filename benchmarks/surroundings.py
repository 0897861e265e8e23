"""What every benchmark writes beside its results: command, commit, machine, threads, versions. Import it before torch."""

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from circuitsieve.cli.console import set_up_libraries

set_up_libraries()


def surroundings() -> dict[str, Any]:
    """Command, commit (marked where files differ from it), machine, threads and versions, fit for JSON."""
    import torch  # here, so that what this module sets up comes first

    from circuitsieve.search.problem import computes_in_bfloat16

    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude", "*"]
    return {
        "command": shlex.join(["python", *sys.argv]),
        "commit": subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip(),
        "machine": {
            "cpus": os.cpu_count(),
            "processor": processor(),
            "threads": torch.get_num_threads(),
            "bfloat16": computes_in_bfloat16(torch.device("cpu")),
            "python": platform.python_version(),
        },
        "versions": {name: version(name) for name in ("circuitsieve", "torch", "transformers")},
    }


def write_results(path: Path, results: Mapping[str, Any]) -> None:
    """Write results as JSON; the folder is made where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")


def processor() -> str:
    """The processor's name where Linux tells it, else its architecture."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
