"""The page at ``/`` for browsers: models, traffic, queues, refusals, promises and drift, as one document.

Rendered here, of what :class:`cloud_core.api.seeing.Seeing` writes for commands too; it has no script, fetches nothing,
and loads itself again every few seconds. Where a core has tenants it needs a credential that may read metrics:
browsers ask for a name, which does not matter, and a password, which is the token.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version as version_of
from typing import Any

from cloud_core.api.html import Child, Markup, element, joined, table
from cloud_core.api.seeing import Seeing
from penstock.errors import PenstockError, Unauthenticated
from penstock.http.operations import HTML
from penstock.http.routes import Reply, Request
from penstock.policy.access import Action

_RELOAD_S = 10
_MOST = 200  # rows of a table
_MOST_FEATURES = 8
_BASIC, _BEARER = "basic ", "Bearer "

_STYLE = """
:root{color-scheme:light dark;--ground:#fbfaf8;--card:#fff;--ink:#1d2327;--soft:#5d6870;--line:#e1dfda;--good:#1c6b45;
--bad:#a8321f;--warn:#8a5a00;--bar:#2f6f9f}
@media (prefers-color-scheme:dark){:root{--ground:#14181b;--card:#1c2226;--ink:#e6e9eb;--soft:#9aa6ae;--line:#323b41;
--good:#6cc798;--bad:#f0907e;--warn:#e3b45c;--bar:#7db4dc}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:76rem;margin:0 auto;padding:1.5rem 1.25rem 3rem}
h1{font-size:1.35rem;margin:0}h1 small{color:var(--soft);font-weight:400;font-size:.85rem;margin-left:.5rem}
h2{font-size:1.02rem;margin:0 0 .6rem}
section{background:var(--card);border:1px solid var(--line);border-radius:.5rem;padding:1rem 1.1rem;margin-top:1rem}
.facts{display:flex;flex-wrap:wrap;gap:.4rem 1.8rem;margin:.8rem 0 0;padding:0;list-style:none}
.facts span{color:var(--soft);margin-right:.45rem}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th{color:var(--soft);font-weight:500;font-size:.82rem;text-align:left;white-space:nowrap}
th,td{padding:.32rem .9rem .32rem 0;border-bottom:1px solid var(--line);vertical-align:top}
tbody tr:last-child td{border-bottom:0}.number{text-align:right}
.good{color:var(--good)}.bad{color:var(--bad);font-weight:600}.warn{color:var(--warn)}.soft{color:var(--soft)}
p{margin:.35rem 0}svg{display:block;margin-top:.45rem}rect.of{fill:var(--line)}rect.is{fill:var(--bar)}
rect.over{fill:var(--bad)}
h3{font-size:.93rem;margin:.9rem 0 .3rem}h3 small{color:var(--soft);font-weight:400}
a{color:var(--bar)}footer{margin-top:1.2rem;color:var(--soft);font-size:.85rem}
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_HEADERS = {
    "Content-Type": f"{HTML}; charset=utf-8",
    "Cache-Control": "no-store",
    "Vary": "Accept, Authorization",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": (
        f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
}
_LINKS = (("/metrics", "metrics"), ("/v2/models", "models"), ("/openapi.json", "OpenAPI"))


class Page:
    """Answers browsers."""

    def __init__(self, seeing: Seeing, authenticate: Callable[[str, Action], str], *, name: str) -> None:
        """
        Args:
            authenticate: raises where a credential may not do an action.
            name: of the server.
        """
        self._seeing, self._authenticate, self._name = seeing, authenticate, name

    async def tell(self, request: Request) -> Reply:
        """Show everything to who may read metrics, and nothing to anybody else."""
        try:
            self._authenticate(_credential(request.headers.get("Authorization", "")), Action.SCRAPE)
        except Unauthenticated:
            words = "This core has tenants. Reload, and give a token that may read metrics as the password."
            headers = {**_HEADERS, "WWW-Authenticate": 'Basic realm="penstock", charset="UTF-8"'}
            return Reply(status=401, body=self._document(element("p", words)), headers=headers)
        except PenstockError:
            return Reply(status=403, body=self._document(element("p", "This token may not.")), headers=_HEADERS)
        body = self._document(self._everything())
        return Reply(body=body, headers={**_HEADERS, "Refresh": str(_RELOAD_S)})

    def _document(self, content: Markup) -> bytes:
        title = element("h1", self._name, element("small", version_of("penstock")))
        head = element(
            "head",
            Markup('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
            element("title", self._name),
            element("style", Markup(_STYLE)),
        )
        body = element("body", element("main", title, content))
        return f"<!doctype html>\n{element('html', head, body, lang='en')}".encode()

    def _everything(self) -> Markup:
        traffic = self._seeing.traffic()
        explained = self._seeing.explain()
        links = joined(child for path, words in _LINKS for child in (element("a", words, href=path), " · "))
        return joined(
            (
                _facts(traffic),
                _section("Models", _models(traffic["models"])),
                _section("Traffic by tenant", _by_tenant(self._seeing.by_tenant())),
                _section("Promises", _promises(self._seeing.slo())),
                _section("Drift", _drift(self._seeing.drift())),
                _section("Refused or failed", _refusals(explained)),
                _section("Why batches were closed", _batches(explained)),
                element("footer", links, f"loads again every {_RELOAD_S} s"),
            )
        )


def _credential(authorization: str) -> str:
    """Return what a browser was given as a password as the bearer token that it is."""
    if authorization[: len(_BASIC)].lower() != _BASIC:
        return authorization
    try:
        pair = base64.b64decode(authorization[len(_BASIC) :].strip(), validate=True).decode()
    except (binascii.Error, ValueError):
        return ""
    return _BEARER + pair.partition(":")[2]


def _section(title: str, content: Markup) -> Markup:
    return element("section", element("h2", title), content)


def _note(words: str) -> Markup:
    return element("p", words, class_="soft")


def _facts(traffic: Mapping[str, Any]) -> Markup:
    lag_ms = 1e3 * traffic["loop_lag_s"]
    facts: Sequence[tuple[str, Child]] = (
        ("ready", _verdict(traffic["ready"], "yes", "no: loading or draining")),
        ("live", _verdict(traffic["live"], "yes", "no: an engine hangs")),
        ("in flight", f"{traffic['inflight']} requests, {traffic['inflight_bytes'] / 1e6:.1f} MB"),
        ("event loop", f"{lag_ms:.1f} ms late"),
    )
    return element("ul", *(element("li", element("span", name), value) for name, value in facts), class_="facts")


def _verdict(is_well: bool, good: str, bad: str) -> Markup:
    return element("strong", good if is_well else bad, class_="good" if is_well else "bad")


def _models(models: Sequence[Mapping[str, Any]]) -> Markup:
    if not models:
        return _note("None yet. Push one with 'penstock artifact push'.")
    head = ("model", "version", "state", "requests", "failed", "rows", "p50 ms", "p99 ms", "waiting", "running")
    rows = [
        (
            one["model"],
            joined((one["version"], element("span", " default", class_="soft") if one.get("is_default") else None)),
            _state(one),
            one["requests"],
            element("span", one["failed"], class_="bad") if one["failed"] else 0,
            one["rows"],
            _ms(one["p50_s"]),
            _ms(one["p99_s"]),
            one["waiting_rows"],
            one["running_rows"],
        )
        for one in models[:_MOST]
    ]
    return joined((table(head, rows, numbers=frozenset(range(3, 10))), _more(models)))


def _state(one: Mapping[str, Any]) -> Markup:
    is_ready = one["state"] == "READY"
    why = element("span", f" {one['reason']}", class_="soft") if one["reason"] else None
    return joined((element("span", one["state"].lower(), class_="good" if is_ready else "warn"), why))


def _by_tenant(series: Sequence[Mapping[str, Any]] | None) -> Markup:
    if series is None:
        return _note("Not counted. Set observing.traffic = true.")
    if not series:
        return _note("No requests yet.")
    head = ("tenant", "model", "version", "arm", "requests", "failed", "rows", "tokens", "MB")
    rows = [
        (
            one["tenant"] or "anybody", one["model"] or "-", one["version"] or "-", one["arm"] or "-", one["requests"],
            one["failed"], one["rows"], one["tokens"], f"{one['request_bytes'] / 1e6:.1f}",
        )
        for one in series[:_MOST]
    ]  # fmt: skip
    return joined((table(head, rows, numbers=frozenset(range(4, 9))), _more(series)))


def _promises(found: Mapping[str, Any]) -> Markup:
    if not found["is_on"]:
        return _note("None. Write them to [observing.slo.NAME].")
    if not found["models"]:
        return _note("No requests yet for a model that promises something.")
    head = ("model", "promise", "good in 6 h", "burn 5 min", "30 min", "1 h", "6 h", "")
    rows: list[Sequence[Child]] = []
    for one in found["models"][:_MOST]:
        promises = one["objectives"]
        for objective, words in (
            ("answered", f"{100 * promises['answered']:g}% answered"),
            ("fast", f"{100 * promises['fast']:g}% within {1e3 * promises['latency_s']:g} ms"),
        ):
            burning = [b for b in one["burning"] if b["objective"] == objective]
            longest = burning[-1]
            good = f"{100 * (1 - longest['bad'] / longest['of']):.2f}%" if longest["of"] else "-"
            is_alarm = any(alarm["objective"] == objective for alarm in one["alarms"])
            verdict = (
                element("span", "burns too fast", class_="bad") if is_alarm else element("span", "ok", class_="good")
            )
            rates = [_burn(b["rate"]) for b in burning]
            rows.append((one["model"], words, good, *rates, verdict))
    return table(head, rows, numbers=frozenset(range(2, 7)))


def _burn(rate: float | None) -> Child:
    if rate is None:
        return "-"
    return element("span", f"{rate:.1f}", class_="warn") if rate > 1 else f"{rate:.1f}"


def _drift(found: Mapping[str, Any]) -> Markup:
    if not found["is_on"]:
        return _note("Rows are not followed. Set observing.drift.is_on = true.")
    if not found["versions"]:
        return _note("No rows yet.")
    made: list[Markup] = []
    for one in found["versions"][:_MOST]:
        words = f" {one['rows']} rows, compared with {one['reference']}"
        made.append(element("h3", f"{one['model']} {one['version']}", element("small", words)))
        shifted = set(one["shifted"])
        rows = [
            (
                feature["feature"],
                f"{feature['psi']:.3f}",
                _bar(feature["psi"], is_shift=feature["feature"] in shifted),
                element("span", "shifted", class_="bad") if feature["feature"] in shifted else "",
            )
            for feature in one["features"][:_MOST_FEATURES]
        ]
        if rows:
            made.append(table(("feature", "PSI", "", ""), rows, numbers=frozenset({1})))
    return joined(made)


def _bar(psi: float, *, is_shift: bool) -> Markup:
    """Draw a PSI on a scale to 0.5."""
    width = 160
    filled = round(width * min(psi, 0.5) / 0.5)
    return element(
        "svg",
        element("rect", class_="of", width=width, height=8, rx=2),
        element("rect", class_="over" if is_shift else "is", width=filled, height=8, rx=2),
        width=width,
        height=8,
        role="img",
        aria_label=f"PSI {psi:.3f}",
    )


def _refusals(found: Mapping[str, Any]) -> Markup:
    if found["refused"] is None:
        return _note("Not kept: observing.last_refusals is 0.")
    if not found["refused"]:
        return _note("Nothing since the core began.")
    counts = [(one["model"] or "-", one["code"], one["requests"]) for one in found["refused"][:_MOST]]
    last = [
        (str(one["at"])[:19].replace("T", " "), one["model"] or "-", one["tenant"] or "-", one["code"], one["why"])
        for one in found["last"][:20]
    ]
    return joined(
        (
            table(("model", "code", "requests"), counts, numbers=frozenset({2})),
            element("h3", "The last ones"),
            table(("at (UTC)", "model", "tenant", "code", "why"), last),
        )
    )


def _batches(found: Mapping[str, Any]) -> Markup:
    if found["batches"] is None:
        return _note("Not counted. Set observing.batch_reasons = true.")
    if not found["batches"]:
        return _note("No batch has run yet.")
    rows = [
        (one["model"], one["batches"], f"{one['rows'] / one['batches']:.1f}", one["reason"],
         found["meanings"].get(one["reason"], ""))
        for one in found["batches"][:_MOST]
    ]  # fmt: skip
    return table(("model", "batches", "rows each", "closed by", "which means"), rows, numbers=frozenset({1, 2}))


def _more(found: Sequence[Any]) -> Markup | None:
    return _note(f"and {len(found) - _MOST} more") if len(found) > _MOST else None


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.2f}"
