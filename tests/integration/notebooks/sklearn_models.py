"""Fitting models with scikit-learn, on threads."""

# %%
import hashlib

import numpy as np
from sklearn.datasets import make_classification
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import SGDClassifier
from sklearn.model_selection import KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

features, labels = make_classification(1200, 20, random_state=3)
digest = hashlib.sha256()

# %%
pipeline = make_pipeline(StandardScaler(), PCA(8, random_state=0))
reduced = pipeline.fit_transform(features)
print(reduced.shape)

# %%
online = SGDClassifier(random_state=np.random.RandomState(5))
batches = KFold(6, shuffle=True, random_state=1).split(reduced)
for _ in range(3):
    _, batch = next(batches)
    online.partial_fit(reduced[batch], labels[batch], classes=[0, 1])

# %%
forest = RandomForestClassifier(20, n_jobs=2, random_state=4, warm_start=True)
forest.fit(reduced[:600], labels[:600])

# %%
for _, batch in batches:
    online.partial_fit(reduced[batch], labels[batch])
forest.set_params(n_estimators=35).fit(reduced[:600], labels[:600])
print(online.score(reduced, labels), forest.score(reduced[600:], labels[600:]))

# %%
digest.update(online.coef_.tobytes())
digest.update(forest.predict_proba(reduced).tobytes())
digest.update(pipeline.transform(features[::-1]).tobytes())
print(digest.hexdigest())
