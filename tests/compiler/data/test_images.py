"""Image folders: orientation, colours, sizes and crops as other people's loaders have them; broken files are named."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from compiler.data import DataSection, Dataset, images
from compiler.data.parts import Request, silent
from compiler.recipe.data_section import ImagesSection, LimitsSection, NormalizeSection, SplitsSection
from penstock.errors import InvalidInput
from penstock.wire.tensors import TensorSpec

Load = Callable[..., Dataset]
RGB = TensorSpec(name="pixels", datatype="FP32", shape=(-1, 3, 4, 6))
PIXELS = LimitsSection().max_pixels


def noise(height: int, width: int, seed: int = 0, channels: int = 3) -> np.ndarray:
    source = np.random.default_rng(seed)
    return source.integers(0, 256, (height, width, channels)).astype(np.uint8)


def prepared(image: Image.Image, path: Path, settings: ImagesSection, **options: Any) -> np.ndarray:
    image.save(path, **options)
    return images.pixels(path, settings, max_pixels=PIXELS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """``photos/{cat,dog}/N.png``: twelve images of 4x6, each different, and what is to be left alone."""
    root = tmp_path / "photos"
    for at in range(12):
        directory = root / ("cat" if at % 3 else "dog")
        directory.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(4, 6, seed=at)).save(directory / f"{at:02d}.png")
    (root / "README.md").write_text("not an image")
    (root / ".hidden").mkdir()
    (root / ".hidden" / "a.png").write_bytes(b"")
    return root


def test_folders_are_classes_in_the_order_of_their_names(folder: Path, load: Load) -> None:
    loaded = load([RGB], source="photos", classes=2)
    assert loaded.class_names == ("cat", "dog")
    seen = {}
    for split in loaded.by_use().values():
        assert split.labels is not None
        for row, label in zip(split.inputs["pixels"], split.labels, strict=True):
            seen[row.tobytes()] = int(label)
    expected = {
        (noise(4, 6, seed=at).astype(np.float32) * np.float32(1 / 255)).transpose(2, 0, 1).tobytes(): int(at % 3 == 0)
        for at in range(12)
    }
    assert seen == expected


def test_the_models_labels_order_the_classes(folder: Path, load: Load) -> None:
    loaded = load([RGB], source="photos", classes=3, labels_of_model=("eel", "dog", "cat"))
    counts = np.bincount(np.concatenate([s.labels for s in loaded.by_use().values() if s.labels is not None]))
    assert counts.tolist() == [0, 4, 8]
    with pytest.raises(InvalidInput, match="photos/dog: no class of model.labels; did you mean 'dogs'"):
        load([RGB], source="photos", classes=2, labels_of_model=("cat", "dogs"))
    with pytest.raises(InvalidInput, match=r"photos/: 2 names of classes \(cat, dog\), but the model has 3 classes"):
        load([RGB], source="photos", classes=3)


def test_folders_may_be_splits_of_their_own(tmp_path: Path, load: Load) -> None:
    for split, count in {"fit": 4, "certify": 5, "test": 3, "train": 2}.items():
        for at in range(count):
            path = tmp_path / "photos" / split / ("cat" if at % 2 else "dog") / f"{at}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise(4, 6, seed=count * 100 + at)).save(path)
    loaded = load([RGB], source="photos", classes=2)
    assert [split.rows for split in loaded.by_use().values()] == [2, 2, 5, 3]
    with pytest.raises(InvalidInput, match="has a folder 'fit' but none 'warm'"):
        load([RGB], source="photos", classes=2, splits=SplitsSection(tune="warm"))
    (tmp_path / "photos" / "train").rename(tmp_path / "photos" / "tune")
    assert [split.rows for split in load([RGB], source="photos", classes=2).by_use().values()] == [4, 2, 5, 3]


def test_a_class_may_be_called_tune(folder: Path, load: Load) -> None:
    (folder / "dog").rename(folder / "tune")
    assert load([RGB], source="photos", classes=2).class_names == ("cat", "tune")


def test_without_labels_images_may_lie_anywhere(folder: Path, load: Load) -> None:
    Image.fromarray(noise(4, 6, seed=99)).save(folder / "loose.png")
    loaded = load([RGB], source="photos", labels="")
    assert sum(split.rows for split in loaded.by_use().values()) == 13
    assert (loaded.test.labels, loaded.class_names) == (None, ())
    with pytest.raises(InvalidInput, match="loose.png: not in a folder of its class; expected photos/CLASS/loose.png"):
        load([RGB], source="photos", classes=2)


# --- from a file to pixels ----------------------------------------------------------------------------------------


def test_a_camera_held_sideways_gives_an_upright_image(tmp_path: Path) -> None:
    values = noise(4, 6)
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees clockwise to show"
    got = prepared(Image.fromarray(values), tmp_path / "a.png", ImagesSection(), exif=exif)
    np.testing.assert_array_equal(got, np.rot90(values, k=-1))


def test_palettes_grey_transparency_and_cmyk_become_colours(tmp_path: Path) -> None:
    values = noise(4, 6)
    colour = Image.fromarray(values)
    rgba = colour.convert("RGBA")
    rgba.putalpha(7)
    np.testing.assert_array_equal(prepared(rgba, tmp_path / "alpha.png", ImagesSection()), values)
    palette = colour.quantize(256)
    palette.info["transparency"] = bytes(range(200))
    got = prepared(palette, tmp_path / "palette.png", ImagesSection(), transparency=bytes(range(200)))
    np.testing.assert_array_equal(got, np.asarray(colour.quantize(256).convert("RGB")))
    grey = Image.fromarray(values[:, :, 0])
    got = prepared(grey, tmp_path / "grey.png", ImagesSection())
    np.testing.assert_array_equal(got, np.repeat(values[:, :, :1], 3, axis=2))
    bits = Image.fromarray(values[:, :, 0] > 127)
    assert set(np.unique(prepared(bits, tmp_path / "bits.png", ImagesSection(channels="L")))) == {0, 255}
    cmyk = prepared(colour.convert("CMYK"), tmp_path / "cmyk.tif", ImagesSection())
    assert np.abs(cmyk.astype(int) - values).max() <= 1


def test_the_first_picture_of_an_animation_counts(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((4, 6, 3), value, np.uint8)) for value in (10, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert set(np.unique(images.pixels(tmp_path / "a.gif", ImagesSection(), max_pixels=PIXELS))) == {10}


def test_channels_may_be_swapped_or_grey(tmp_path: Path) -> None:
    values = noise(4, 6)
    image = Image.fromarray(values)
    np.testing.assert_array_equal(
        prepared(image, tmp_path / "a.png", ImagesSection(channels="BGR")), values[:, :, ::-1]
    )
    grey = prepared(image, tmp_path / "a.png", ImagesSection(channels="L"))
    assert grey.shape == (4, 6, 1)
    luma = values @ np.array([0.299, 0.587, 0.114])  # ITU-R 601-2, what Pillow documents
    assert np.abs(grey[:, :, 0] - luma).max() < 1


@pytest.mark.parametrize(
    ("size", "resize", "expected"),
    [
        ((6, 4), 8, (12, 8)),
        ((4, 6), 8, (8, 12)),
        ((7, 5), 3, (4, 3)),  # torchvision cuts 3 * 7 / 5 = 4.2
        ((5, 5), 9, (9, 9)),
        ((6, 4), (9, 2), (9, 2)),
    ],
)
def test_resize_keeps_the_ratio_of_the_shorter_side(
    tmp_path: Path, size: tuple[int, int], resize: Any, expected: tuple[int, int]
) -> None:
    got = prepared(Image.fromarray(noise(*size)), tmp_path / "a.png", ImagesSection(resize=resize))
    assert got.shape[:2] == expected


def test_resampling_is_the_filter_that_is_named(tmp_path: Path) -> None:
    checks = np.kron(np.indices((4, 4)).sum(axis=0) % 2 * 255, np.ones((2, 2))).astype(np.uint8)
    image = Image.fromarray(np.stack([checks] * 3, axis=2))
    got = {
        name: prepared(image, tmp_path / "a.png", ImagesSection(resize=(4, 4), resample=name))
        for name in ("nearest", "box", "bilinear", "bicubic", "lanczos", "hamming")
    }
    assert set(np.unique(got["nearest"])) == {0, 255}
    assert len({array.tobytes() for array in got.values()}) >= 5


@pytest.mark.parametrize(
    ("size", "crop", "rows", "columns"),
    [
        ((6, 8), 4, slice(1, 5), slice(2, 6)),
        ((5, 8), (4, 3), slice(0, 4), slice(2, 5)),  # halves go to the even number: 0.5 -> 0, 2.5 -> 2
        ((7, 9), (4, 4), slice(2, 6), slice(2, 6)),  # 1.5 -> 2
    ],
)
def test_center_crop_is_the_middle(
    tmp_path: Path, size: tuple[int, int], crop: Any, rows: slice, columns: slice
) -> None:
    values = noise(*size)
    got = prepared(Image.fromarray(values), tmp_path / "a.png", ImagesSection(center_crop=crop))
    np.testing.assert_array_equal(got, values[rows, columns])


def test_an_image_smaller_than_the_crop_is_padded_with_black(tmp_path: Path) -> None:
    values = noise(2, 9)
    got = prepared(Image.fromarray(values), tmp_path / "a.png", ImagesSection(center_crop=5))
    expected = np.zeros((5, 5, 3), np.uint8)
    expected[1:3] = values[:, 2:7]
    np.testing.assert_array_equal(got, expected)


# --- from pixels to an input --------------------------------------------------------------------------------------


def one(folder: Path, spec: TensorSpec, **settings: Any) -> np.ndarray:
    """All rows in the order of the files."""
    section = DataSection(source=folder.name, labels="", images=ImagesSection(**settings))
    request = Request(section=section, base=folder.parent, inputs=[spec], wants_labels=False, progress=silent)
    (part,) = images.read(request)
    return part.inputs[spec.name]


def test_values_are_rescaled_and_normalized_by_channel(folder: Path) -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    got = one(folder, RGB, normalize=NormalizeSection(mean=mean, std=std))
    plain = one(folder, RGB, rescale=1.0)
    expected = (plain / 255 - np.reshape(mean, (1, 3, 1, 1))) / np.reshape(std, (1, 3, 1, 1))
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert plain.max() > 200


def test_an_image_becomes_what_torchvision_makes_of_it(tmp_path: Path) -> None:
    """torchvision.npz is what Resize, CenterCrop, ToTensor and Normalize of torchvision 0.29.2 make of these images."""
    normal = NormalizeSection(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    settings = {
        "bilinear": ImagesSection(resize=12, center_crop=9, normalize=normal),
        "bicubic": ImagesSection(resize=(8, 11), resample="bicubic", normalize=normal),
        "crop": ImagesSection(center_crop=(16, 7), normalize=normal),
    }
    with np.load(Path(__file__).with_name("torchvision.npz")) as recorded:
        expected = dict(recorded)
    for name, values in expected.items():
        size, _, how = name.partition(" ")
        height, width = map(int, size.split("x"))
        root = tmp_path / name
        root.mkdir()
        Image.fromarray(noise(height, width, seed=height * 100 + width)).save(root / "a.png")
        spec = TensorSpec(name="pixels", datatype="FP32", shape=(-1, 3, -1, -1))
        got = one(root, spec, **msgspec.structs.asdict(settings[how]))
        np.testing.assert_allclose(got[0], values, atol=2e-6)
    assert len(expected) == 12


def test_layouts_and_datatypes_are_the_models(folder: Path) -> None:
    plain = one(folder, RGB, rescale=1.0)
    last = TensorSpec(name="pixels", datatype="UINT8", shape=(-1, -1, -1, 3))
    np.testing.assert_array_equal(one(folder, last, layout="NHWC").transpose(0, 3, 1, 2), plain)
    flat = TensorSpec(name="pixels", datatype="FP32", shape=(-1, 24))
    grey = TensorSpec(name="pixels", datatype="FP32", shape=(-1, 4, 6))
    np.testing.assert_array_equal(one(folder, flat, channels="L").reshape(-1, 4, 6), one(folder, grey, channels="L"))
    line = TensorSpec(name="pixels", datatype="FP32", shape=(-1, 72))
    np.testing.assert_array_equal(one(folder, line, rescale=1.0).reshape(-1, 3, 4, 6), plain)


@pytest.mark.parametrize(
    ("spec", "settings", "message"),
    [
        (RGB, {"resize": (5, 6)}, r"gives \[3, 5, 6\], but input 'pixels' takes \[3, 4, 6\]; see data.images: resize"),
        (RGB, {"channels": "L"}, r"gives \[1, 4, 6\], but input 'pixels' takes \[3, 4, 6\]"),
        (RGB, {"layout": "NHWC"}, r"gives \[4, 6, 3\], but"),
        (
            TensorSpec(name="pixels", datatype="UINT8", shape=(-1, 3, 4, 6)),
            {"rescale": 1 / 255},
            "which UINT8 cannot hold",
        ),
        (TensorSpec(name="pixels", datatype="BYTES", shape=(-1, 3, 4, 6)), {}, "takes BYTES; images become numbers"),
    ],
)
def test_images_that_do_not_fit_the_input_are_refused(
    folder: Path, spec: TensorSpec, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        one(folder, spec, **settings)


def test_images_of_differing_sizes_need_a_resize(folder: Path) -> None:
    Image.fromarray(noise(5, 6)).save(folder / "cat" / "odd.png")
    free = TensorSpec(name="pixels", datatype="FP32", shape=(-1, 3, -1, -1))
    message = r"cat/odd.png: gives \[3, 5, 6\], but 01.png gives \[3, 4, 6\]; set data.images.resize"
    with pytest.raises(InvalidInput, match=message):
        one(folder, free)
    assert one(folder, free, resize=(4, 4)).shape == (13, 3, 4, 4)


# --- bad files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"\0" * 40, b"GIF89a", b"BM" + b"\xff" * 60]
)
def test_a_broken_image_is_named(folder: Path, load: Load, content: bytes) -> None:
    (folder / "cat" / "bad.png").write_bytes(content)
    with pytest.raises(InvalidInput, match="cat/bad.png: not a readable image"):
        load([RGB], source="photos", classes=2)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "tif", "bmp"])
def test_a_truncated_image_is_named_whatever_its_format(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(noise(64, 64)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InvalidInput, match=f"a.{suffix}: not a readable image"):
        images.pixels(path, ImagesSection(), max_pixels=PIXELS)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_deep_images_are_refused_instead_of_clipped(tmp_path: Path, mode: str) -> None:
    kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
    path = tmp_path / "deep.tif"
    Image.fromarray(np.full((4, 4), 3000, kind)).save(path)
    with pytest.raises(InvalidInput, match=r"deep.tif: more than 8 bits a channel \(mode .*\); convert it to 8 bits"):
        images.pixels(path, ImagesSection(), max_pixels=PIXELS)


def test_a_decompression_bomb_is_refused_before_it_is_decoded(folder: Path, load: Load) -> None:
    bomb = folder / "cat" / "bomb.png"
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", 30000, 30000, 1, 0, 0, 0, 0), b"IDAT")
    framed = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    bomb.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(framed))
    with pytest.raises(InvalidInput, match=r"bomb.png: (30000x30000|too many) pixels"):
        load([RGB], source="photos", classes=2)
    Image.new("1", (100, 100)).save(bomb)
    limits = LimitsSection(max_pixels=9999)
    with pytest.raises(InvalidInput, match=r"bomb.png: 100x100 pixels, at most 9999 \(data.limits.max_pixels\)"):
        load([RGB], source="photos", classes=2, limits=limits)


@pytest.mark.parametrize(
    ("limits", "message"),
    [({"max_rows": 11}, "12 images, at most 11"), ({"max_bytes": 1000}, "12 images become 3456 bytes, at most 1000")],
)
def test_more_than_the_limits_is_refused(folder: Path, load: Load, limits: dict[str, int], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        load([RGB], source="photos", classes=2, limits=LimitsSection(**limits))


def test_folders_that_are_none(tmp_path: Path, load: Load) -> None:
    with pytest.raises(InvalidInput, match="photos: no such file or folder; expected an .npz, .csv or .parquet file"):
        load([RGB], source="photos")
    (tmp_path / "photos").write_text("")
    with pytest.raises(InvalidInput, match="photos: not a folder"):
        load([RGB], source="photos")
    (tmp_path / "photos").unlink()
    (tmp_path / "photos").mkdir()
    with pytest.raises(InvalidInput, match="photos: no images in it; known suffixes: .bmp"):
        load([RGB], source="photos")
    with pytest.raises(InvalidInput, match="images are one input, but the model takes pixels, more; use an iterator"):
        load([RGB, TensorSpec(name="more", datatype="FP32", shape=(-1,))], source="photos")
