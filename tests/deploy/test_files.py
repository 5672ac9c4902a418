"""The files of deploy/: they parse, they fit each other, and the server takes what they say.

No container engine is asked for anything. docs/deployment.md says what that leaves open.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
import yaml

from midstream.adapters.embedded import embedded_model_path
from midstream.adapters.sidecar.client import Client, SidecarError
from midstream.proto.v1 import models_pb2, models_pb2_grpc

REPOSITORY = Path(__file__).resolve().parents[2]
DEPLOY = REPOSITORY / "deploy"
PROBE = DEPLOY / "probe.py"
SECONDS = 120

COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICE, DEPLOYMENT = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
POD: dict[str, Any] = DEPLOYMENT["spec"]["template"]["spec"]
(SIDECAR,) = POD["initContainers"]
(VLLM,) = POD["containers"]

INSTRUCTIONS = set(
    "ARG CMD COPY ENTRYPOINT ENV EXPOSE FROM HEALTHCHECK RUN STOPSIGNAL USER WORKDIR".split()
)

KEYS = {
    "compose": "name services secrets",
    "compose service": "build environment entrypoint command volumes ports ipc shm_size deploy "
    "restart secrets read_only tmpfs cap_drop security_opt stop_grace_period healthcheck",
    "manifest": "apiVersion kind metadata spec",
    "service": "clusterIP selector ports",
    "deployment": "replicas selector template",
    "pod": "terminationGracePeriodSeconds automountServiceAccountToken initContainers containers "
    "volumes",
    "container": "name image command args env ports restartPolicy startupProbe livenessProbe "
    "readinessProbe securityContext resources volumeMounts",
    "probe": "exec httpGet periodSeconds timeoutSeconds failureThreshold",
}
"""The keys that the files use, as the schemas spell them; any other is a slip of the pen."""


def check_keys(kind: str, found: Mapping[str, Any]) -> None:
    assert set(found) <= set(KEYS[kind].split()), kind


def instructions() -> list[tuple[str, str]]:
    """Of the Dockerfile, with continued lines joined."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    pairs = (line.strip().partition(" ") for line in lines if line.strip())
    return [(word, rest.strip()) for word, _, rest in pairs]


def of(word: str) -> list[str]:
    return [rest for found, rest in instructions() if found == word]


def options(arguments: Sequence[str]) -> dict[str, str]:
    """--name=value as a table; a flag has an empty value."""
    assert all(argument.startswith("--") for argument in arguments)
    return {name: value for name, _, value in (one.partition("=") for one in arguments)}


@pytest.fixture(scope="module")
def known_options() -> set[str]:
    """What `midstream serve --help` tells."""
    command = [sys.executable, "-P", "-m", "midstream.adapters.cli", "serve", "--help"]
    environment = {**os.environ, "COLUMNS": "200", "TERM": "dumb"}
    shown = subprocess.run(
        command, capture_output=True, text=True, check=True, env=environment, timeout=SECONDS
    )
    return set(re.findall(r"--[a-z][a-z-]+", shown.stdout))


def test_the_dockerfile_s_instructions() -> None:
    assert {word for word, _ in instructions()} <= INSTRUCTIONS
    assert instructions()[0][0] == "FROM"
    stages = [rest.split(" AS ")[1] for rest in of("FROM")]
    assert {"sidecar", "vllm"} <= set(stages)
    for rest in of("COPY"):
        *sources, _ = rest.split()
        if sources[0].startswith("--from="):
            assert sources.pop(0).removeprefix("--from=") in stages
            continue
        assert all((REPOSITORY / source).exists() for source in sources), sources
    assert json.loads(of("ENTRYPOINT")[0]) == ["midstream", "serve"]
    for rest in of("RUN"):
        assert rest.count('"') % 2 == 0
        subprocess.run(["bash", "-nc", rest], check=True)


def test_the_dockerfile_copies_every_folder_of_the_package() -> None:
    text = (REPOSITORY / "pyproject.toml").read_text()
    folders = set(re.findall(r'^"midstream\.\w+" = "(\w+)"$', text, re.MULTILINE))
    copied = {rest.split()[0] for rest in of("COPY")}
    assert {"kernels", "adapters", "proto"} <= folders <= copied


