"""Kill a discovery with SIGKILL at random moments, go on with --resume, and compare the bits of what comes out.

    python benchmarks/kill_and_resume.py --kills 30

Rounds of the same command are killed until enough kills were made; each round ends when a run ends by itself. Every round's
masks must be equal, byte for byte, to those of a run that was never disturbed. Exit status 1 if any differ.
"""

import argparse
import hashlib
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from surroundings import surroundings, write_results

RESULTS = Path(__file__).parent / "results" / "kill-and-resume.json"


def command(out: Path, words: list[str]) -> list[str]:
    """The command of one attempt."""
    return [sys.executable, "-m", "circuitsieve", "discover", *words, "--out", str(out), "--resume"]


def attempt(out: Path, words: list[str], seconds: float | None) -> bool:
    """Run until it ends, or kill it after some seconds; whether it ended."""
    process = subprocess.Popen(command(out, words), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        _, said = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return False
    if process.returncode:
        raise SystemExit(f"the command failed with {process.returncode}: {said}")
    return True


def bits(out: Path) -> str:
    """Of the masks and scores that were found."""
    return hashlib.sha256((out / "masks.safetensors").read_bytes()).hexdigest()


def progress(out: Path) -> int:
    """Steps of the last checkpoint."""
    return max((int(path.name.split("-")[0]) for path in (out / "checkpoint").glob("[0-9]*")), default=0)


def main() -> int:
    """Kill, go on, compare, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/kill-and-resume.json")
    options, words = parser.parse_known_args()
    words = words or ["--model", "demo", "--task", "ioi"]
    generator = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        attempt(Path(folder) / "whole", words, None)
        alone, expected = time.monotonic() - start, bits(Path(folder) / "whole")
        killed, rounds, same = [], 0, 0
        while len(killed) < options.kills:
            out, ended = Path(folder) / f"round{rounds}", False
            while not ended:
                ended = attempt(out, words, generator.uniform(0, alone) if len(killed) < options.kills else None)
                if not ended:
                    killed.append(progress(out))
                    print(f"kill {len(killed)}: the last checkpoint has {killed[-1]} steps", flush=True)
            rounds += 1
            same += bits(out) == expected
            print(f"round {rounds} has ended; masks equal: {bits(out) == expected}", flush=True)
    result = {
        **surroundings(),
        "discover": words,
        "kills": len(killed),
        "steps_in_the_last_checkpoint_at_each_kill": killed,
        "rounds": rounds,
        "rounds_with_equal_masks": same,
    }
    if options.record:
        write_results(RESULTS, result)
    print(f"{len(killed)} kills in {rounds} rounds; masks equal in {same} of them")
    return int(same != rounds)


if __name__ == "__main__":
    sys.exit(main())
