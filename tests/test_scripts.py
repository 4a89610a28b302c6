"""The scripts beside the tests, which nothing else starts: a name that moved must not break them unseen."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
SCRIPTS = [HERE / name for name in ("families.py", "fuzz.py", "killed_runs.py")]
SCRIPTS += [
    path for path in sorted((HERE / "benchmarks").glob("*.py")) if path.name != "measuring.py"
]  # what they share

# one process for all: starting each would import torch a dozen times
START_ALL = """
import contextlib, io, json, runpy, sys, traceback
told = {}
for script in sys.argv[1:]:
    out, code = io.StringIO(), None
    sys.argv, sys.path[0] = [script, "--help"], script.rpartition("/")[0]
    with contextlib.redirect_stdout(out):
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as stop:
            code = stop.code or 0
        except BaseException:
            code = traceback.format_exc()
    told[script] = [code, out.getvalue()]
print(json.dumps(told))
"""


def test_every_script_starts_and_tells_how_it_is_called() -> None:
    command = [sys.executable, "-c", START_ALL, *(path.as_posix() for path in SCRIPTS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    for script in SCRIPTS:
        code, text = told[script.as_posix()]
        assert code == 0, f"{script.name}: {code}"
        assert text.startswith("usage: "), script.name
