"""``penstock artifact``: look at artifacts, check them, and move them between layouts and registries."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from penstock.cli.output import is_interactive, output_option, print_fields, print_json, print_table, progress
from penstock.errors import ArtifactError, NotFound

if TYPE_CHECKING:
    from penstock.oci import Found, Moved, RegistryClient

_ONE_MIB = 1024 * 1024


def _registry_options(function: Callable[..., Any]) -> Callable[..., Any]:
    function = click.option(
        "--registry",
        envvar="PENSTOCK_REGISTRY",
        default="http://127.0.0.1:8000",
        show_default=True,
        show_envvar=True,
        metavar="URL",
        help="The registry: a core, or any OCI registry.",
    )(function)
    return click.option(
        "--token",
        envvar=["PENSTOCK_REGISTRY_TOKEN", "PENSTOCK_TOKEN"],
        default="",
        show_envvar=True,
        help="Bearer token for the registry.",
    )(function)


@click.group(
    epilog="""\b
Examples:
  penstock artifact inspect build/digits
  penstock artifact verify build/digits
  penstock artifact push build/digits
  penstock artifact push build/digits digits:canary --registry http://registry:5000
  penstock artifact list
  penstock artifact pull digits:v1 copy/

A REFERENCE is model:tag or model@sha256:digest."""
)
def command() -> None:
    """Inspect, verify, push, pull and list artifacts."""


@command.command()
@click.argument("source", metavar="LAYOUT|REFERENCE")
@_registry_options
@output_option
def inspect(source: str, registry: str, token: str, output: str) -> None:
    """Show variants, certificate and referrers of a layout on disk or of an artifact in a registry."""
    from penstock import oci
    from penstock.layout import Layout

    if _is_layout(source):
        found = oci.look_at_layout(Layout(Path(source)))
    else:
        with _client(registry, token) as client:
            found = oci.look(client, source)
    if output == "json":
        print_json(_document(found))
    else:
        _print_found(found)


@command.command()
@click.argument("source", metavar="LAYOUT|REFERENCE")
@_registry_options
@output_option
def verify(source: str, registry: str, token: str, output: str) -> None:
    """Hash every byte and check the structure and the certificate. Exit code 1 when something is wrong.

    An artifact in a registry is fetched for it, into a temporary directory.
    """
    from penstock import oci
    from penstock.layout import Layout

    if _is_layout(source):
        problems = Layout(Path(source)).verify()
    else:
        with tempfile.TemporaryDirectory() as scratch, _client(registry, token) as client:
            with _progress(f"fetching {source}") as report:
                oci.pull(client, source, Path(scratch), report=report)
            problems = Layout(Path(scratch)).verify()
    if output == "json":
        print_json({"source": source, "is_good": not problems, "problems": problems})
    else:
        for problem in problems:
            click.echo(problem)
        click.echo(f"{source}: {len(problems)} problem{'s' * (len(problems) > 1)}" if problems else f"{source}: good")
    if problems:
        sys.exit(1)


@command.command()
@click.argument("layout", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("reference", required=False, default="")
@_registry_options
@output_option
def push(layout: Path, reference: str, registry: str, token: str, output: str) -> None:
    """Push LAYOUT's artifact with its certificate and report, as REFERENCE (its own model:tag by default)."""
    from penstock import oci
    from penstock.layout import Layout

    with _client(registry, token) as client, _progress(f"pushing to {registry}") as report:
        moved = oci.push(client, Layout(layout), reference, report=report)
    if output == "json":
        print_json(moved)
    else:
        _print_moved("pushed", moved)


@command.command()
@click.argument("reference")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@_registry_options
@output_option
def pull(reference: str, directory: Path, registry: str, token: str, output: str) -> None:
    """Pull REFERENCE into the layout DIRECTORY; continues where an interrupted pull ended."""
    from penstock import oci

    with _client(registry, token) as client, _progress(f"pulling from {registry}") as report:
        moved = oci.pull(client, reference, directory, report=report)
    if output == "json":
        print_json(moved)
    else:
        _print_moved("pulled", moved)


