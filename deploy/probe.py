"""python probe.py TARGET CHECK: exit code 0 if a server's health check says SERVING, 1 if not.

TARGET: as unix:/tmp/midstream/socket. CHECK: liveness, readiness, or a service's full name.
"""

from __future__ import annotations

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

SECONDS = 3.0


def serving(target: str, check: str) -> bool:
    """Whether it says so, in time."""
    with grpc.insecure_channel(target, [("grpc.enable_http_proxy", 0)]) as channel:
        request = health_pb2.HealthCheckRequest(service=check)
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=SECONDS)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


if __name__ == "__main__":
    sys.exit(0 if serving(*sys.argv[1:]) else 1)
