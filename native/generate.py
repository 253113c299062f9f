"""Write the cffi wrapper of the native library: ``generate.py OUTPUT HEADER...``.

The headers in ``native/lib`` are the only declarations: plain C, one prototype a statement, so
that what cffi parses is what the compiler checks.
"""

import re
import sys
from pathlib import Path

from cffi import FFI

output, *headers = sys.argv[1:]
ffi = FFI()
ffi.set_source(
    "snapkernel._native",
    "\n".join(f'#include "{Path(header).name}"' for header in headers),
    py_limited_api=True,
)
for header in headers:
    text = re.sub(r"^\s*#.*$", "", Path(header).read_text(), flags=re.MULTILINE)
    ffi.cdef(text)
ffi.emit_c_code(output)
