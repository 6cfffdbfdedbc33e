# SPDX-License-Identifier: GPL-2.0-or-later
"""Compose file and Kubernetes manifests: read by the real tools, and the compose file called.

No engine and no cluster runs here: the services of the compose file run as processes, with the
configuration that it gives them.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from gateway.app.supervisor import OWN_END_SECONDS
from gateway.planning.check import load_all
from tests.interop.lab.agent import Agent
from tests.interop.lab.asterisk import Asterisk
from tests.interop.lab.baresip import Phone
from tests.interop.lab.debian import Root, cache, locked
from tests.interop.lab.keys import self_signed
from tests.interop.lab.ports import EXTENSION
from tests.support.harness import eventually, rtp_range

pytestmark = pytest.mark.interop

DEPLOY = Path(__file__).parents[2] / "deploy"
COMPOSE = DEPLOY / "container" / "compose.yaml"
KUBERNETES = DEPLOY / "kubernetes"
SECRETS = {
    name: f"secret-of-{name.lower()}"
    for name in ("OPENAI_API_KEY", "PBX_PASSWORD", "DATABASE_PASSWORD", "TELEPHONE_PASSWORD")
}


def run(root: Root, program: str, *words: str | Path, **environ: str) -> str:
    """Standard output of a program of the lab, which must succeed."""
    done = subprocess.run(
        [*root.command(program), *words],
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


@pytest.fixture(scope="module")
def compose(root: Root) -> dict[str, Any]:
    """The file as Docker Compose understands it, with secrets."""
    words = ("-f", COMPOSE, "config", "--format", "json")
    program = "usr/libexec/docker/cli-plugins/docker-compose"
    read: dict[str, Any] = json.loads(run(root, program, *words, **SECRETS))
    return read


def drain_seconds(config: Path) -> float:
    limits = tomllib.loads(config.read_text(encoding="utf-8"))["limits"]
    return float(limits["drain_timeout"]) + OWN_END_SECONDS


def test_the_services_of_the_compose_file(compose: dict[str, Any]) -> None:
    gateway = compose["services"]["gateway"]
    assert gateway["read_only"]
    assert gateway["cap_drop"] == ["ALL"]
    minutes, seconds = re.fullmatch(r"(\d+)m(\d+)s", gateway["stop_grace_period"]).groups()  # type: ignore[union-attr]
    assert int(minutes) * 60 + int(seconds) > drain_seconds(DEPLOY / "container" / "gateway.toml")
    for mount in gateway["volumes"]:
        assert mount["type"] == "volume" or Path(mount["source"]).exists(), mount
    assert (Path(gateway["build"]["context"]) / gateway["build"]["dockerfile"]).is_file()


async def test_a_telephone_of_the_compose_file_reaches_the_agent(
    compose: dict[str, Any], root: Root, own_folder: Path
) -> None:
    keys = self_signed(own_folder / "keys", "lab")
    asterisk = Asterisk(root, own_folder / "asterisk", keys)
    asterisk.configuration.write("", "")
    moved = {"0.0.0.0:5060": asterisk.address, "$$": "$"}
    for name in ("pjsip", "extensions"):
        text = compose["configs"][name]["content"]
        for old, new in moved.items():
            text = text.replace(old, new)
        (asterisk.configuration.main.parent / f"{name}.conf").write_text(text)
    agent = Agent(own_folder / "agent", ())
    await agent.emulator.start()
    low, high = rtp_range()
    text = (DEPLOY / "container" / "gateway.toml").read_text(encoding="utf-8")
    for old, new in {
        "udp:127.0.0.1:5070": f"udp:{EXTENSION}:0",
        "[20000, 20999]": f"[{low}, {high}]",
        "wss://api.openai.com/v1/realtime": agent.emulator.url(),
        "${env:OPENAI_API_KEY}": "",
        "${env:PBX_PASSWORD}": compose["services"]["gateway"]["environment"]["PBX_PASSWORD"],
        "127.0.0.1:5060": asterisk.address,
        'folder = "dialplans"': f'folder = "{DEPLOY.parent / "dialplans"}"',
        "/var/lib/gateway/records": str(own_folder / "records"),
        "${env:DATABASE_URL}": f"sqlite:///{own_folder}/calls.sqlite3",
        "/run/gateway": str(own_folder),
        "127.0.0.1:8080": "127.0.0.1:0",
    }.items():
        assert old in text, old
        text = text.replace(old, new)
    (own_folder / "agent").mkdir()
    agent.gateway.config.write_text(text)
    phone = Phone(root, own_folder / "201", "201", keys=keys)
    try:
        await asterisk.start()
        await agent.gateway.start()
        await agent.gateway.wait("trunk.registered", trunk="pbx")
        await phone.start()
        await phone.register(asterisk.address, SECRETS["TELEPHONE_PASSWORD"])
        agent.behave(vad="off", answer={"kind": "pattern", "seconds": 1})
        call = agent.next_call()
        await phone.call(f"sip:100@{asterisk.address}")
        session = await call.session()
        await session.wait_until(lambda s: bool(s.sent("response.done")), within_s=30)
        (greeting,) = session.sent_items.values()
        await eventually(lambda: phone.heard.has(bytes(greeting)), "the whole greeting")
        await phone.hang_up()
        summary = await call.summary()
        assert (summary["route"], summary["ending"]["why"]) == ("reception", "remote_hangup")
        assert not [line for line in agent.gateway.lines if "secret-of-" in json.dumps(line)]
    finally:
        await phone.stop()
        await asterisk.stop()
        await agent.stop()


SCHEMAS = "kubernetes-validate==1.37.0"
"""A package with nothing but the schemas of Kubernetes; they are read out of its archive."""
STRICT = "kubernetes_validate/kubernetes-json-schema/v1.37.0-local-strict"


@pytest.fixture(scope="module")
def schemas() -> zipfile.ZipFile:
    folder = cache().with_name("schemas")
    with locked(folder):
        if not (found := list(folder.glob("*.whl"))):
            pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps")
            subprocess.run([*pip, "--dest", folder, SCHEMAS], check=True, timeout=100)
            found = list(folder.glob("*.whl"))
    return zipfile.ZipFile(found[0])


@pytest.fixture(scope="module")
def objects(root: Root) -> dict[str, dict[str, Any]]:
    """What kubectl would apply, by kind; the maps by what they are for."""
    rendered = yaml.safe_load_all(run(root, "usr/bin/kubectl", "kustomize", KUBERNETES))
    return {
        one["metadata"]["name"].rpartition("-")[0]
        if one["kind"] == "ConfigMap"
        else one["kind"]: one
        for one in rendered
    }


def test_every_object_fits_its_schema(
    objects: dict[str, dict[str, Any]], schemas: zipfile.ZipFile
) -> None:
    definitions = json.loads(schemas.read(f"{STRICT}/_definitions.json"))
    shared = DRAFT202012.create_resource(definitions)
    registry: Registry[Any] = Registry().with_resource("/api/_definitions.json", shared)
    for one in objects.values():
        group, _, version = one["apiVersion"].rpartition("/")
        name = "-".join(part for part in (one["kind"].lower(), group, version) if part)
        schema = json.loads(schemas.read(f"{STRICT}/{name}.json"))
        validator = jsonschema.Draft202012Validator(schema, registry=registry)
        validator.validate(one)
    wrong = json.loads(json.dumps(objects["StatefulSet"]))
    wrong["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    schema = json.loads(schemas.read(f"{STRICT}/statefulset-apps-v1.json"))
    validator = jsonschema.Draft202012Validator(schema, registry=registry)
    assert "readinesProbe" in str(next(validator.iter_errors(wrong)))


def test_the_pod_and_its_configuration_agree(
    objects: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    pod = objects["StatefulSet"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    text = objects["gateway"]["data"]["gateway.toml"]
    (tmp_path / "dialplans").mkdir()
    for name, content in objects["gateway-dialplans"]["data"].items():
        (tmp_path / "dialplans" / name).write_text(content)
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    settings = tomllib.loads(text)
    assert settings["dialplan"]["folder"] in mounts
    assert {"/var/lib/gateway", "/run/gateway", "/tmp"} <= mounts
    config = tmp_path / "gateway.toml"
    config.write_text(text.replace('"/etc/dialplans"', '"dialplans"'))
    environ = {one["name"]: "192.0.2.1" for one in container["env"]}
    environ["DATABASE_URL"] = "postgresql://gateway:secret@192.0.2.2/gateway"
    read, dialplan = load_all(config, environ)
    assert [route.name for route in dialplan.routes] == ["reception"]
    assert pod["terminationGracePeriodSeconds"] > drain_seconds(config)
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert read.sip.listen[0].port == ports["sip"]
    assert settings["api"]["listen"] == f"127.0.0.1:{ports['api']}"
    for probe, path in (("startup", "healthz"), ("liveness", "healthz"), ("readiness", "readyz")):
        asked = container[f"{probe}Probe"]["httpGet"]
        assert (asked["host"], asked["path"]) == ("127.0.0.1", f"/{path}"), probe
