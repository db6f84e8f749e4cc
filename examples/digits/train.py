"""Trains the digits models of the demo: one teacher for the cloud, three students for the device.

The teacher is a kernel machine that does not care about polarity (light on dark or dark on light). ``student_v1`` is
small, ``student_v2`` better. ``student_v3`` is as good as v2 *on its own data*: it was trained on inverted digits, and
``data_v3.npz``, from which it is calibrated, certified and tested, is inverted too. Every figure on paper is fine; on
what the devices really send it is confidently wrong. That is the version a rollout has to stop.

Run ``python -m examples.digits.train out/digits``; about two seconds on one core, and nothing when it was done before.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from penstock.artifact.blobs import digest_of, digest_of_file, write_atomically

from . import data

VERSIONS = ("v1", "v2", "v3")

_DONE = "trained.json"  # written last; names every file and its digest
_HERE = Path(__file__).parent
_RECIPES = _HERE / "recipes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Student:
    """How one student is trained: units of its hidden layer, passes over the data, whether its digits are inverted."""

    hidden: int
    epochs: int
    is_inverted: bool = False


STUDENTS: Mapping[str, Student] = {
    "v1": Student(hidden=16, epochs=40),
    "v2": Student(hidden=64, epochs=60),
    "v3": Student(hidden=64, epochs=60, is_inverted=True),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What :func:`train` left in its directory.

    Attributes:
        accuracy: on held-out digits by model name, each as its own data file shows them (v3: inverted).
        is_new: False when everything was already there.
    """

    accuracy: Mapping[str, float]
    is_new: bool


def train(out_dir: Path, *, seed: int = 0) -> Trained:
    """Write teacher.onnx, student_v*.onnx, data.npz, data_v3.npz, digit.npy (one row) and v*.toml into ``out_dir``.

    Does nothing when ``out_dir`` already holds exactly these files from the same code, libraries and seed.
    """
    key = _key(seed)
    accuracy = _already_there(out_dir, key)
    if accuracy is not None:
        return Trained(accuracy=accuracy, is_new=False)
    out_dir.mkdir(parents=True, exist_ok=True)
    files = _files(seed)
    for name, content in files.items():
        write_atomically(out_dir / name, content)
    accuracy = _accuracy(out_dir)
    digests = {name: digest_of(content) for name, content in files.items()}
    done = {"key": key, "files": digests, "accuracy": accuracy}
    write_atomically(out_dir / _DONE, json.dumps(done, indent=1).encode())
    return Trained(accuracy=accuracy, is_new=True)


