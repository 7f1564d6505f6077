"""Run the clients of `rolesafe serve` and record the roles that arrive.

    python -m benchmarks.clients --python garak=/envs/garak/bin/python --python pyrit=/envs/pyrit/bin/python

Each client is run with the interpreter of its environment; a client without one is run with this interpreter if it has
the package, and keeps its earlier record otherwise. A client's record is replaced whole.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
from pathlib import Path

from benchmarks.clients.run import PACKAGES, run_program, save_tiny, serving
from rolesafe.files import write_whole
from rolesafe.terminal import run_main

RECORD = Path(__file__).parents[1] / "results" / "clients.json"


def main() -> int:
    """Run the clients, write the record and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--python", action="append", default=[], metavar="PACKAGE=PATH", help="interpreter of a client")
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--timeout", type=int, default=600, help="seconds for one client")
    parser.add_argument("--out", type=Path, default=RECORD)
    given = parser.parse_args()
    pythons = dict(pair.partition("=")[::2] for pair in given.python)
    if unknown := sorted(set(pythons) - set(PACKAGES.values())):
        raise ValueError(f"`--python`: expected packages out of {sorted(PACKAGES.values())}, got {unknown[0]!r}.")
    record = json.loads(given.out.read_text()) if given.out.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        model, log = Path(folder) / "model", Path(folder) / "log.jsonl"
        save_tiny(model)
        with serving(model, log, given.port) as url:
            for program, package in PACKAGES.items():
                python = pythons.get(package) or (sys.executable if importlib.util.find_spec(package) else None)
                if python is None:
                    print(f"{package}: not installed, skipped")
                    continue
                record[program] = run_program(program, python, url, log, given.timeout)
                print(package, {k: v for k, v in record[program].items() if k != "output"})
                write_whole(given.out, json.dumps(record, indent=2) + "\n")
    return int(any(one["status"] for one in record.values()))


if __name__ == "__main__":
    run_main(main)
