"""Looks at what an agent needs, from outside: settings, disk, socket, core, registry, TLS, clock, trust, models.

Changes nothing and takes no lock, so that it may run beside the agent. Each check is a function that returns what it
found; one that cannot look says so.
"""

from __future__ import annotations

import email.utils
import importlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from edge_agent.settings import AgentSettings
from penstock.errors import InvalidInput, PenstockError, Unauthenticated, Unavailable
from penstock.process import machine
from penstock.rest.connection import ask
from penstock.signing import trust
from penstock.wire.addresses import parse_target
from penstock.wire.proxies import is_this_machine
from penstock.wire.tls import context
from penstock.wording import size

_STATUS = frozenset({"device_id", "outbox", "models"})  # what is read of an agent's

State = Literal["ok", "warning", "failed", "skipped"]

_TIMEOUT_S = 5.0
_MAX_SKEW_S = 60.0
_BUILT_AT_S = 1_760_000_000.0  # October 2025: a clock before that has never been set
_LOW_SPACE = 4  # times the reserve that a pull leaves free


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check found.

    Attributes:
        found: what is so, and what to do about it where it is wrong.
    """

    check: str
    state: State
    found: str


def examine(settings: AgentSettings, environment: Mapping[str, str]) -> list[Finding]:
    """Look at everything, in the order in which an agent needs it; never raises."""
    status = _status(Path(settings.socket))
    answers: dict[str, float] = {}
    checks: Sequence[tuple[str, Callable[[], Iterator[Finding]]]] = (
        ("data directory", lambda: _data_dir(Path(settings.data_dir))),
        ("disk space", lambda: _space(Path(settings.data_dir), settings.fetch.reserve_bytes)),
        ("engine", _engine),
        ("trust", lambda: _trust(settings, environment)),
        ("tls", lambda: _tls(settings)),
        ("core", lambda: _core(settings)),
        ("registry", lambda: _registry(settings, answers)),
        ("clock", lambda: _clock(answers)),
        ("agent", lambda: _agent(Path(settings.socket), status)),
        ("models", lambda: _models(status)),
    )
    found = [
        Finding(check="settings", state="ok", found=f"device of target {settings.target or machine.edge_target()}")
    ]
    for name, check in checks:
        try:
            found += check()
        except (PenstockError, OSError) as error:
            said = error.message if isinstance(error, PenstockError) else f"{error.filename or ''}: {error.strerror}"
            found.append(Finding(check=name, state="failed", found=said))
    return found


def _data_dir(path: Path) -> Iterator[Finding]:
    name = "data directory"
    if not path.exists():
        parent = next(one for one in path.parents if one.exists())
        if os.access(parent, os.W_OK | os.X_OK):
            yield Finding(check=name, state="ok", found=f"{path} is made at the first start")
        else:
            yield Finding(check=name, state="failed", found=f"{path} is not there, and {parent} is not writable here")
        return
    mode, owner = path.stat().st_mode & 0o777, path.stat().st_uid
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        yield Finding(check=name, state="failed", found=f"{path} is not writable for this user (uid {os.geteuid()})")
    elif mode & 0o002:
        yield Finding(
            check=name, state="failed", found=f"{path} is writable for everybody (mode {mode:o}); chmod o-w it"
        )
    elif owner != os.geteuid() and os.geteuid() != 0:  # root looks at any user's, as after an installation
        whose = f"{path} belongs to uid {owner}, and this runs as uid {os.geteuid()}; run it as the agent's user"
        yield Finding(check=name, state="warning", found=whose)
    else:
        whose = "" if owner == os.geteuid() else f" of uid {owner}"
        yield Finding(check=name, state="ok", found=f"{path} (mode {mode:o}{whose})")


def _space(path: Path, reserve_bytes: int) -> Iterator[Finding]:
    there = next(one for one in (path, *path.parents) if one.exists())
    free = shutil.disk_usage(there).free
    state: State = "ok" if free > _LOW_SPACE * reserve_bytes else "warning" if free > reserve_bytes else "failed"
    advice = "" if state == "ok" else f"; a pull leaves {size(reserve_bytes)} free, so there is room for little or none"
    yield Finding(check="disk space", state=state, found=f"{size(free)} free{advice}")


def _engine() -> Iterator[Finding]:
    version = importlib.import_module("penstock.runtime.onnx").VERSION  # a library that is broken here is found out
    memory = size(machine.usable_memory_bytes())
    about = f"onnxruntime {version}, {machine.usable_cpus()} processors, {memory} of memory"
    yield Finding(check="engine", state="ok", found=about)


def _trust(settings: AgentSettings, environment: Mapping[str, str]) -> Iterator[Finding]:
    root = trust.configured(settings.trust_root, environment)
    if root is None:
        yield Finding(check="trust", state="ok", found="no trust root: what is pulled need not be signed")
        return
    yield Finding(check="trust", state="ok", found=f"{len(root.keys())} keys in {root.directory}")


def _tls(settings: AgentSettings) -> Iterator[Finding]:
    if not any(url.startswith(("grpcs://", "https://")) for url in (settings.core, settings.registry)):
        is_near = is_this_machine(parse_target(settings.core).host)
        words = "not used; the core is on this machine" if is_near else "not used: what is sent can be read on the way"
        yield Finding(check="tls", state="ok" if is_near else "warning", found=words)
        return
    context(settings.tls)
    shown = ", with a client's certificate" if settings.tls.cert_file else ""
    trusted = settings.tls.ca_file or "the authorities that this machine trusts"
    yield Finding(check="tls", state="ok", found=f"by {trusted}{shown}")


def _core(settings: AgentSettings) -> Iterator[Finding]:
    from penstock.rpc.transport import RpcTransport

    target = parse_target(settings.core)
    transport = RpcTransport(target, token=settings.token or None, tls=settings.tls)
    began = time.monotonic()
    try:
        is_ready = transport.is_ready(_TIMEOUT_S)
    except Unauthenticated as error:
        yield Finding(
            check="core", state="failed", found=f"{target}: {error.message}; give its token by the setting token"
        )
        return
    except PenstockError as error:
        yield Finding(check="core", state="failed", found=f"{target}: {error.message}")
        return
    finally:
        transport.close()
    took = f"answers in {1000 * (time.monotonic() - began):.0f} ms"
    if is_ready:
        yield Finding(check="core", state="ok", found=f"{target} {took}")
    else:
        yield Finding(
            check="core", state="warning", found=f"{target} {took}, and is not ready: it loads models or drains"
        )


def _registry(settings: AgentSettings, answers: dict[str, float]) -> Iterator[Finding]:
    from penstock.registry.address import parse_registry

    site = parse_registry(settings.registry).site
    began = time.time()
    answer = _asked(site, "/v2/", settings)
    if (date := _date_of(answer.headers.get("date", ""))) is not None:
        answers[site] = (began + time.time()) / 2 - date
    if answer.status in (200, 404):  # some have nothing to say at that path
        yield Finding(check="registry", state="ok", found=f"{settings.registry} answers")
    elif answer.status in (401, 403):
        has = settings.registry_token or settings.token
        words = "the token may be for another service" if has else "a token is wanted: registry_token, or token"
        state: State = "warning" if has else "failed"
        yield Finding(check="registry", state=state, found=f"{settings.registry} answers {answer.status}: {words}")
    else:
        yield Finding(check="registry", state="failed", found=f"{settings.registry} answers {answer.status}")


def _asked(site: str, path: str, settings: AgentSettings) -> Any:
    try:
        return ask(site, "GET", path, token=settings.registry_token or settings.token, tls=settings.tls)
    except Unavailable as error:
        raise Unavailable(f"{site}: {error.message}") from error


def _clock(answers: Mapping[str, float]) -> Iterator[Finding]:
    if time.time() < _BUILT_AT_S:
        now = time.strftime("%Y-%m-%d", time.gmtime())
        yield Finding(
            check="clock", state="failed", found=f"it says {now}: TLS fails, and records get wrong dates; set it"
        )
        return
    if not answers:
        yield Finding(check="clock", state="skipped", found="no server said what time it is")
        return
    skew_s = max(answers.values(), key=abs)
    state: State = "ok" if abs(skew_s) <= _MAX_SKEW_S else "warning"
    words = f"{abs(skew_s):.0f} s {'ahead of' if skew_s > 0 else 'behind'} the registry's"
    yield Finding(check="clock", state=state, found=words if state != "ok" or abs(skew_s) >= 1 else "as the registry's")


def _date_of(header: str) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(header).timestamp()
    except (ValueError, TypeError):
        return None


def _status(socket: Path) -> dict[str, Any] | PenstockError:
    try:
        answer = ask(f"unix://{socket}", "GET", "/status", timeout_s=_TIMEOUT_S)
        document: dict[str, Any] = msgspec.json.decode(answer.body, type=dict[str, Any])
        if answer.status != 200 or not document.keys() >= _STATUS:
            return InvalidInput(f"answers {answer.status}, but not as an agent: is another server there?")
        return document
    except PenstockError as error:
        return error
    except msgspec.MsgspecError as error:
        return InvalidInput(f"answers, but not as an agent: {error}")


def _agent(socket: Path, status: dict[str, Any] | PenstockError) -> Iterator[Finding]:
    if isinstance(status, dict):
        yield Finding(check="agent", state="ok", found=f"{status['device_id']} answers on {socket}")
        outbox = status["outbox"]
        if outbox["error"]:
            yield Finding(check="outbox", state="failed", found=outbox["error"])
        return
    is_there = socket.exists()
    state: State = "failed" if is_there else "warning"
    advice = "what listens there does not answer" if is_there else "start it: penstock agent run, or systemctl start"
    yield Finding(check="agent", state=state, found=f"{socket}: {status.message}; {advice}")


def _models(status: dict[str, Any] | PenstockError) -> Iterator[Finding]:
    if not isinstance(status, dict):
        yield Finding(check="models", state="skipped", found="only an agent that runs knows")
        return
    if not status["models"]:
        yield Finding(check="models", state="warning", found=status.get("why_no_models") or "none was assigned")
    for model in status["models"]:
        wrong = [model[name] for name in ("error", "damaged", "mode_why") if model[name]]
        state: State = "failed" if not model["is_serving"] else "warning" if wrong else "ok"
        words = (
            f"{model['version'] or 'no version'}, {model['phase'].lower()}, {model['mode'].lower() or 'not serving'}"
        )
        yield Finding(check=f"model {model['model']}", state=state, found="; ".join([words, *wrong]))