@command.command("list")
@click.argument("model", required=False, default="")
@_registry_options
@output_option
def list_artifacts(model: str, registry: str, token: str, output: str) -> None:
    """List the versions in a registry, of MODEL or of all."""
    with _client(registry, token) as client:
        names = [model] if model else client.repositories()
        rows = [(name, tag, client.manifest(name, tag).digest) for name in names for tag in client.tags(name)]
    if output == "json":
        print_json([{"model": name, "tag": tag, "digest": digest} for name, tag, digest in rows])
    else:
        print_table(["model", "tag", "digest"], rows)


def _is_layout(source: str) -> bool:
    """
    Raises:
        NotFound: written as a path, which no reference is, and there is no such directory.
    """
    if not Path(source).is_dir() and source.startswith(("/", ".", "~")):
        raise NotFound(f"{source}: no such directory")
    return Path(source).is_dir()


def _client(registry: str, token: str) -> RegistryClient:
    from penstock.oci import RegistryClient

    return RegistryClient(registry, token=token)


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A line on stderr: rewritten in place on a terminal, otherwise one line for each quarter."""
    last = -1

    def report(done: int, total: int) -> None:
        nonlocal last
        percent = 100 * done // total if total else 100
        live = is_interactive()
        if percent == last or (not live and percent // 25 == last // 25):
            return
        last = percent
        text = f"{what}: {_size(done)} of {_size(total)} ({percent}%)"
        if live:
            click.echo(f"\r{text}", err=True, nl=False)
        else:
            progress(text)

    try:
        yield report
    finally:
        if is_interactive() and last >= 0:
            click.echo(err=True)


def _print_moved(verb: str, moved: Moved) -> None:
    print_fields({
        verb: f"{moved.model}:{moved.tag}",
        "digest": moved.digest,
        "moved": _size(moved.moved_bytes),
        "skipped": _size(moved.skipped_bytes),
    })  # fmt: skip


def _print_found(found: Found) -> None:
    artifact = found.artifact
    print_fields({"model": artifact.model, "tag": found.tag or "-", "digest": artifact.digest})
    click.echo()
    rows = [
        (
            v.spec.role,
            v.spec.target,
            v.spec.precision,
            v.spec.engine,
            _size(v.weights.size),
            "yes" if v.golden else "no",
            v.digest,
        )
        for v in artifact.variants
    ]
    print_table(["role", "target", "precision", "engine", "weights", "golden", "variant"], rows)
    click.echo()
    if found.certificate is None:
        click.echo("certificate  none: agents escalate every answer")
    else:
        certificate = found.certificate
        coverage = f"{certificate.coverage:.1%} ({certificate.coverage_low:.1%} to {certificate.coverage_high:.1%})"
        try:
            from penstock.artifact import check_certificate

            check_certificate(certificate, artifact)
            fits = "yes"
        except ArtifactError as error:
            fits = f"no: {error.message}"
        print_fields({
            "certificate": certificate.promise(),
            "evidence": f"{certificate.harm_count} harmful of {certificate.n} examples, {certificate.kept_count} kept",
            "on device": coverage,
            "fits": fits,
        })  # fmt: skip
    for referrer in found.referrers:
        click.echo(f"referrer     {referrer.artifact_type} {referrer.digest}")


def _document(found: Found) -> dict[str, Any]:
    artifact = found.artifact
    return {
        "model": artifact.model,
        "tag": found.tag,
        "digest": artifact.digest,
        "variants": [
            {"digest": v.digest, "weights_bytes": v.weights.size, "has_golden": v.golden is not None, "spec": v.spec}
            for v in artifact.variants
        ],
        "certificate": found.certificate,
        "referrers": [{"kind": r.artifact_type, "digest": r.digest} for r in found.referrers],
    }


def _size(count: int) -> str:
    if count < 1024:
        return f"{count} B"
    return f"{count / 1024:.1f} KiB" if count < _ONE_MIB else f"{count / _ONE_MIB:.1f} MiB"
