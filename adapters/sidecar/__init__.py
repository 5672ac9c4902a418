"""The gRPC sidecar: decoding strategies for engines and services in any language."""

from __future__ import annotations
