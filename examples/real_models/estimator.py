"""A scikit-learn pipeline of columns of text and of numbers, as a recipe names it: ``estimator.py:topics``.

It is fitted on ``train.npz`` beside this file (``definitions`` in ``examples.real_models.rows``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

_WORDS = 1500


def topics() -> Any:
    """Fit which package a definition of the standard library is from, by its kind, first word, docstring and sizes."""
    with np.load(Path(__file__).with_name("train.npz")) as train:
        kind, sentence, sizes, y = (train[name] for name in ("kind", "sentence", "sizes", "y"))
    parts = [
        ("kind", OneHotEncoder(handle_unknown="ignore"), [0, 1]),
        ("words", TfidfVectorizer(max_features=_WORDS), 2),
        ("sizes", StandardScaler(), [3, 4]),
    ]
    columns = np.hstack([kind.astype(object), sentence.astype(object), sizes.astype(object)])
    estimator = make_pipeline(ColumnTransformer(parts), LogisticRegression(C=10.0, max_iter=500)).fit(columns, y)
    few = slice(0, 50)
    return estimator, {"kind": kind[few], "sentence": sentence[few], "sizes": sizes[few]}
