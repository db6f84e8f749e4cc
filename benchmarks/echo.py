"""A bare gRPC server, grpcio's or pygrpc-native's: what it costs before anything is done. Bytes in, fixed bytes out."""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

import grpc
import uvloop

METHOD = "/inference.GRPCInferenceService/ModelInfer"


async def serve(response: bytes, *, is_native: bool) -> None:
    """Answer every ModelInfer with ``response`` until killed; print where, as one line of JSON."""
    import pygrpc_native.aio as native  # an extra; "from pygrpc_native import aio" calls itself endlessly

    async def infer(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        return response

    service, method = METHOD.strip("/").split("/")
    server: Any = native.server() if is_native else grpc.aio.server()
    server.add_registered_method_handlers(service, {method: grpc.unary_unary_rpc_method_handler(infer)})
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(json.dumps({"grpc": f"127.0.0.1:{port}"}), flush=True)
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("response", type=Path, help="file with the bytes of every answer")
    parser.add_argument("--native", action="store_true", help="pygrpc-native's asyncio server, not grpcio's")
    options = parser.parse_args()
    uvloop.run(serve(options.response.read_bytes(), is_native=options.native))


if __name__ == "__main__":
    main()
