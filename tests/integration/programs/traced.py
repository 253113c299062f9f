"""Runs as a user under Yama: who can save which process, as JSON.

traced.py STORE
"""

import ctypes
import json
import os
import subprocess
import sys

import snapkernel

PR_SET_PTRACER = 0x59616D61  # <linux/prctl.h>
NAMES = f"""
import ctypes, time
ctypes.CDLL(None).prctl({PR_SET_PTRACER}, ctypes.c_ulong(%d), 0, 0, 0)
print(flush=True)
time.sleep(1000)
"""
STRANGER = """
import sys, snapkernel
try:
    print("saved", snapkernel.checkpoint(int(sys.argv[1]), store=sys.argv[2]).mode)
except snapkernel.SnapkernelError as error:
    print(error)
"""
store = sys.argv[1]
told = {}


def stranger(pid: int) -> str:
    """What a process that is no ancestor of it says."""
    command = [sys.executable, "-c", STRANGER, str(pid), store]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


with subprocess.Popen(["sleep", "1000"]) as child:
    snapshot = snapkernel.checkpoint(child.pid, store=store)
    told["child"] = snapshot.mode
    told["child, by a stranger"] = stranger(child.pid)
    child.kill()
restored = snapkernel.restore(snapshot, store=store)
told["restored, by a stranger"] = stranger(restored.pid)
told["restored"] = snapkernel.checkpoint(restored.pid, store=store).mode
restored.kill()
for name, tracer in (("anybody", ctypes.c_ulong(-1).value), ("us", os.getpid())):
    command = [sys.executable, "-c", NAMES % tracer]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        told[f"named {name}, by a stranger"] = stranger(child.pid)
        child.kill()
print(json.dumps(told))
