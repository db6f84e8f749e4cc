"""Models to export: a scikit-learn and a torch factory, and tiny Hugging Face models made in their own toolchain."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from compiler import sources
from compiler.sources import Exported, SourceSection
from penstock import toolchain as toolchains

RUNNERS = Path(__file__).parent

ESTIMATORS = textwrap.dedent('''
    """Fitted on wine; the labels of one are words."""
    import numpy as np
    from sklearn.datasets import load_wine
    from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    X, Y = load_wine(return_X_y=True)
    WORDS = np.array(["barolo", "grignolino", "barbera"])

    def logistic():
        return make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(X, Y)

    def forest():
        return RandomForestClassifier(12, random_state=0).fit(X, WORDS[Y])

    def boosting():
        return GradientBoostingClassifier(n_estimators=8, random_state=0).fit(X, Y), {"x": X[:40]}

    def ridge():
        return Ridge().fit(X, Y)

    def unfitted():
        return Ridge()

    def no_probabilities():
        return LinearSVC().fit(X, Y)

    def number():
        return 3

    def fails():
        raise RuntimeError("no data here")

    def examples_of_another_shape():
        return ridge(), X[:, :5]
''')

MODULES = textwrap.dedent('''
    """Small torch modules, some of which cannot be exported, or export as something else."""
    import torch
    from torch import nn


    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head, self.drop = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4), nn.Dropout(0.5)

        def forward(self, pixels):
            features = self.conv(pixels).relu().mean((2, 3))
            return {"logits": self.drop(self.head(features)), "features": features}

    def net():
        return Net(), {"pixels": torch.randn(1, 3, 8, 8)}

    def net_alone():
        return Net()

    class Branches(Net):
        def forward(self, pixels):
            logits = super().forward(pixels)["logits"]
            return logits if logits.sum() > 0 else -logits

    class Traced(Net):
        def forward(self, pixels):
            logits = super().forward(pixels)["logits"]
            return logits * 2 if torch.compiler.is_exporting() else logits

    class Frozen(Net):
        def forward(self, pixels):
            return super().forward(pixels)["logits"].reshape(2, 4)

    class Random(Net):
        def forward(self, pixels):
            return super().forward(pixels)["logits"] + torch.rand(4)

    class Words(Net):
        def forward(self, pixels):
            return "a word"

    class Text(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(50, 8), nn.Linear(8, 3)

        def forward(self, input_ids, attention_mask):
            weights = attention_mask[..., None].float()
            return self.head((self.table(input_ids) * weights).sum(1) / weights.sum(1).clamp(min=1))

    class Estimator:
        def fit(self): ...
        def predict(self): ...

    IMAGES = (torch.randn(2, 3, 8, 8),)

    def branches(): return Branches(), IMAGES
    def traced(): return Traced(), IMAGES
    def frozen(): return Frozen(), IMAGES
    def random(): return Random(), IMAGES
    def words(): return Words(), IMAGES
    def text(): return Text()
    def estimator(): return Estimator()
    def number(): return 3
    def fails(): raise RuntimeError("no weights here")
    def unknown_example(): return Net(), {"sound": torch.zeros(2, 3)}
    def single_number(): return Net(), {"pixels": torch.tensor(1.0)}
''')


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A recipe's directory with both files of factories."""
    directory = tmp_path / "base"
    directory.mkdir()
    (directory / "estimators.py").write_text(ESTIMATORS)
    (directory / "modules.py").write_text(MODULES)
    return directory


@pytest.fixture
def exported(tmp_path: Path) -> Callable[..., Exported]:
    """``exported(model, base, **section)`` detects and exports into a fresh directory."""

    def export(model: str, base: Path, *, seed: int = 0, **settings: Any) -> Exported:
        section = msgspec.convert(settings, SourceSection)
        source = sources.detect(model, base, section)
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        out.mkdir()
        return sources.export(source, section, out, progress=lambda share, note: None, seed=seed)

    return export


@pytest.fixture(scope="session")
def tiny_models(toolchain: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directories ``classifier`` (BERT), ``images`` (ViT), ``sentences`` (DistilBERT, pooled), ``language`` (Llama)."""
    out = tmp_path_factory.mktemp("hugging-face")
    toolchains.call(toolchain("optimum"), RUNNERS / "make_tiny_models.py", {"out": str(out)})
    return out
