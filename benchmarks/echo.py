"""A bare grpc.aio server: what any Python gRPC server costs before it does anything. Bytes in, fixed bytes out."""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path

import grpc
import uvloop

METHOD = "/inference.GRPCInferenceService/ModelInfer"


async def serve(response: bytes) -> None:
    """Answer every ModelInfer with ``response`` until killed; print where, as one line of JSON."""

    async def infer(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        return response

    service, method = METHOD.strip("/").split("/")
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {method: grpc.unary_unary_rpc_method_handler(infer)}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(json.dumps({"grpc": f"127.0.0.1:{port}"}), flush=True)
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("response", type=Path, help="file with the bytes of every answer")
    uvloop.run(serve(parser.parse_args().response.read_bytes()))


if __name__ == "__main__":
    main()
