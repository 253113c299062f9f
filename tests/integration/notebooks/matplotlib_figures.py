"""Figures that are begun before and finished after, drawn by matplotlib."""

# %%
import hashlib
import io

import matplotlib.pyplot as plt
import numpy as np

generator = np.random.default_rng(11)
points = generator.normal(size=(2, 500))
digest = hashlib.sha256()

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(6, 3))
scatter = left.scatter(*points, c=np.hypot(*points), cmap="viridis", s=8)
title = left.set_title("begun")

# %%
right.hist(points[0], bins=30, label="first")
curve = right.plot(np.linspace(-3, 3, 50), 20 * np.sinc(np.linspace(-3, 3, 50)), label="curve")

# %%
right.hist(points[1], bins=30, alpha=0.5, label="second")
figure.colorbar(scatter, ax=left)
right.legend()
label = right.set_xlabel(r"$\int_0^x e^{-t^2}\,dt$")

# %%
figure.canvas.draw()
pixels = np.asarray(figure.canvas.buffer_rgba())
print(pixels.shape)
digest.update(pixels.tobytes())

# %%
file = io.BytesIO()
figure.savefig(file, format="svg", metadata={"Date": None})
print(digest.hexdigest(), len(plt.get_fignums()), file.tell() > 10_000)
