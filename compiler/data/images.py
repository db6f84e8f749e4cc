"""Examples from a folder of images: ``CLASS/*.png``, or ``SPLIT/CLASS/*.png``; without labels, any images below it.

Owns what happens between a file and a row of the model's input, by torchvision's rules on Pillow images: orientation,
colours, resize, centre crop, rescale, normalize. A file is an image by its suffix; hidden files and others are left
alone. A broken image is an error that names it, never a missing row.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.data import untrusted
from compiler.data.parts import ALL, LABELS, Part, Request, bad_source, too_large
from compiler.recipe.data_section import DataSection, ImagesSection
from penstock.errors import InvalidInput, missing_extra
from penstock.process.config import nearest
from penstock.wire.tensors import Array, TensorSpec, numpy_dtype

try:
    from PIL import Image, ImageOps
except ImportError as error:  # the library is behind an extra
    raise missing_extra("Pillow", "data", "reading images") from error

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})
_SAY_EVERY = 500
_DEEP = frozenset({"I", "F", "I;16", "I;16B", "I;16L", "I;16N"})
"""Pillow's modes of more than 8 bits a channel; converting them to 8 would clip nearly every pixel to white."""


def read(request: Request) -> list[Part]:
    """Read the images: one part for each split when the folder holds folders of their names, else one for everything.

    Raises:
        InvalidInput: no such folder, no images, a broken or huge image, or images of differing sizes.
    """
    root = request.path
    if not root.is_dir():
        what = "not a folder" if root.exists() else "no such file or folder"
        raise bad_source(
            f"{root}: {what}; expected an .npz, .csv or .parquet file, a folder of images, or 'module:function'"
        )
    if len(request.inputs) != 1:
        takes = ", ".join(spec.name for spec in request.inputs)
        raise bad_source(f"{root}: images are one input, but the model takes {takes}; use an iterator")
    return [_part(root / split, split, request) for split in splits_of(request.section, request.base)]


def splits_of(section: DataSection, base: Path) -> tuple[str, ...]:
    """Return the splits with a folder of their own; ``(ALL,)`` when there are none.

    Raises:
        InvalidInput: folders for some of the splits.
    """
    root = base / section.source
    has_splits = (root / section.splits.fit).is_dir()  # else a folder "tune" is a class of that name
    names = tuple(section.splits.names_in(lambda name: has_splits and (root / name).is_dir()).values())
    found = [name for name in names if (root / name).is_dir()]
    missing = [name for name in names if name not in found]
    if found and missing:
        raise InvalidInput(
            f"{root}: has a folder {found[0]!r} but none {missing[0]!r} (data.splits); either all splits or none",
            field="data.splits",
        )
    return names if found else (ALL,)


