"""A device that runs gets its models out of a registry and off a web server, with logins, over TLS."""

from pathlib import Path

import docker_registry
from authority import Authority
from delivery import Maker, bundled
from docker_registry import USER
from file_server import FileServer
from skerry.cli import main


@docker_registry.needed
def test_a_device_takes_what_is_newest_from_a_registry_and_from_a_web_server(tmp_path: Path) -> None:
    maker = Maker(tmp_path / "maker")
    authority = Authority(tmp_path / "tls")
    token = tmp_path / "token"
    token.write_text("of the device\n")
    with (
        docker_registry.running(tmp_path / "registry") as registry,
        FileServer(maker.folder, authority.server("127.0.0.1")) as web,
    ):
        web.manner.status = 503
        login = {"ca": registry.ca, "username": USER, "password_file": registry.password}
        sources = [
            {"kind": "registry", "url": registry.url, "repository": "models/tiny", **login},
            {"kind": "http", "url": web.url, "ca": str(authority.ca), "token_file": str(token)},
        ]
        with bundled(tmp_path / "device", maker, sources=sources) as device:
            device.until(lambda: device.serves(None))
            first = maker.release("1.1.0")
            options = [f"--{name.replace('_', '-')}={value}" for name, value in login.items()]
            where = registry.url.removeprefix("https://")
            assert main(["model", "push", str(maker.folder), f"{where}/models/tiny", *options]) == 0
            device.until(lambda: device.serves(first))
            second = maker.release("1.2.0")
            web.manner.status = 0
            device.until(lambda: device.serves(second))
    assert {h["Authorization"] for h in web.headers} == {"Bearer of the device"}
    assert [entry.what for entry in device.audited("confirmed")] == ["confirmed", "confirmed"]
