"""The recipe's table [data]: where the examples are, what their parts mean, and how raw data become a model's inputs.

Decides names, kinds of sources and ranges of settings. Whether a source holds what the settings say is found when it is
read; nothing here touches a disk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar, Literal

import msgspec

from penstock.errors import ConfigError

Kind = Literal["npz", "csv", "parquet", "images", "iterator"]
Channels = Literal["RGB", "BGR", "L"]
Resample = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
RepeatsAre = Literal["", "natural", "copies"]

USES = ("fit", "tune", "certify", "test")
"""What a split can be for, as recipes call it. ``fit`` gives the integer ranges; see ``compiler.data.dataset``."""

_SUFFIXES: dict[str, Kind] = {".npz": "npz", ".csv": "csv", ".parquet": "parquet"}


class SplitsSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a source with splits of its own calls them: suffixes of arrays, values of a column, names of folders.

    Attributes:
        fit: examples for integer ranges.
        tune: examples for temperature, choices and the gate; "" takes those that the source calls "tune", or half of
            ``fit`` where it has none (a function is asked for none).
        certify: examples for the promise, looked at once.
        test: examples for the figures that people read.
        column: table column that holds the names; "" when the table has no splits of its own.
    """

    fit: str = "fit"
    tune: str = ""
    certify: str = "certify"
    test: str = "test"
    column: str = ""

    def names(self) -> dict[str, str]:
        """Return the source's name of each split that is read."""
        named = {"fit": self.fit, "tune": self.tune, "certify": self.certify, "test": self.test}
        return {use: name for use, name in named.items() if name}

    def names_in(self, is_there: Callable[[str], bool]) -> dict[str, str]:
        """Return the source's name of each split that is read from a source of which it is known what is there."""
        named = self.names()
        if "tune" not in named and "tune" not in named.values() and is_there("tune"):
            named["tune"] = "tune"
        return named


class SharesSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a source without splits of its own is divided; see ``compiler.data.splitting``.

    Attributes:
        fit: share of the rows for integer ranges and training; the four are 1 together.
        tune: share for every choice.
        certify: share that is looked at once.
        test: share for figures that decide nothing.
    """

    fit: float = 0.2
    tune: float = 0.2
    certify: float = 0.4
    test: float = 0.2

    def by_use(self) -> dict[str, float]:
        return {"fit": self.fit, "tune": self.tune, "certify": self.certify, "test": self.test}


class LimitsSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is too much: calibration and certification need thousands of examples, not millions.

    Attributes:
        max_rows: of the source.
        max_bytes: of the arrays that it becomes, and of any one file.
        max_pixels: of one image before it is resized.
        max_seconds: for an iterator to give all of its rows.
    """

    max_rows: int = 200_000
    max_bytes: int = 4 * 1024**3
    max_pixels: int = 64 * 1024**2
    max_seconds: float = 900.0


class TokenizerSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How text becomes ``input_ids``, ``attention_mask`` and ``token_type_ids``.

    Attributes:
        file: a ``tokenizer.json`` of the Hugging Face tokenizers library; "" when there is no text. Beside pictures and
            arrays it is for labels of the task "seq2seq".
        max_length: in tokens; 0 takes the model's fixed dimension, else the file's own truncation, else 128.
        padding: every row to ``max_length``, or to the longest row ("longest", where the model's dimension is free).
        truncation: which text of a pair is cut; "none" refuses rows that are too long.
        pad_token: where the file does not say it and it is neither [PAD] nor <pad>.
    """

    file: str = ""
    max_length: int = 0
    padding: Literal["max_length", "longest"] = "max_length"
    truncation: Literal["longest_first", "only_first", "only_second", "none"] = "longest_first"
    pad_token: str = ""


class NormalizeSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``(x - mean) / std`` for each channel, in the order of ``channels``, after ``rescale``.

    Attributes:
        mean: one for each channel.
        std: one for each channel, above 0.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]


class ImagesSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is done to an image, in this order and by torchvision's rules: resize, crop, rescale, normalize.

    Attributes:
        channels: order of the colours; "L" is grey.
        layout: where the channels go in a row of the input.
        resize: length of the shorter side, or [height, width].
        resample: the filter of ``resize``, as Pillow implements it.
        center_crop: side of the square cut from the middle, or [height, width]; smaller images are padded with black.
        rescale: factor for the values 0 to 255; 0 means 1/255 for an input of floats and 1 for one of integers.
        normalize: mean and standard deviation of each channel, {mean = [...], std = [...]}.
    """

    channels: Channels = "RGB"
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    resize: int | tuple[int, int] | None = None
    resample: Resample = "bilinear"
    center_crop: int | tuple[int, int] | None = None
    rescale: float = 0.0
    normalize: NormalizeSection | None = None


class DataSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the examples are. The kind follows from ``source``: a suffix, a folder, or a colon.

    Attributes:
        source: ``digits.npz``, ``wine.csv``, ``wine.parquet``, a folder of images, or a Python iterator
            ``module:function`` or ``path/file.py:function``; paths are relative to the recipe.
        inputs: array names (npz, iterator) for inputs that are called differently there.
        columns: columns (csv, parquet) of each input that is not one column of its own name: "col", ["c1", "c2"], or
            a pattern such as "pixel_*" in the order of the file.
        labels: array or column of the labels; "" when there are none. Image folders: the folders' names, unless "".
        text: column of the text, or the two columns of a pair, for the tokenizer.
        group_by: array or column that names each row's group, for certificates by group.
        delimiter: of csv files.
        empty_cells: of csv files, in a column of words that the model takes as they are: "refuse" one, since it looks
            like a missing value, or take it as an empty "text".
        repeats: what equal rows are. "natural": each is a draw by itself, since service will repeat them too (commands,
            log lines, few categories). "copies": they say one thing several times (``np.repeat``, oversampling), so
            each distinct one counts once and none may be in two splits. "" takes equal rows for copies, and says so.
        cluster_by: array or column that says what rows belong to, such as a patient, a camera, or the original of what
            augmentation made; it need not be an input. Rows of one cluster stay in one split, and the promise is over
            clusters. "" looks for a column with such a name, unless ``repeats`` is "natural".
        seed: another one divides the examples in another way.
    """

    REPLACED: ClassVar[Mapping[str, str]] = {
        "duplicates": 'data.repeats: "natural" where equal rows are draws like any others, "copies" where they are not'
    }

    source: str
    inputs: dict[str, str] = {}
    columns: dict[str, str | tuple[str, ...]] = {}
    labels: str = "y"
    text: str | tuple[str, str] = ""
    group_by: str = ""
    delimiter: str = ","
    empty_cells: Literal["refuse", "text"] = "refuse"
    repeats: RepeatsAre = ""
    cluster_by: str = ""
    seed: int = 0
    splits: SplitsSection = SplitsSection()
    shares: SharesSection = SharesSection()
    limits: LimitsSection = LimitsSection()
    tokenizer: TokenizerSection = TokenizerSection()
    images: ImagesSection = ImagesSection()

    @property
    def text_columns(self) -> tuple[str, ...]:
        """List the columns that hold text: none, one, or the two of a pair."""
        return self.text if isinstance(self.text, tuple) else ((self.text,) if self.text else ())


def kind_of(source: str) -> Kind:
    """Say what kind of source a name names, without looking at the disk: no known suffix and no colon is a folder.

    Raises:
        ConfigError: a file of another kind.
    """
    suffix = Path(source).suffix.lower()
    if suffix in _SUFFIXES:
        return _SUFFIXES[suffix]
    module, colon, function = source.rpartition(":")
    if colon and module and function.isidentifier():
        return "iterator"
    if suffix in (".tsv", ".json", ".jsonl", ".pkl", ".pickle", ".h5", ".npy", ".py", ".zip", ".tar", ".gz", ".txt"):
        raise ConfigError(
            f"data.source: {source!r}: expected .npz, .csv, .parquet, a folder of images, or a Python iterator "
            "'module:function' or 'file.py:function'; an iterator can read anything"
        )
    return "images"


def check(section: DataSection) -> None:
    """Check everything that can be known of the settings without the source.

    Raises:
        ConfigError: a value out of range, or settings that do not go together.
    """
    kind = kind_of(section.source)
    _check_kind(section, kind)
    shares, limits, images = section.shares.by_use(), section.limits, section.images
    sides = [*_sides(images.resize), *_sides(images.center_crop)]
    names = list(section.splits.names().values())
    in_range = {
        "seed": (section.seed >= 0, section.seed, "0 or more"),
        "delimiter": (len(section.delimiter) == 1, repr(section.delimiter), "one character"),
        "shares": (
            all(share > 0 for share in shares.values()) and abs(sum(shares.values()) - 1) < 1e-6,
            ", ".join(f"{use} {share:g}" for use, share in shares.items()),
            "four shares above 0 that make 1 together",
        ),
        "splits": (
            len(names) == len(set(names)) and {"fit", "certify", "test"} <= set(section.splits.names()),
            ", ".join(names),
            "a name of its own for each of fit, certify and test (and for tune, unless it is half of fit)",
        ),
        "limits": (
            min(limits.max_rows, limits.max_bytes, limits.max_pixels) > 0 and limits.max_seconds > 0,
            ", ".join(f"{name} {value:g}" for name, value in msgspec.structs.asdict(limits).items()),
            "limits above 0",
        ),
        "tokenizer.max_length": (0 <= section.tokenizer.max_length <= 1_000_000, section.tokenizer.max_length, ">= 0"),
        "images.resize, images.center_crop": (all(1 <= side <= 16384 for side in sides), sides, "sides of 1 to 16384"),
        "images.rescale": (images.rescale >= 0, images.rescale, "a factor above 0, or 0 for the default"),
        "images.normalize": (_is_normal(images), images.normalize, _normal_words(images)),
    }
    for name, (is_good, value, expected) in in_range.items():
        if not is_good:
            raise ConfigError(f"data.{name}: {value} given, expected {expected}")


def _check_kind(section: DataSection, kind: Kind) -> None:
    """Refuse settings that a kind of source would ignore: they are mistakes."""
    default = DataSection(source="")
    table, arrays = ("csv", "parquet"), ("npz", "iterator")
    belongs = {
        "inputs": arrays,
        "columns": table,
        "text": (*table, "iterator"),
        "group_by": (*table, *arrays),
        "cluster_by": (*table, *arrays),
        "delimiter": ("csv",),
        "empty_cells": ("csv",),
        "images": ("images",),
    }
    for name, kinds in belongs.items():
        if getattr(section, name) != getattr(default, name) and kind not in kinds:
            raise ConfigError(f"data.{name}: only for {' and '.join(kinds)} sources; {section.source!r} is {kind}")
    if section.splits.column and kind not in table:
        raise ConfigError(f"data.splits.column: only for csv and parquet sources; {section.source!r} is {kind}")
    if bool(section.text) != bool(section.tokenizer.file) and section.text:
        raise ConfigError('data.text: needs [data.tokenizer] file = "tokenizer.json" to become numbers')
    are_only_labels_text = bool(section.tokenizer.file) and kind in ("npz", "images")
    if section.tokenizer != default.tokenizer and not section.text and not are_only_labels_text:
        raise ConfigError("data.tokenizer: needs data.text, the column that holds the text")


def _sides(size: int | tuple[int, int] | None) -> tuple[int, ...]:
    return () if size is None else (size,) if isinstance(size, int) else size


def _is_normal(images: ImagesSection) -> bool:
    normal, channels = images.normalize, len(images.channels)
    return normal is None or (
        len(normal.mean) == len(normal.std) == channels and all(deviation > 0 for deviation in normal.std)
    )


def _normal_words(images: ImagesSection) -> str:
    return f"a mean and a std above 0 for each of {len(images.channels)} channels ({images.channels})"
