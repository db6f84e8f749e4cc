"""Variants of several files: names that are refused, and a directory from which external data loads."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from pathlib import Path

import msgspec
import numpy as np
import pytest

from penstock.artifact import manifests, variant_files
from penstock.artifact.blobs import digest_of
from penstock.artifact.layout import Layout, VariantDraft
from penstock.errors import ArtifactError, DigestMismatch, StorageError
from penstock.runtime import EngineOptions, load_engine
from tests.penstock.signed import DATA, external_model, make_layout


def test_external_data_loads_from_the_directory(tmp_path: Path) -> None:
    layout = make_layout(tmp_path, scale=2.0)
    variant = layout.artifact().variant("edge")
    path = variant_files.verified_files(variant, layout.blobs, tmp_path / "unpacked").weights
    assert sorted(file.name for file in path.parent.iterdir()) == ["model.onnx", DATA]
    assert path.stat().st_ino == layout.blobs.path(variant.weights.digest).stat().st_ino  # no second copy
    engine = load_engine("onnx", path, EngineOptions())
    assert engine.run({"x": np.ones((1, 4), np.float32)})["logits"].tolist() == [[2.0, 2.0, 2.0]]
    engine.close()


def test_a_variant_of_one_file_is_loaded_from_its_blob(tmp_path: Path) -> None:
    layout = make_layout(tmp_path)
    variant = dataclasses.replace(layout.artifact().variant("edge"), files=())
    assert variant_files.verified_files(variant, layout.blobs, tmp_path / "u").weights == layout.blobs.path(
        variant.weights.digest
    )
    assert not (tmp_path / "u").exists()


def test_every_file_is_verified_and_what_was_unpacked_before_is_made_anew(tmp_path: Path) -> None:
    layout = make_layout(tmp_path)
    variant, root = layout.artifact().variant("edge"), tmp_path / "unpacked"
    path = variant_files.verified_files(variant, layout.blobs, root).weights
    (path.parent / "stray").write_bytes(b"!")
    assert variant_files.verified_files(variant, layout.blobs, root).weights == path
    assert not (path.parent / "stray").exists()
    blob = layout.blobs.path(variant.files[0].digest)
    data = bytearray(blob.read_bytes())
    data[0] ^= 1
    blob.write_bytes(data)
    with pytest.raises(DigestMismatch):
        variant_files.verified_files(variant, layout.blobs, root)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root")
def test_a_disk_that_takes_no_writes_keeps_what_was_unpacked_if_it_is_whole(tmp_path: Path) -> None:
    layout = make_layout(tmp_path)
    variant, disk = layout.artifact().variant("edge"), tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", disk], check=True)
    try:
        path = variant_files.verified_files(variant, layout.blobs, disk / "unpacked").weights
        for flipped in (False, True):
            if flipped:
                data = bytearray(path.read_bytes())
                data[-1] ^= 1
                path.write_bytes(data)
            subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
            variant_files.discard(disk / "unpacked")  # as at every start
            if flipped:
                with pytest.raises(StorageError, match="read-only"):
                    variant_files.verified_files(variant, layout.blobs, disk / "unpacked")
            else:
                assert variant_files.verified_files(variant, layout.blobs, disk / "unpacked").weights == path
            subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_what_is_not_kept_is_discarded(tmp_path: Path) -> None:
    layout = make_layout(tmp_path)
    root = tmp_path / "unpacked"
    edge, cloud = layout.artifact().variants
    kept = variant_files.verified_files(edge, layout.blobs, root).weights
    gone = variant_files.verified_files(cloud, layout.blobs, root).weights
    variant_files.discard(root, frozenset({edge.digest}))
    assert kept.exists()
    assert not gone.parent.exists()
    variant_files.discard(tmp_path / "absent")


@pytest.mark.parametrize(
    "name", ["", "..", "../evil", "a/b", "/etc/passwd", ".hidden", "a\\b", "C:evil", "a..b", "x" * 129, "new\nline"]
)
def test_names_that_lead_elsewhere_are_refused_when_packing_and_when_reading(tmp_path: Path, name: str) -> None:
    made = external_model(tmp_path / "m")
    bad = VariantDraft(spec=made.spec, weights=made.weights, files={name: made.files[DATA]})
    with pytest.raises(ArtifactError, match="no name for a file"):
        Layout.create(tmp_path / "l").pack([bad], tag="v1")
    with pytest.raises(ArtifactError, match="no name for a file"):
        retitled(make_layout(tmp_path), name)


def test_a_file_is_never_put_elsewhere_even_where_its_manifest_was_not_checked(tmp_path: Path) -> None:
    layout = make_layout(tmp_path)
    variant = layout.artifact().variant("edge")
    hostile = msgspec.structs.replace(variant.weights, annotations={manifests.TITLE: "../../escaped"})
    with pytest.raises(ArtifactError, match="no name for a file"):
        variant_files.verified_files(dataclasses.replace(variant, files=(hostile,)), layout.blobs, tmp_path / "a" / "b")
    assert not (tmp_path / "escaped").exists()


@pytest.mark.parametrize("name", ["model.onnx", "Model.ONNX"])
def test_two_files_of_one_name_are_refused(tmp_path: Path, name: str) -> None:
    made = external_model(tmp_path / "m")
    bad = VariantDraft(spec=made.spec, weights=made.weights, files={name: made.files[DATA]})
    with pytest.raises(ArtifactError, match="is the name of the weights"):
        Layout.create(tmp_path / "l").pack([bad], tag="v1")
    with pytest.raises(ArtifactError, match="several files called"):
        retitled(make_layout(tmp_path), name)


def retitled(layout: Layout, name: str) -> manifests.Artifact:
    """The artifact as somebody else may have written it: the edge variant's second file under another name."""
    index = json.loads(layout.blobs.read(layout.digest))
    manifest = json.loads(layout.blobs.read(index["manifests"][0]["digest"]))
    for layer in manifest["layers"]:
        if layer["mediaType"] == manifests.MODEL_FILE:
            layer["annotations"][manifests.TITLE] = name
    data = json.dumps(manifest).encode()
    index["manifests"][0] |= {"digest": layout.blobs.put(data), "size": len(data)}
    written = json.dumps(index).encode()
    layout.blobs.put(written)
    return manifests.load(digest_of(written), layout.blobs.read)
