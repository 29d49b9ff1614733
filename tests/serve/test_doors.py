"""TLS, and a router on a probe, asked over HTTP."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import httpx
import pytest

import stepwise as sw
from stepwise.config import Config
from stepwise.errors import ConfigError
from stepwise.routing import Never, StepRouter
from stepwise.serve.running import RunningServer
from stepwise.serve.service import Service
from tests.scorers.test_probe import head_for
from tests.serve.conftest import World, ask, served

SMALL = {"context": 512, "sequences": 4}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("this needs openssl")
    folder = tmp_path_factory.mktemp("tls")
    files = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
         "subjectAltName=IP:127.0.0.1", "-out", files[0], "-keyout", files[1]], check=True, capture_output=True,
    )  # fmt: skip
    return files


def test_with_a_certificate_https_alone_is_served(world: World, certificate: tuple[Path, Path]) -> None:
    config = Config.load(None, [f"serve.certificate={certificate[0]}", f"serve.certificate_key={certificate[1]}"])
    router = StepRouter(world.weak, world.strong, world.scorer, Never(), allow_lab=True)
    trusted = ssl.create_default_context(cafile=certificate[0])
    with served(router, config) as (server, untrusting):
        assert server.url.startswith("https://")
        with httpx.Client(base_url=server.url, verify=trusted, timeout=60) as client:
            assert ask(client, "17").json()["choices"][0]["message"]["content"].endswith(r"\boxed{17}")
            assert client.get("/").status_code == 200
        with pytest.raises(httpx.ConnectError):
            ask(untrusting, "17")  # it does not know who signed
        with pytest.raises(httpx.HTTPError), httpx.Client(base_url=server.url.replace("https", "http")) as plain:
            ask(plain, "17")


def test_files_that_are_no_certificate_are_refused_before_anything_is_served(
    world: World, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    other = tmp_path / "other.pem"
    other.write_text("no certificate")
    router = StepRouter(world.weak, world.strong, world.scorer, Never(), allow_lab=True)
    for names in ([other], [tmp_path / "none.pem"], [certificate[0], other], [certificate[0]]):
        keys = ("certificate", "certificate_key")
        settings = [f"serve.{key}={name}" for key, name in zip(keys, names, strict=False)]
        config = Config.load(None, [*settings, "serve.port=0"])
        with pytest.raises(ConfigError, match=r"serve\.certificate = .*give a certificate in PEM form"):
            RunningServer(router, config, router.ledger)
    with pytest.raises(ConfigError, match=r"without serve\.certificate"):
        Config.load(None, [f"serve.certificate_key={certificate[1]}"])


def test_a_router_on_a_probe_is_asked_by_its_name_over_http(tmp_path: Path, lab: httpx.Client) -> None:
    head = tmp_path / "head"
    with sw.load_backend("llamacpp/lab-weak", context=512, sequences=4) as weak:
        head_for(weak).save(head)
    loads = [f"models.{role}.{key}={value}" for role in ("weak", "strong") for key, value in SMALL.items()]
    config = Config.load(None, [*loads, "scorer.kind=probe", f"scorer.model=probe/{head}"])
    question = sw.lab.generate("test", 4)[3].problem.question
    with Service.router(config) as router, served(router, config) as (_, client):
        assert "router-probe" in {model["id"] for model in client.get("/v1/models").json()["data"]}
        told = {
            point: ask(client, question, model=f"router-probe-{point}", seed=1, stepwise={"steps": True}).json()
            for point in ("0", "0.5", "1.01")
        }
    for reply in told.values():
        assert reply["choices"][0]["finish_reason"] == "stop"
    steps = {point: reply["stepwise"]["choices"][0]["steps"] for point, reply in told.items()}
    assert {step["author"] for step in steps["0"]} == {"weak"}
    assert {step["author"] for step in steps["1.01"]} == {"strong"}
    for step in steps["0"]:
        assert 0 <= step["score"] <= 1  # read while the weak model wrote it
    assert set(told["0"]["stepwise"]["usage"]) == {"weak"}
    refused = ask(lab, question, model="router-probe-0.2")  # a server whose scorer is none
    assert refused.status_code == 404
    assert '[scorer] is of kind \\"label_token\\"' in refused.text
