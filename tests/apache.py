"""A private Apache with PHP, configured as for the original program that this hub replaces."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conftest import RunningHub, connects, free_port, require, wait_until
from node import POLYFILL

BINARY = Path("/usr/sbin/apache2")
MODULES = Path("/usr/lib/apache2/modules")

CONFIG = """
ServerRoot {folder}
ServerName localhost
PidFile {folder}/pid
Listen 127.0.0.1:{port}
DefaultRuntimeDir {folder}
Mutex file:{folder} default
User www-data
Group www-data
StartServers 2
MinSpareServers 2
MaxRequestWorkers 32
ErrorLog {folder}/error.log
LoadModule mpm_prefork_module {modules}/mod_mpm_prefork.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule dir_module {modules}/mod_dir.so
LoadModule mime_module {modules}/mod_mime.so
LoadModule proxy_module {modules}/mod_proxy.so
LoadModule proxy_http_module {modules}/mod_proxy_http.so
LoadModule php_module {php}
TypesConfig /etc/mime.types
<FilesMatch "\\.php$">
    SetHandler application/x-httpd-php
</FilesMatch>
<VirtualHost *:{port}>
    DocumentRoot {folder}/www
    DirectoryIndex index.html
    ProxyPass /api/sse/ {hub}/events/
    ProxyPassReverse /api/sse/ {hub}/events/
    ProxyPreserveHost On
</VirtualHost>
"""

# Issues a token for a random user on channel chat, or publishes to the channel. PHP's curl sends an array as multipart.
PHP = """<?php
function post($path, $fields) {
    $curl = curl_init("CONTROL$path");
    curl_setopt($curl, CURLOPT_POST, true);
    curl_setopt($curl, CURLOPT_POSTFIELDS, $fields);
    curl_setopt($curl, CURLOPT_RETURNTRANSFER, true);
    return curl_exec($curl);
}
if (isset($_GET["text"])) {
    $data = json_encode(["text" => $_GET["text"]]);
    echo post("/emit/", ["userId" => "*", "channel" => "chat", "payload" => "event: message\\ndata: $data\\n"]);
} else {
    $token = post("/token/", ["userId" => "user" . rand(), "channel" => "chat", "exp" => 86400]);
    if (isset($_GET["cookie"])) setcookie("sse", $token, ["path" => "/", "httponly" => true]);
    echo $token;
}
"""


@contextmanager
def running_apache(hub: RunningHub, pages: dict[str, str]) -> Iterator[str]:
    """Run an Apache that serves `pages`, `chat.php` and, under /api/sse/, `hub`; yield its URL."""
    require(BINARY.exists(), "apache2")
    php = next(iter(sorted(MODULES.glob("libphp*.so"))), None)
    require(php, "libapache2-mod-php")
    port = free_port()
    folder = Path(tempfile.mkdtemp(prefix="ssehub-apache-"))
    folder.chmod(0o755)
    (folder / "www").mkdir()
    for name, text in {**pages, "chat.php": PHP.replace("CONTROL", hub.control_url)}.items():
        (folder / "www" / name).write_text(text)
    shutil.copy(POLYFILL, folder / "www")
    config = CONFIG.format(folder=folder, port=port, modules=MODULES, php=php, hub=hub.url)
    (folder / "apache.conf").write_text(config)
    # Apache signals its whole process group when it stops, so it needs one of its own.
    command = [str(BINARY), "-d", str(folder), "-f", str(folder / "apache.conf"), "-DFOREGROUND"]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        wait_until(lambda: connects(port) or process.poll() is not None, 20)
        assert process.poll() is None, (folder / "error.log").read_text()
        yield f"http://localhost:{port}"
    finally:
        process.terminate()
        process.wait(20)
        shutil.rmtree(folder)