def test_compose_has_both_services() -> None:
    check_keys("compose", COMPOSE)
    assert set(COMPOSE["services"]) == {"vllm", "sidecar"}
    for name, service in COMPOSE["services"].items():
        check_keys("compose service", service)
        assert service["build"]["target"] == name
        assert (DEPLOY / service["build"]["context"]).resolve() == REPOSITORY
        assert (REPOSITORY / service["build"]["dockerfile"]).is_file()
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert set(COMPOSE["services"]["sidecar"]["secrets"]) == set(COMPOSE["secrets"])


def test_the_manifest_s_parts_fit() -> None:
    for manifest, version, kind in (
        (SERVICE, "v1", "Service"),
        (DEPLOYMENT, "apps/v1", "Deployment"),
    ):
        check_keys("manifest", manifest)
        assert (manifest["apiVersion"], manifest["kind"]) == (version, kind)
    check_keys("service", SERVICE["spec"])
    check_keys("deployment", DEPLOYMENT["spec"])
    check_keys("pod", POD)
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    assert SERVICE["spec"]["selector"] == labels == DEPLOYMENT["spec"]["selector"]["matchLabels"]
    assert SERVICE["spec"]["clusterIP"] == "None"  # headless: round_robin needs all addresses
    named = {port["name"]: port["containerPort"] for c in (SIDECAR, VLLM) for port in c["ports"]}
    for port in SERVICE["spec"]["ports"]:
        assert named[port["targetPort"]] == port["port"]
    volumes = {volume["name"] for volume in POD["volumes"]}
    for container in (SIDECAR, VLLM):
        check_keys("container", container)
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        for probe in (value for key, value in container.items() if key.endswith("Probe")):
            check_keys("probe", probe)
    assert SIDECAR["restartPolicy"] == "Always"  # among initContainers: a sidecar


def test_the_options_are_those_of_the_server(known_options: set[str]) -> None:
    compose = options(COMPOSE["services"]["sidecar"]["command"])
    pod = options(SIDECAR["args"])
    assert set(compose) == set(pod) <= known_options
    assert {name for name in json.loads(of("CMD")[0]) if name.startswith("--")} <= known_options
    moved = {name: value.replace("/run/secrets/", "/secrets/") for name, value in compose.items()}
    assert moved == pod
    assert "--no-such-option" not in known_options


