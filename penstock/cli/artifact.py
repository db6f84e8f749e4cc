"""``penstock artifact``: look at artifacts, check them, and move them between layouts and registries."""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from penstock.cli.keys import key_option
from penstock.cli.moved import moving, print_moved
from penstock.cli.output import (
    output_option,
    path_and_format,
    path_option,
    print_fields,
    print_result,
    print_table,
    progress,
)
from penstock.cli.registry_options import Access, registry_options
from penstock.errors import NotFound, SignatureError
from penstock.wording import short

if TYPE_CHECKING:
    from penstock.artifact.layout import Layout
    from penstock.artifact.manifests import Variant
    from penstock.artifact.overview import Overview
    from penstock.signing.trust import TrustRoot


@click.group(
    epilog="""\b
Examples:
  penstock artifact inspect build/digits
  penstock artifact verify build/digits
  penstock artifact push build/digits
  penstock artifact push build/digits digits:canary --registry http://registry:5000
  penstock artifact push build/digits --registry https://ghcr.io/acme --user acme
  penstock artifact list
  penstock artifact pull digits:v1 copy/
  penstock artifact sign build/digits --key release
  penstock artifact diff digits:v1 build/digits
  penstock artifact export build/digits --format ortpackage -o package/ --variant edge/x86-64-vnni

A REFERENCE is model:tag or model@sha256:digest, with a namespace before the model
where the registry's URL names none."""
)
def command() -> None:
    """Inspect, verify, sign, compare, export, push, pull and list artifacts."""


@command.command()
@click.argument("source", metavar="LAYOUT|REFERENCE")
@registry_options
@output_option
def inspect(source: str, access: Access, output: str) -> None:
    """Show everything in a layout on disk or in an artifact in a registry: variants with their files, certificates
    with their levels and groups, documents and signatures."""
    from penstock.cli import artifact_view as view

    found = _look(source, access)
    signers = view.signers(found, _trust_root(None))
    print_result(output, view.document(found, signers), lambda: view.show(found, signers))


@command.command()
@click.argument("source", metavar="LAYOUT|REFERENCE")
@click.option(
    "--trust-root",
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory of trusted keys.  [default: PENSTOCK_TRUST_ROOT, or ~/.config/penstock/trust if it is there]",
)
@registry_options
@output_option
def verify(source: str, trust_root: Path | None, access: Access, output: str) -> None:
    """Hash every byte, and check structure, certificates and signatures. Exit code 1 when something is wrong.

    With a trust root, an artifact that none of its keys has signed is wrong, and so is a certificate that no signature
    covers. An artifact in a registry is fetched for it, into a temporary directory.
    """
    from penstock.artifact.layout import Layout
    from penstock.registry import transfer

    root = _trust_root(trust_root)
    if _is_layout(source):
        checked = _checked(Layout(Path(source)), root)
    else:
        with tempfile.TemporaryDirectory() as scratch, access.client() as client:
            with moving(f"fetching {source}") as report:
                transfer.pull(client, source, Path(scratch), report=report)
            checked = _checked(Layout(Path(scratch)), root)
    document = {"source": source, "is_good": not checked.problems, **checked.document()}
    print_result(output, document, lambda: _print_checked(source, checked))
    if checked.problems:
        sys.exit(1)


@command.command()
@click.argument("layout", type=click.Path(exists=True, file_okay=False, path_type=Path))
@key_option
@output_option
def sign(layout: Path, key: str, output: str) -> None:
    """Sign LAYOUT's artifact with everything that belongs to it now: variants, certificates, evidence, documents.

    What is attached later is not covered until it is signed again; older signatures stay. Push it after that.
    """
    from penstock.cli.keys import load_signing_key
    from penstock.signing import trust

    if not key:
        raise click.UsageError("--key: which key signs? 'penstock keys generate NAME' makes one")
    private = load_signing_key(key)
    referrer = trust.sign(layout, private)
    signature = {"signature": referrer.digest, "keyid": private.public.keyid}
    print_result(output, {"layout": layout, **signature}, lambda: print_fields({"signed": layout, **signature}))


