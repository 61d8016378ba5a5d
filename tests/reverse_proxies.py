"""nginx, Apache, HAProxy and Caddy in front of a hub, configured as docs/proxies.md says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from conftest import connects, free_port, require, wait_until

PAGE = Path(__file__).parent.parent / "docs" / "proxies.md"
MODULES = Path("/usr/lib/apache2/modules")
APACHE_MODULES = (
    *("mpm_event", "authz_core", "alias", "asis", "headers", "http2", "mime", "proxy"),
    *("proxy_http", "setenvif", "socache_shmcb", "ssl"),
)
CADDY_OPTIONS = """{
    admin off
    auto_https off
    grace_period 1s
    servers {
        protocols h1 h2
    }
}"""


@dataclass(frozen=True)
class Place:
    """Where a proxy listens and what it uses."""

    folder: Path
    hub_port: int
    control_port: int
    plain_port: int = field(default_factory=free_port)
    tls_port: int = field(default_factory=free_port)

    @property
    def certificate(self) -> Path:
        return self.folder / "site.pem"

    @property
    def log(self) -> Path:
        return self.folder / "error.log"


def printed(language: str) -> str:
    """Return the configuration that docs/proxies.md has for a server."""
    found = re.search(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert found, f"docs/proxies.md has no configuration for {language}"
    return found[1]


def adapted(text: str, changes: Mapping[str, str]) -> str:
    """Return a configuration with the ports and paths of a test."""
    for old, new in changes.items():
        assert old in text, f"the configuration does not have {old!r}"
        text = text.replace(old, new)
    return text


def _nginx(place: Place, text: str) -> list[str]:
    ports = f"listen 127.0.0.1:{place.plain_port}; listen 127.0.0.1:{place.tls_port} ssl http2;"
    changes = {
        "listen 443 ssl http2;": ports,
        "/etc/ssl/site.pem": str(place.certificate),
        "127.0.0.1:8000": f"127.0.0.1:{place.hub_port}",
    }
    temporary = "".join(
        f"{kind}_temp_path {place.folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (place.folder / "nginx.conf").write_text(
        f"daemon off; worker_processes 1; pid {place.folder}/pid; error_log {place.log} notice;\n"
        f"events {{ worker_connections 20000; }}\n"
        f"http {{ access_log off; {temporary} {adapted(text, changes)} }}\n"
    )
    return ["nginx", "-c", f"{place.folder}/nginx.conf", "-e", str(place.log)]


def _apache(place: Place, text: str) -> list[str]:
    changes = {
        "<VirtualHost *:443>": f"<VirtualHost 127.0.0.1:{place.tls_port}>",
        "/etc/ssl/site.pem": str(place.certificate),
        "127.0.0.1:8000": f"127.0.0.1:{place.hub_port}",
        "/etc/apache2/come-back.asis": f"{place.folder}/come-back.asis",
    }
    encrypted = adapted(text, changes)
    plain = encrypted.replace(f":{place.tls_port}>", f":{place.plain_port}>").replace("SSLEngine on", "SSLEngine off")
    modules = "".join(f"LoadModule {name}_module {MODULES}/mod_{name}.so\n" for name in APACHE_MODULES)
    (place.folder / "come-back.asis").write_text(printed("asis"))
    (place.folder / "apache.conf").write_text(
        f"{modules}ServerName localhost\nPidFile {place.folder}/pid\nDefaultRuntimeDir {place.folder}\n"
        f"Mutex file:{place.folder} default\nUser www-data\nGroup www-data\nErrorLog {place.log}\nLogLevel warn\n"
        f"TypesConfig /etc/mime.types\nStartServers 1\nThreadsPerChild 64\nMaxRequestWorkers 256\n"
        f"Listen 127.0.0.1:{place.plain_port}\nListen 127.0.0.1:{place.tls_port}\n{encrypted}{plain}"
    )
    return ["apache2", "-d", str(place.folder), "-f", f"{place.folder}/apache.conf", "-DFOREGROUND"]


def _haproxy(place: Place, text: str) -> list[str]:
    bind = f"bind 127.0.0.1:{place.plain_port} tcp-ut 30s\n    bind 127.0.0.1:{place.tls_port} ssl"
    changes = {
        "bind :443 ssl": bind,
        "/etc/ssl/site.pem": str(place.certificate),
        "127.0.0.1:8000": f"127.0.0.1:{place.hub_port}",
        "check port 8001": f"check port {place.control_port}",
    }
    logs = "global\n    log stdout format raw local0 info\n"
    (place.folder / "haproxy.cfg").write_text(logs + adapted(text, changes))
    return ["haproxy", "-db", "-f", f"{place.folder}/haproxy.cfg"]


def _caddy(place: Place, text: str) -> list[str]:
    site = adapted(text, {"127.0.0.1:8000": f"127.0.0.1:{place.hub_port}"})
    encrypted = f"https://localhost:{place.tls_port} {{\n    tls {place.certificate} {place.certificate}"
    sites = [
        adapted(site, {"example.org {": start}) for start in (f"http://localhost:{place.plain_port} {{", encrypted)
    ]
    (place.folder / "Caddyfile").write_text("\n".join([CADDY_OPTIONS, *sites]))
    return ["caddy", "run", "--adapter", "caddyfile", "--config", f"{place.folder}/Caddyfile"]


PROXIES: dict[str, Callable[[Place, str], list[str]]] = {
    "nginx": _nginx,
    "apache": _apache,
    "haproxy": _haproxy,
    "caddy": _caddy,
}
"""By the language of its configuration in docs/proxies.md: writes the configuration, returns the command."""


def program(name: str) -> str | None:
    """Return the path of a proxy's program, None if it is not installed."""
    return shutil.which({"apache": "apache2"}.get(name, name), path=f"{os.environ['PATH']}:/usr/sbin")


@contextmanager
def running_proxy(
    name: str, hub_port: int, control_port: int, folder: Path, text: str | None = None
) -> Iterator[Place]:
    """Run a proxy in front of the hub, configured as printed or with `text`."""
    binary = program(name)
    assert binary, f"{name} is not installed"
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    place = Place(folder, hub_port, control_port)
    write_certificate(place.certificate)
    command = PROXIES[name](place, printed(name) if text is None else text)
    environment = {**os.environ, "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    with ExitStack() as stack:
        output = stack.enter_context(place.log.open("a"))
        # Apache signals its whole process group when it stops, so it needs one of its own.
        process = subprocess.Popen(
            [binary, *command[1:]], stdout=output, stderr=output, env=environment, start_new_session=True
        )
        stack.callback(_stop, process)
        wait_until(lambda: connects(place.tls_port) or process.poll() is not None, 20)
        assert process.poll() is None, place.log.read_text()
        yield place


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def write_certificate(path: Path) -> None:
    """Write a self-signed certificate for localhost, and its key, into one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    path.chmod(0o644)


@contextmanager
def running_haproxy(config: Path) -> Iterator[None]:
    """Run HAProxy with this configuration. Skips the test if it is not installed."""
    binary = program("haproxy")
    require(binary, "haproxy")
    process = subprocess.Popen([str(binary), "-db", "-f", str(config)], stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)