def pixels(path: Path, settings: ImagesSection, *, max_pixels: int) -> NDArray[np.uint8]:
    """Read one image, oriented, in the channels of ``settings``, resized and cropped: uint8 [height, width, channels].

    Raises:
        InvalidInput: not an image, broken, of more than 8 bits a channel, or larger than ``max_pixels``.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata; sizes are checked here
            with Image.open(path) as file:
                if file.width * file.height > max_pixels:
                    raise bad_source(
                        f"{path}: {file.width}x{file.height} pixels, at most {max_pixels} (data.limits.max_pixels)"
                    )
                if file.mode in _DEEP:
                    raise bad_source(
                        f"{path}: more than 8 bits a channel (mode {file.mode}); convert it to 8 bits first"
                    )
                image = _coloured(ImageOps.exif_transpose(file), settings)
    except Image.DecompressionBombError:
        raise bad_source(f"{path}: too many pixels (data.limits.max_pixels: {max_pixels})") from None
    except (OSError, SyntaxError, ValueError, EOFError, OverflowError, struct.error, zlib.error) as error:
        raise bad_source(f"{path}: not a readable image: {error}") from error
    return _array(_cropped(_resized(image, settings), settings), settings)


def _part(root: Path, split: str, request: Request) -> Part:
    files, words = _files(root, request)
    (spec,) = request.inputs
    section, limits = request.section, request.section.limits
    if len(files) > limits.max_rows:
        raise too_large(f"{root}: {len(files)} images, at most {limits.max_rows}", "max_rows")
    rows: Array | None = None
    for at, file in enumerate(files):
        row = _row(pixels(file, section.images, max_pixels=limits.max_pixels), section.images, spec, str(file))
        if rows is None:
            if row.nbytes * len(files) > limits.max_bytes:
                size = row.nbytes * len(files)
                raise too_large(
                    f"{root}: {len(files)} images become {size} bytes, at most {limits.max_bytes}", "max_bytes"
                )
            rows = np.empty((len(files), *row.shape), dtype=row.dtype)
        if row.shape != rows.shape[1:]:
            raise bad_source(
                f"{file}: gives {list(row.shape)}, but {files[0].name} gives {list(rows.shape[1:])}; set "
                "data.images.resize = [height, width], or resize and center_crop"
            )
        rows[at] = row
        if (at + 1) % _SAY_EVERY == 0:
            request.progress(f"{at + 1} of {len(files)} images")
    assert rows is not None  # _files gives at least one
    return Part(
        split=split,
        inputs={spec.name: rows},
        labels=None if words is None else np.array(words, dtype=object),
        groups=None,
        fields={spec.name: f"{root.name}/", LABELS: f"{root.name}/"},
        class_names=() if words is None else tuple(sorted(set(words))),
    )


def _files(root: Path, request: Request) -> tuple[list[Path], list[str] | None]:
    """Return the image files in a stable order, and the class of each: its folder."""
    below = sorted(
        path
        for path in root.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
        and path.is_file()
    )
    if not below:
        raise bad_source(f"{root}: no images in it; known suffixes: {', '.join(sorted(SUFFIXES))}")
    if not request.wants_labels:
        return below, None
    loose = next((path for path in below if path.parent == root), None)
    if loose is not None:
        raise InvalidInput(
            f'{loose}: not in a folder of its class; expected {root.name}/CLASS/{loose.name}, or data.labels = ""',
            field="data.labels",
        )
    return below, [path.relative_to(root).parts[0] for path in below]


def _coloured(image: Image.Image, settings: ImagesSection) -> Image.Image:
    """Convert to grey or RGB; transparency is dropped, as torchvision's and transformers' loaders do."""
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # a palette may hold its own transparency
    return image.convert("L" if settings.channels == "L" else "RGB")


def _resized(image: Image.Image, settings: ImagesSection) -> Image.Image:
    """Resize as torchvision.transforms.Resize does: an int is the shorter side, and the longer one is cut to a whole
    number.
    """
    size = settings.resize
    if size is None:
        return image
    width, height = image.size
    if isinstance(size, int):
        short, long = min(width, height), max(width, height)
        other = int(size * long / short)
        new = (size, other) if width <= height else (other, size)
    else:
        new = (size[1], size[0])
    return image if new == image.size else image.resize(new, Image.Resampling[settings.resample.upper()])


def _cropped(image: Image.Image, settings: ImagesSection) -> Image.Image:
    """Crop as torchvision.transforms.CenterCrop does: smaller images are padded with black, halves rounded to even."""
    size = settings.center_crop
    if size is None:
        return image
    want_height, want_width = (size, size) if isinstance(size, int) else size
    width, height = image.size
    if want_width > width or want_height > height:
        across, down = max(want_width - width, 0), max(want_height - height, 0)
        canvas = Image.new(image.mode, (width + across, height + down))
        canvas.paste(image, (across // 2, down // 2))
        image, (width, height) = canvas, canvas.size
    top, left = round((height - want_height) / 2.0), round((width - want_width) / 2.0)
    return image.crop((left, top, left + want_width, top + want_height))


def _array(image: Image.Image, settings: ImagesSection) -> NDArray[np.uint8]:
    values: NDArray[np.uint8] = np.asarray(image, dtype=np.uint8)
    if settings.channels == "L":
        values = values[:, :, np.newaxis]
    elif settings.channels == "BGR":
        values = values[:, :, ::-1]
    return values


def _row(values: NDArray[np.uint8], settings: ImagesSection, spec: TensorSpec, field: str) -> Array:
    """Make one row of the input: rescaled, normalized, laid out, in its datatype and shape (without the batch)."""
    if spec.datatype == "BYTES":
        raise bad_source(f"input {spec.name!r} takes BYTES; images become numbers")
    floats = numpy_dtype(spec.datatype).kind == "f"
    factor = settings.rescale or (1 / 255 if floats else 1.0)
    row: NDArray[Any] = values
    if factor != 1.0 or settings.normalize is not None:
        row = values.astype(np.float32) * np.float32(factor)
    if settings.normalize is not None:
        row = (row - np.array(settings.normalize.mean, np.float32)) / np.array(settings.normalize.std, np.float32)
    if settings.layout == "NCHW":
        row = row.transpose(2, 0, 1)
    shaped: Array = _shaped(untrusted.cast(row[np.newaxis], spec.datatype, field=field), spec, field)[0]
    return shaped


def _shaped(row: Array, spec: TensorSpec, field: str) -> Array:
    """Fit an image to the input: grey images lose their channel for [N, H, W]; [N, D] takes the pixels in a line."""
    axis = next((axis for axis in (1, 3) if row.shape[axis] == 1), None)
    if len(spec.shape) == 3 and axis is not None:
        row = row.squeeze(axis)
    if len(spec.shape) == 2:
        row = row.reshape(1, -1)
    if len(spec.shape) == row.ndim and all(w in (-1, h) for w, h in zip(spec.shape[1:], row.shape[1:], strict=True)):
        return row
    raise InvalidInput(
        f"{field}: gives {list(row.shape[1:])}, but input {spec.name!r} takes {list(spec.shape[1:])}; see "
        "data.images: resize, center_crop, channels and layout",
        field="data.images",
    )


def class_names(parts: Sequence[Part], labels: Sequence[str]) -> tuple[str, ...]:
    """Return the classes in the order of the model's outputs: ``labels`` where given, else the folders' names, sorted.

    Raises:
        InvalidInput: a folder that is no class.
    """
    folders = sorted({name for part in parts for name in part.class_names})
    for folder in folders:
        if labels and folder not in labels:
            raise InvalidInput(
                f"{parts[0].fields[LABELS]}{folder}: no class of model.labels; {nearest(folder, labels)}",
                field="data.labels",
            )
    return tuple(labels) or tuple(folders)