@command.command()
@click.argument("before", metavar="LAYOUT|REFERENCE")
@click.argument("after", metavar="LAYOUT|REFERENCE")
@click.option("--all", "shows_all", is_flag=True, help="Show what is the same, too.")
@registry_options
@output_option
def diff(before: str, after: str, shows_all: bool, access: Access, output: str) -> None:
    """Show what changed between two artifacts: variants, certificates, evaluation, lock, labels, preprocessing.

    Exit code 0 when nothing did, 1 when something did.
    """
    from penstock.artifact import differences

    one, other = _look(before, access), _look(after, access)
    lines = differences.compare(one, other)
    is_same = not differences.differs(lines)
    shown = [line for line in lines if shows_all or line.change != "same"]

    def show() -> None:
        cut = differences.shortened
        rows = [(line.section, line.what, line.change, cut(line.before), cut(line.after)) for line in shown]
        if rows:
            print_table(["section", "what", "change", "before", "after"], rows)
        if is_same:
            click.echo(f"{before} and {after}: the same")

    digests = {"before": one.artifact.digest, "after": other.artifact.digest}
    print_result(output, {**digests, "is_same": is_same, "lines": shown}, show)
    if not is_same:
        sys.exit(1)


@command.command()
@click.argument("layout", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--format", "kind", type=click.Choice(["ortpackage"]), required=True, help="onnxruntime's model package.")
@path_option("DIR", "Directory to write.", required=True)
@click.option("--variant", "wanted", multiple=True, metavar="ROLE/TARGET", help="Only this variant; repeatable.")
def export(layout: Path, kind: str, outputs: tuple[str, ...], wanted: tuple[str, ...]) -> None:
    """Write LAYOUT's variants in another runtime's form. Golden vectors, certificate and signatures stay behind.

    What was written is opened by the onnxruntime that is installed here, and has to give the golden outputs.
    """
    from penstock.artifact import onnxruntime_package
    from penstock.artifact.layout import Layout

    directory, output = path_and_format(outputs, "a directory")
    if not directory:
        raise click.UsageError("give -o with a directory, too")
    out = Path(directory)
    opened = Layout(layout)
    variants = onnxruntime_package.export(opened, out, wanted)
    told = {
        f"{variant.spec.role}/{variant.spec.target}": (
            _try_package(opened, variant, out)
            if variant.spec.provider == "cpu"
            else f"not tried: it runs on {variant.spec.provider}"
        )
        for variant in variants
    }
    left = len(opened.artifact().variants) - len(variants)
    if left and not wanted:
        progress(f"{left} variant{'s' * (left != 1)} of other engines left out: a package holds ONNX graphs")

    def show() -> None:
        for name, words in told.items():
            click.echo(f"{name}: {words}")
        click.echo(f"wrote {out}")

    print_result(output, {"directory": out, "variants": told}, show)


@command.command()
@click.argument("layout", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("reference", required=False, default="")
@registry_options
@output_option
def push(layout: Path, reference: str, access: Access, output: str) -> None:
    """Push LAYOUT's artifact with its certificate and report, as REFERENCE (its own model:tag by default)."""
    from penstock.artifact.layout import Layout
    from penstock.registry import transfer
    from penstock.runtime import not_served

    source = Layout(layout)
    for variant in source.artifact().variants:
        if problem := not_served(variant.spec.engine):
            progress(f"{variant.spec.role}/{variant.spec.target}: {problem}")
    with access.client() as client, moving(f"pushing to {access.url}") as report:
        moved = transfer.push(client, source, reference, report=report)
    print_result(output, moved, lambda: print_moved("pushed", moved))


@command.command()
@click.argument("reference")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@registry_options
@output_option
def pull(reference: str, directory: Path, access: Access, output: str) -> None:
    """Pull REFERENCE into the layout DIRECTORY; continues where an interrupted pull ended."""
    from penstock.registry import transfer

    with access.client() as client, moving(f"pulling from {access.url}") as report:
        moved = transfer.pull(client, reference, directory, report=report)
    print_result(output, moved, lambda: print_moved("pulled", moved))


@command.command("list")
@click.argument("model", required=False, default="")
@registry_options
@output_option
def list_artifacts(model: str, access: Access, output: str) -> None:
    """List the versions in a registry, of MODEL or of all. Hosted registries list no models: name one there."""
    from penstock.artifact.references import is_referrers_tag

    with access.client() as client:
        names = [model] if model else client.repositories()
        named = [(name, tag) for name in names for tag in client.tags(name) if not is_referrers_tag(tag)]
        rows = [(name, tag, client.manifest(name, tag).digest) for name, tag in named]
    columns = ["model", "tag", "digest"]

    def show() -> None:
        if rows:
            print_table(columns, [(name, tag, short(digest)) for name, tag, digest in rows])
        else:
            click.echo(f"nothing at {access.url} yet; push an artifact with 'penstock artifact push'")

    print_result(output, [dict(zip(columns, row, strict=True)) for row in rows], show)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Checked:
    """What ``verify`` found. ``notes`` are for people: what was signed, and what was not looked at."""

    problems: list[str]
    notes: list[str]
    signers: list[dict[str, str]]
    uncovered: list[str]

    def document(self) -> dict[str, Any]:
        return {"problems": self.problems, "signed_by": self.signers, "not_covered": self.uncovered}


def _checked(layout: Layout, root: TrustRoot | None) -> _Checked:
    from penstock.artifact import manifests
    from penstock.signing import trust

    problems = layout.verify()
    signatures = [] if problems else list(trust.signatures_of(layout))
    if problems or root is None:
        said = f"{len(signatures)} signature{'s' * (len(signatures) != 1)}, not checked: there is no trust root"
        return _Checked(problems=problems, notes=[] if problems else [said], signers=[], uncovered=[])
    artifact = layout.artifact()
    verdict = root.examine(artifact, signatures)
    problems += verdict.problems
    try:
        root.check(artifact, signatures)
    except SignatureError as error:
        problems = [error.message]
    others = [r for r in layout.referrers() if r.kind != manifests.SIGNATURE]
    uncovered = [r for r in others if verdict.vouched and r.digest not in verdict.covered]
    problems += [
        f"certificate {r.digest} is covered by no signature" for r in uncovered if r.kind == manifests.CERTIFICATE
    ]
    notes = [
        f"signed by {one.name} ({one.keyid[:16]}), with {len(one.referrers)} documents beside the variants"
        for one in verdict.vouched
    ]
    notes += [f"signed by {keyid[:16]}, who is not trusted here" for keyid in verdict.unknown]
    notes += [f"not covered by a signature: {r.kind} {r.digest}" for r in uncovered]
    return _Checked(
        problems=problems,
        notes=notes,
        signers=[{"name": one.name, "keyid": one.keyid} for one in verdict.vouched],
        uncovered=[r.digest for r in uncovered],
    )


def _print_checked(source: str, checked: _Checked) -> None:
    for line in (*checked.notes, *checked.problems):
        click.echo(line)
    count = len(checked.problems)
    click.echo(f"{source}: {f'{count} problem{chr(115) * (count > 1)}' if count else 'good'}")


def _try_package(layout: Layout, variant: Variant, package: Path) -> str:
    """Let onnxruntime open what was written, and compare golden outputs.

    Raises:
        ArtifactError: it does not open it, or gives other outputs.
    """
    from penstock.artifact import golden, onnxruntime_package
    from penstock.errors import MissingExtra

    try:
        from penstock.hosting import loading
        from penstock.runtime import onnx_package

        engine = onnx_package.load(package, onnxruntime_package.component_of(variant))
    except MissingExtra as error:
        return f"not tried: {error.message}"
    try:
        if variant.golden is None:
            return "opened by onnxruntime; it has no golden vectors to compare"
        loading.replay(variant.spec, layout.blobs.read(variant.golden.digest, limit_bytes=golden.MAX_BYTES), engine)
    finally:
        engine.close()
    return "opened by onnxruntime; golden outputs agree"


def _look(source: str, access: Access) -> Overview:
    from penstock.artifact.layout import Layout
    from penstock.artifact.overview import overview_of
    from penstock.registry import transfer

    if _is_layout(source):
        return overview_of(Layout(Path(source)))
    with access.client() as client:
        return transfer.overview(client, source)


def _trust_root(given: Path | None) -> TrustRoot | None:
    from penstock.signing import trust

    return trust.configured("" if given is None else str(given), os.environ)


def _is_layout(source: str) -> bool:
    """Say whether a word names a directory and no reference.

    Raises:
        NotFound: written as a path, which no reference is, and there is no such directory.
    """
    if not Path(source).is_dir() and source.startswith(("/", ".", "~")):
        raise NotFound(f"{source}: no such directory")
    return Path(source).is_dir()
