"""Integration, optimisation, sparse matrices and signals with scipy."""

# %%
import hashlib

import numpy as np
from scipy import fft, integrate, optimize, signal, sparse, stats
from scipy.sparse import linalg

generator = np.random.default_rng(99)
digest = hashlib.sha256()

# %%
solver = integrate.RK45(lambda t, y: [y[1], (1 - y[0] ** 2) * y[1] - y[0]], 0, [2.0, 0.0], 20)
for _ in range(40):
    solver.step()
print(solver.t, solver.y)

# %%
size = 3000
matrix = sparse.diags([-1.0, 2.5, -1.0], [-1, 0, 1], shape=(size, size), format="csc")
factors = linalg.splu(matrix)
right = generator.random(size)

# %%
noisy = np.sin(np.linspace(0, 200, 8192)) + generator.normal(0, 0.4, 8192)
sections = signal.butter(4, 0.1, output="sos")
state = signal.sosfilt_zi(sections)
filtered, state = signal.sosfilt(sections, noisy[:4000], zi=state)

# %%
while solver.status == "running":
    solver.step()
solution = factors.solve(right)
rest, state = signal.sosfilt(sections, noisy[4000:], zi=state)
spectrum = fft.rfft(np.concatenate([filtered, rest]))
print(solver.t, abs(spectrum).argmax())

# %%
found = optimize.minimize(optimize.rosen, np.full(6, 1.7), method="BFGS")
test = stats.ks_2samp(generator.normal(size=2000), noisy[:2000])
for part in (solver.y, solution, spectrum, found.x, [test.statistic, test.pvalue]):
    digest.update(np.asarray(part).tobytes())
print(digest.hexdigest())
