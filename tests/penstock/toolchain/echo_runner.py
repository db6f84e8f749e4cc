"""A runner for the tests of ``toolchain.call``: does what its job says, well or badly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from protocol import InputError, progress, serve


def echo(job: dict[str, Any]) -> dict[str, Any]:
    for share, note in job.get("steps", []):
        progress(share, note)
    if job.get("chatter"):
        print("chatter of a library")
        os.write(1, b"chatter of native code\n")
        subprocess.run(["echo", "chatter of a child"], check=True)
    if "pid_file" in job:
        child = subprocess.Popen(["sleep", "600"])
        Path(job["pid_file"]).write_text(f"{os.getpid()} {child.pid}", encoding="utf-8")
    if job.get("ready"):
        progress(0.5, "ready")
    if "warn" in job:
        print(job["warn"])
    for _ in range(job.get("log_lines", 0)):
        print("x" * 200, file=sys.stderr)
    return _act(job)


def _act(job: dict[str, Any]) -> dict[str, Any]:
    match job.get("do"):
        case "input-error":
            raise InputError("epochs: expected at least 1")
        case "fail":
            raise RuntimeError("the library gave up")
        case "exit":
            raise SystemExit(3)
        case "die":
            print("last words", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGSEGV)
        case "leave":
            print("last words", file=sys.stderr, flush=True)
            os._exit(9)
        case "hang":
            time.sleep(600)
        case "nan":
            return {"value": float("nan")}
        case "environment":
            return {"environment": dict(os.environ), "prefix": sys.prefix, "path": sys.path, "cwd": os.getcwd()}
        case "long-line":
            return {"text": "y" * job["chars"]}
        case "background":
            subprocess.Popen(["sleep", "600"])  # keeps our standard error open
    return {"job": job}


serve(echo)
