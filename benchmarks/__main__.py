"""``python -m benchmarks``: everything side by side in one run, in interleaved rounds (``make bench``).

A round measures every server once, so that what disturbs the machine disturbs both sides of a ratio. Servers run as a
user would start them, on all CPUs; with --pin they share one CPU and the load generator has another, which tells more
about what a request costs.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import msgspec

from benchmarks import environments, models, report, startup
from benchmarks.load import Sample, Spec
from benchmarks.models import Model
from benchmarks.peers import PEERS
from benchmarks.plan import CALLERS, SERVERS, Key
from benchmarks.servers import Pins, ServerError, Servers, choose_pins, cpu_s, pinned, running
from penstock.rest import codec as rest
from penstock.rpc import codec as rpc
from penstock.wire.inference import InferRequest, InferResponse

CACHE = Path(__file__).resolve().parent.parent / "out" / "bench"


def main() -> int:
    options = _options()
    pins = choose_pins(pin=options.pin)
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch, running(Path(scratch), pins) as servers:
        measured = [build(CACHE / name) for name, build in BUILDERS.items() if name in options.models]
        found = _start(servers, measured, options)
        peers, left_out = start_peers(servers, measured, options.servers, CACHE / "peers")
        specs = _specs(servers, measured, options, {**found, **peers})
        samples: dict[Key, list[Sample]] = {key: [] for key in specs}
        for number in range(options.rounds):
            for position, (key, spec) in enumerate(specs.items(), start=1):
                _progress(f"round {number + 1}/{options.rounds}, {position}/{len(specs)}: {' '.join(map(str, key))}")
                samples[key].append(_measure(spec, pins))
    _progress("import and --help")
    started = startup.measure(rounds=5 if options.quick else 10)
    chosen = {"rounds": options.rounds, "duration_s": options.duration_s, "pinned": pins.server is not None}
    results = report.gather(samples, started, chosen)
    report.show(results)
    for line in left_out:
        print(f"\n{line}")
    if options.save:
        path = report.save(results)
        print(f"\n{path}; README's section of it:\n\n{report.for_readme(results, path)}")
    return 0


BUILDERS = {"digits": models.digits, "resnet18": models.resnet18}


class _Options(argparse.Namespace):
    quick: bool
    rounds: int
    duration_s: float
    models: Sequence[str]
    servers: Sequence[str]
    callers: Sequence[int]
    pin: bool
    save: bool | None

    def callers_ok(self, callers: int) -> bool:
        return not self.callers or callers in self.callers


def _options() -> _Options:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    flag = argparse.BooleanOptionalAction
    parser.add_argument("--quick", action="store_true", help="one short round: about a minute, for a first look")
    parser.add_argument("--rounds", type=int, help="interleaved rounds (default 3)")
    parser.add_argument("--duration-s", type=float, help="of one measurement (default 1; for resnet18 3 times that)")
    parser.add_argument("--models", nargs="+", choices=BUILDERS, default=list(BUILDERS))
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=list(SERVERS), help="rows (default: all)")
    parser.add_argument("--callers", nargs="+", type=int, default=[], help="only these numbers of callers")
    parser.add_argument("--pin", action=flag, default=False, help="one CPU for servers, one for load")
    parser.add_argument("--save", action=flag, help="write benchmarks/results (default: unless --quick)")
    options = parser.parse_args(namespace=_Options())
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.duration_s = options.duration_s or (0.5 if options.quick else 1.0)
    options.save = not options.quick if options.save is None else options.save
    return options


_Found = dict[tuple[str, str], tuple[str, int]]
"""(model, server) -> where it listens, and the process whose CPU time counts."""


def _start(servers: Servers, measured: Sequence[Model], options: _Options) -> _Found:
    """Start every server of ours that is asked for."""
    wanted = set(options.servers)
    found: _Found = {}
    if wanted & {"core-http", "core-grpc", "core-sdk", "agent-unix"}:
        _progress("starting core")
        core = servers.core([model.layout for model in measured])
        for model in measured:
            found[model.name, "core-http"] = core.endpoints["http"], core.pid
            found[model.name, "core-grpc"] = core.endpoints["grpc"], core.pid
            found[model.name, "core-sdk"] = f"grpc://{core.endpoints['grpc']}", core.pid
    if "core-grpcio" in wanted:
        _progress("starting core with grpcio's server")
        core_grpcio = servers.core([model.layout for model in measured], name="core-2", config='grpc.server = "grpcio"')
        found.update(
            {(model.name, "core-grpcio"): (core_grpcio.endpoints["grpc"], core_grpcio.pid) for model in measured}
        )
    if "agent-unix" in wanted:
        _progress("starting agent")
        agent = servers.agent(core, measured)
        for model in measured:
            found[model.name, "agent-unix"] = f"unix:{agent.endpoints['socket']}", agent.pid
    for model in measured:
        found[model.name, "raw"] = str(model.path), 0
        if wanted & {"yardstick-http", "yardstick-unix"}:
            yardstick = servers.yardstick(model)
            found[model.name, "yardstick-http"] = yardstick.endpoints["http"], yardstick.pid
            found[model.name, "yardstick-unix"] = f"unix:{yardstick.endpoints['socket']}", yardstick.pid
        for row in ("echo-grpc", "echo-native"):
            if row in wanted & set(CALLERS[model.name]):
                echo = servers.echo(_requests(servers.directory, model)["echo"], is_native=row == "echo-native")
                found[model.name, row] = echo.endpoints["grpc"], echo.pid
    return found


def start_peers(
    servers: Servers, measured: Sequence[Model], wanted: Collection[str], root: Path
) -> tuple[_Found, list[str]]:
    """Start every peer of which a row is wanted, and say of each that does not install or start here that it is left
    out.
    """
    found: _Found = {}
    left_out = []
    for peer in PEERS:
        if not peer.rows.keys() & set(wanted):
            continue
        try:
            python = environments.interpreter(root / peer.name, peer.requirements, announce=_progress)
            _progress(f"starting {peer.name}")
            server = servers.peer(peer, python, measured)
        except (environments.NotInstalled, ServerError) as problem:
            left_out.append(f"{peer.name} is left out: {environments.last_line(str(problem))}")
            _progress(left_out[-1])
            continue
        for row, protocol in peer.rows.items():
            found.update({(model.name, row): (server.endpoints[protocol], server.pid) for model in measured})
    return found, left_out


def _specs(servers: Servers, measured: Sequence[Model], options: _Options, found: _Found) -> dict[Key, Spec]:
    """Write down how each server that runs is measured, in the order of one round."""
    requests = {model.name: _requests(servers.directory, model) for model in measured}
    return {
        (model.name, server, callers): _spec(
            model, server, callers, found[model.name, server], requests[model.name], options
        )
        for model in measured
        for server, loads in CALLERS[model.name].items()
        if server in options.servers and (model.name, server) in found
        for callers in loads
        if options.callers_ok(callers)
    }


_PREPARED = {  # server -> (mode, which prepared request, whether the logits are checked)
    "raw": ("raw", "row", False),
    "echo-grpc": ("grpc", "grpc", False),
    "echo-native": ("grpc", "grpc", False),
    "yardstick-http": ("http", "yardstick", True),
    "yardstick-unix": ("http", "yardstick", True),
    "core-http": ("http", "oip", True),
    "agent-unix": ("http", "oip", True),
    "core-grpc": ("grpc", "grpc", True),
    "core-grpcio": ("grpc", "grpc", True),
    "core-sdk": ("sdk", "row", True),
    "triton-http": ("http", "oip", True),
    "triton-grpc": ("grpc", "grpc", True),
    "mlserver-grpc": ("grpc", "grpc", True),
}


def _spec(
    model: Model, server: str, callers: int, at: tuple[str, int], requests: Mapping[str, Path], options: _Options
) -> Spec:
    mode, request, checked = _PREPARED[server]
    address, pid = at
    slow = 3.0 if model.in_thread else 1.0  # a batch takes a large part of a second
    fields = {
        "mode": mode,
        "address": address,
        "request": str(requests[request]),
        "expected": str(requests["logits"]) if checked else "",
        "model": model.name,
        "shape": model.row.shape,
        "callers": callers,
        "warmup_s": 0.3 * slow,
        "duration_s": options.duration_s * slow,
        "server_pid": pid,
    }
    return msgspec.convert(fields, Spec)


def _requests(directory: Path, model: Model) -> dict[str, Path]:
    """Write the bytes of one request in every form, as files that the load generator reads."""
    request = InferRequest(model=model.name, inputs={"x": model.row})
    body = rest.encode_request(request)
    raw = model.row.tobytes()
    response = InferResponse(model=model.name, version="v1", outputs={"logits": model.logits})
    message = rpc.encode_request(request)
    forms = {
        "row": raw,
        "logits": model.logits.tobytes(),
        "yardstick": _post("/infer", raw, {}),
        "oip": _post(
            f"/v2/models/{model.name}/infer",
            body.body,
            {"Inference-Header-Content-Length": str(body.header_length), "Content-Type": "application/octet-stream"},
        ),
        "grpc": message.SerializeToString(),
        "echo": rpc.encode_response(response, rpc.decode_request(message)).SerializeToString(),
    }
    paths = {}
    for form, content in forms.items():
        paths[form] = directory / f"{model.name}.{form}"
        paths[form].write_bytes(content)
    return paths


def _post(path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def _measure(spec: Spec, pins: Pins) -> Sample:
    """Measure once in a process of its own: on the load's CPU, or on the servers' where it is the model itself."""
    module, cpu = ("benchmarks.raw", pins.server) if spec.mode == "raw" else ("benchmarks.load", pins.client)
    command = pinned([sys.executable, "-m", module, msgspec.json.encode(spec).decode()], cpu)
    limit_s = 60 + 10 * spec.duration_s
    used_s = cpu_s(spec.server_pid)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=limit_s, check=False)
    if done.returncode != 0:
        raise SystemExit(f"measuring {spec.model} at {spec.address} failed (exit {done.returncode})")
    sample = msgspec.json.decode(done.stdout, type=Sample)
    used_s = cpu_s(spec.server_pid) - used_s
    return msgspec.structs.replace(sample, cpu_us=1e6 * used_s / sample.answered_rows)


_BEGAN = time.monotonic()


def _progress(message: str) -> None:
    print(f"[{time.monotonic() - _BEGAN:5.0f} s] {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
