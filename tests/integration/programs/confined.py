"""Runs in a sandbox: saves and restores a process, and says as JSON what became of it.

confined.py STORE
"""

import json
import subprocess
import sys

import snapkernel

told = {}
store = sys.argv[1]
with subprocess.Popen(["sleep", "1000"]) as process:
    try:
        told["findings"] = {f.object: f.status for f in snapkernel.explain(process.pid)}
        snapshot = snapkernel.checkpoint(process.pid, store=store)
        told["mode"], told["notes"] = snapshot.mode, snapshot.notes
        assert process.poll() is None
        restored = snapkernel.restore(snapshot, store=store)
        told["restored"] = restored.notes
        restored.kill()
    except snapkernel.SnapkernelError as error:
        told["error"] = [type(error).__name__, error.object, error.reason, error.remedy]
    told["alive"] = process.poll() is None
    process.kill()
print(json.dumps(told))