def test_ports_graces_users_and_probes_agree() -> None:
    said = options(SIDECAR["args"])
    grpc_port, metrics_port = (said[name].rpartition(":")[2] for name in ("--listen", "--metrics"))
    assert of("EXPOSE") == [f"{grpc_port} {metrics_port}"]
    assert {port["containerPort"] for port in SIDECAR["ports"]} == {
        int(grpc_port),
        int(metrics_port),
    }
    sidecar = COMPOSE["services"]["sidecar"]
    assert [port.rpartition(":")[2] for port in sidecar["ports"]] == [grpc_port, metrics_port]
    annotations = DEPLOYMENT["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == metrics_port
    grace = int(said["--grace"])
    assert POD["terminationGracePeriodSeconds"] > grace
    assert int(sidecar["stop_grace_period"].removesuffix("s")) > grace
    assert of("USER") == [str(SIDECAR["securityContext"]["runAsUser"])]
    target = f"unix:{said['--unix']}"
    commands = [
        SIDECAR[f"{kind}Probe"]["exec"]["command"] for kind in ("startup", "liveness", "readiness")
    ]
    commands.append(sidecar["healthcheck"]["test"][1:])
    commands.append(json.loads(of("HEALTHCHECK")[0].partition("CMD ")[2]))
    place = of("COPY")[-1].split()[-1]
    assert [c[:3] for c in commands] == [["python", place, target]] * 5
    assert [c[3] for c in commands] == ["liveness", "liveness", *["readiness"] * 3]
    assert f"{DEPLOY.name}/{PROBE.name} {place}" in of("COPY")


def test_vllm_is_started_as_its_page_says() -> None:
    page = (REPOSITORY / "docs/vllm.md").read_text()
    service = COMPOSE["services"]["vllm"]
    assert service["command"] == VLLM["args"]
    assert service["entrypoint"] == VLLM["command"]
    assert service["entrypoint"][-1] in page
    for name, value in options(VLLM["args"]).items():
        if name.startswith(("--logits", "--worker")):
            assert f"{name} {value}" in page


def probe(target: str, check: str) -> int:
    command = [sys.executable, str(PROBE), target, check]
    return subprocess.run(command, capture_output=True, timeout=SECONDS).returncode


def test_the_server_takes_the_options_and_the_probe_asks_it(tmp_path: Path) -> None:
    """The command line of both files, with paths of this machine and ports that are free."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "tls.crt")
    certificate.private_key_pem.write_to_path(tmp_path / "tls.key")
    authority.cert_pem.write_to_path(tmp_path / "ca.crt")
    (tmp_path / "token").write_text("0123456789abcdef")
    socket = tmp_path / "own/socket"
    given = options(SIDECAR["args"]) | {
        "--model": f"model={embedded_model_path()}",
        "--unix": str(socket),
        "--listen": "0.0.0.0:0",
        "--metrics": "0.0.0.0:0",
        "--log-level": "error",
    }
    arguments = [
        f"{name}={value}" if value else name
        for name, value in ((n, v.replace("/secrets/", f"{tmp_path}/")) for n, v in given.items())
    ]
    command = [sys.executable, "-P", "-m", "midstream.adapters.cli", "serve", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    target = f"unix:{socket}"
    assert probe(target, "readiness") == 1  # nobody is there yet
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            assert server.stdout is not None
            assert "ClientTls(" in server.stdout.readline()
            assert [probe(target, check) for check in ("liveness", "readiness", "other")] == [
                0,
                0,
                1,
            ]
            with Client(target) as stranger, pytest.raises(SidecarError) as caught:
                stranger.models()
            assert caught.value.code == "UNAUTHENTICATED"
            with Client(target, token="0123456789abcdef") as client:
                assert [model.model for model in client.models()] == ["model"]
        finally:
            server.terminate()
            code = server.wait(SECONDS)
    assert code == 0
    assert probe(target, "liveness") == 1


class _Named(models_pb2_grpc.ModelsServicer):
    def __init__(self, name: str) -> None:
        self.name = name

    def List(self, request: Any, context: Any) -> models_pb2.ListModelsResponse:  # noqa: N802
        return models_pb2.ListModelsResponse(models=[models_pb2.Model(model=self.name)])


@pytest.fixture
def two_servers() -> Iterator[str]:
    """A target with both addresses."""
    servers, ports = [], []
    for name in ("a", "b"):
        server = grpc.server(ThreadPoolExecutor(2))
        models_pb2_grpc.add_ModelsServicer_to_server(_Named(name), server)
        ports.append(server.add_insecure_port("127.0.0.1:0"))
        server.start()
        servers.append(server)
    yield "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports)
    for server in servers:
        server.stop(None).wait()


def answered_by(target: str, channel_options: list[tuple[str, Any]]) -> set[str]:
    """Who answered forty calls, of which the first few may find one server connected."""
    with grpc.insecure_channel(target, channel_options) as channel:
        stub: Any = models_pb2_grpc.ModelsStub(channel)
        request = models_pb2.ListModelsRequest()
        told = [stub.List(request, wait_for_ready=True, timeout=10) for _ in range(40)]
    return {answer.models[0].model for answer in told}


def test_the_service_config_takes_turns(two_servers: str) -> None:
    config = (DEPLOY / "service-config.json").read_text()
    services = {
        name["service"] for one in json.loads(config)["methodConfig"] for name in one["name"]
    }
    assert services <= {"midstream.v1.Models", "midstream.v1.Decoding"}
    proxy = ("grpc.enable_http_proxy", 0)
    assert answered_by(two_servers, [proxy, ("grpc.service_config", config)]) == {"a", "b"}
    assert len(answered_by(two_servers, [proxy])) == 1  # negative control: gRPC's own choice
