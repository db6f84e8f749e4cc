"""What deploy/ and the pages about it say: schemas of others accept it, and flags, settings and ports are real."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import msgspec
import pytest
import yaml

from cloud_core.commands.core import _dotted, serve
from cloud_core.settings import ENV_PREFIX, CoreSettings, check
from penstock.process import config

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
SCHEMA = "1.33"
SECRETS = {
    "database": "postgresql://penstock@postgres/penstock",
    "tenants": '[{"name": "ops", "role": "admin", "token": "a long secret"}]',
}
FLAGS = {flag for parameter in serve.params for flag in (*parameter.opts, *parameter.secondary_opts)}


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text(encoding="utf-8")))


def containers_of(name: str, kind: str) -> list[dict[str, Any]]:
    (found,) = (one for one in documents(name) if one["kind"] == kind)
    spec = found["spec"]["template"]["spec"] if kind == "Deployment" else found["spec"]
    containers: list[dict[str, Any]] = spec["containers"]
    return containers


def settings_of(container: dict[str, Any], files: dict[str, Path]) -> CoreSettings:
    """Read the settings as the program would that the container starts."""
    given = {one["name"]: _value(one) for one in container["env"]}
    arguments = [*_entrypoint()[3:], *container["args"]]
    parsed = serve.make_context("serve", [str(files.get(one, one)) for one in arguments]).params
    file = parsed.pop("config_file")
    return check(config.load(CoreSettings, file=file, env=given, env_prefix=ENV_PREFIX, flags=_dotted(parsed)))


def _value(variable: dict[str, Any]) -> str:
    return str(variable["value"]) if "value" in variable else SECRETS[variable["valueFrom"]["secretKeyRef"]["key"]]


def _entrypoint() -> list[str]:
    text = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
    (line,) = re.findall(r"^ENTRYPOINT (\[.*\])$", text, re.M)
    return msgspec.json.decode(line, type=list[str])


@pytest.mark.parametrize("name", ["kubernetes/core.yaml"])
def test_kubernetes_takes_the_manifests(name: str) -> None:
    for document in documents(name):
        kubernetes_validate.validate(document, SCHEMA, strict=True)


def test_kubernetes_takes_the_container_of_the_serving_runtime() -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "penstock"}}
    kubernetes_validate.validate(
        {**pod, "spec": {"containers": containers_of("kserve/serving-runtime.yaml", "ServingRuntime")}},
        SCHEMA,
        strict=True,
    )


def test_a_manifest_with_a_misspelt_field_is_refused() -> None:
    (deployment,) = (one for one in documents("kubernetes/core.yaml") if one["kind"] == "Deployment")
    deployment["spec"]["replicaz"] = 2
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, SCHEMA, strict=True)


def test_settings_ports_and_probes_of_the_deployment_are_a_cores(tmp_path: Path) -> None:
    (settings_map,) = (one for one in documents("kubernetes/core.yaml") if one["kind"] == "ConfigMap")
    (tmp_path / "core.toml").write_text(settings_map["data"]["core.toml"])
    assert tomllib.loads(settings_map["data"]["core.toml"])["cluster"]["standby"]
    (core,) = containers_of("kubernetes/core.yaml", "Deployment")
    settings = settings_of(core, {"/etc/penstock/core.toml": tmp_path / "core.toml"})
    ports = {one["name"]: one["containerPort"] for one in core["ports"]}
    assert ports == {"http": settings.http.port, "grpc": settings.grpc.port}
    assert settings.data_dir in {one["mountPath"] for one in core["volumeMounts"]}
    assert settings.registry.directory in {one["mountPath"] for one in core["volumeMounts"]}
    assert settings.wants_credentials
    (deployment,) = (one for one in documents("kubernetes/core.yaml") if one["kind"] == "Deployment")
    grace_s = deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace_s > settings.serving.lame_duck_s + settings.serving.drain_s
    probe = core["readinessProbe"]
    assert settings.serving.lame_duck_s > 2 * probe["periodSeconds"] * probe["failureThreshold"]
    (service,) = (one for one in documents("kubernetes/core.yaml") if one["kind"] == "Service")
    assert {one["targetPort"] for one in service["spec"]["ports"]} == set(ports)


def test_settings_and_ports_of_the_serving_runtime_are_a_cores() -> None:
    (core,) = containers_of("kserve/serving-runtime.yaml", "ServingRuntime")
    settings = settings_of(core, {})
    assert {one["containerPort"] for one in core["ports"]} == {settings.http.port}
    assert core["readinessProbe"]["httpGet"]["port"] == settings.http.port
    assert not settings.wants_credentials
    for line in core["lifecycle"]["postStart"]["exec"]["command"][-1].splitlines():
        words = shlex.split(line)
        assert words[:2] == ["penstock", "core"]
        assert f"127.0.0.1:{settings.http.port}" in line


def test_the_containerfile_starts_a_core_with_flags_that_it_has() -> None:
    text = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
    assert _entrypoint()[:3] == ["penstock", "core", "serve"]
    (line,) = re.findall(r"^CMD (\[.*\])$", text, re.M)
    used = [one for one in [*_entrypoint(), *msgspec.json.decode(line)] if one.startswith("--")]
    assert used
    assert set(used) <= FLAGS
    (exposed,) = re.findall(r"^EXPOSE (.*)$", text, re.M)
    assert [int(port) for port in exposed.split()] == [CoreSettings().http.port, CoreSettings().grpc.port]
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (extras,) = re.findall(r"\[([a-z,]+)\]\"", text)
    assert set(extras.split(",")) <= set(pyproject["project"]["optional-dependencies"])