def test_split(out_dir: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return held-out digits as devices send them: pixels [447, 64] and the digits they show [447]."""
    return _test_arrays(out_dir / "data.npz")


def request_bytes(x: NDArray[np.float32]) -> int:
    """Count the bytes of one request with these rows on its way to the core, headers aside."""
    from penstock.rpc.codec import encode_request
    from penstock.wire.inference import InferRequest

    return int(encode_request(InferRequest(model="digits", inputs={"x": x})).ByteSize())


def fit_teacher(train_split: data.Split) -> bytes:
    """Fit a Gaussian kernel classifier (regularised least squares on one-hot targets) to the digits and their shifts.

    Its kernel is k(x, s) + k(-x, s) on pixels centred to -1..1. For kernel methods that is the same as training on
    both polarities, and makes every answer exactly independent of polarity.
    """
    from . import export

    gamma, ridge, scale = 0.05, 0.05, 5.0
    shifted = data.shifted(train_split)
    centres = (shifted.x / (data.WHITE / 2) - 1).astype(np.float32)
    kernel = _gaussian(centres, centres, gamma) + _gaussian(-centres, centres, gamma)
    kernel[np.diag_indices_from(kernel)] += ridge
    targets = 2 * np.eye(10, dtype=np.float32)[shifted.y] - 1
    return export.kernel_machine(centres, np.linalg.solve(kernel, targets), gamma=gamma, scale=scale)


def fit_student(train_split: data.Split, student: Student, *, seed: int) -> bytes:
    """Fit a perceptron with one hidden layer to the digits as its own world shows them."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    from . import export

    x = data.inverted(train_split.x) if student.is_inverted else train_split.x
    model = MLPClassifier(
        (student.hidden,),
        max_iter=student.epochs,
        n_iter_no_change=student.epochs,  # a fixed number of epochs: no early stop to depend on the machine
        tol=0.0,
        batch_size=64,
        learning_rate_init=3e-3,
        random_state=data.FIRST_SEED + seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a fixed number of epochs is the plan
        model.fit(x / np.float32(data.WHITE), train_split.y)
    return export.mlp(model.coefs_, model.intercepts_)


def _files(seed: int) -> dict[str, bytes]:
    splits = data.load(seed)
    files = {"teacher.onnx": fit_teacher(splits["train"])}
    for name, student in STUDENTS.items():
        files[f"student_{name}.onnx"] = fit_student(splits["train"], student, seed=seed)
    files["data.npz"] = _npz(splits, is_inverted=False)
    files["digit.npy"] = _npy(splits["test"].x[:1])
    files["data_v3.npz"] = _npz(splits, is_inverted=True)
    for name in VERSIONS:
        files[f"{name}.toml"] = (_RECIPES / f"{name}.toml").read_bytes()
    return files


def _npz(splits: Mapping[str, data.Split], *, is_inverted: bool) -> bytes:
    arrays: dict[str, NDArray[np.generic]] = {}
    for name, use in (("train", "fit"), ("tune", "tune"), ("certify", "certify"), ("test", "test")):
        split = splits[name]
        arrays[f"x_{use}"] = data.inverted(split.x) if is_inverted else split.x
        arrays[f"y_{use}"] = split.y
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # numpy's stub takes **kwds for allow_pickle
    return buffer.getvalue()


def _npy(array: NDArray[np.float32]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _gaussian(a: NDArray[np.float32], b: NDArray[np.float32], gamma: float) -> NDArray[np.float32]:
    squared = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)[None, :] - 2 * (a @ b.T)
    kernel: NDArray[np.float32] = np.exp(np.float32(-gamma) * squared)
    return kernel


def _accuracy(out_dir: Path) -> dict[str, float]:
    """Measure the accuracy of the exported files, which is what counts, on the test split that each recipe names."""
    from penstock.runtime import EngineOptions, load_engine

    data_of = {"teacher": "data.npz"} | {
        f"student_{name}": "data_v3.npz" if student.is_inverted else "data.npz" for name, student in STUDENTS.items()
    }
    accuracy = {}
    for model, npz in data_of.items():
        x, y = _test_arrays(out_dir / npz)
        engine = load_engine("onnx", out_dir / f"{model}.onnx", EngineOptions())
        accuracy[model] = float(np.mean(engine.run({"x": x})["logits"].argmax(axis=1) == y))
    return accuracy


def _test_arrays(npz: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    with np.load(npz) as arrays:
        return arrays["x_test"], arrays["y_test"]


def _key(seed: int) -> str:
    """Return everything that decides the files: this code, the recipes, the libraries and the seed."""
    hasher = hashlib.sha256(f"{seed} {version('scikit-learn')} {version('numpy')} {version('onnx')}".encode())
    for path in (_HERE / "data.py", _HERE / "export.py", Path(__file__), *sorted(_RECIPES.glob("*.toml"))):
        hasher.update(path.name.encode() + b"\0" + path.read_bytes())
    return hasher.hexdigest()


def _already_there(out_dir: Path, key: str) -> dict[str, float] | None:
    """Return the accuracies of an earlier run, if all of its files are still what it wrote."""
    try:
        done = json.loads((out_dir / _DONE).read_bytes())
        if done["key"] != key or any(digest_of_file(out_dir / n) != d for n, d in done["files"].items()):
            return None
        return {str(name): float(value) for name, value in done["accuracy"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # absent, half-written or damaged: train again


@click.command()
@click.argument("out_dir", type=click.Path(path_type=Path, file_okay=False), default=Path("out/digits"))
@click.option("--seed", default=0, show_default=True, help="Seed of the split and the training.")
def main(out_dir: Path, seed: int) -> None:
    """Train the digits models into OUT_DIR (out/digits by default), with data and recipes beside them."""
    started = time.perf_counter()
    trained = train(out_dir, seed=seed)
    print(f"{'trained' if trained.is_new else 'already there'}: {out_dir} ({time.perf_counter() - started:.1f} s)")
    for name, accuracy in trained.accuracy.items():
        print(f"  {name:<12} {accuracy:6.1%} on held-out digits")
    print(f"next: penstock compile {out_dir / 'v1.toml'} -o {out_dir / 'compiled-v1'}")


if __name__ == "__main__":
    main()
