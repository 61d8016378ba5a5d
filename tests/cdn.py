"""The libraries that the example pages load from a CDN, served to the browser from this machine.

jsDelivr's URLs name a package of npm, its version and a file, so that most files come from node_modules. Datastar
publishes its bundles on GitHub only. npm has the modules of 1.0.0-beta.11, and nothing newer. A copy of 1.0.1 is in the
Python package starhtml, whose changes to it concern the shadow DOM and clicks outside of an element.
"""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

from playwright.sync_api import BrowserContext, Route

from node import NODE_MODULES

NPM = re.compile(r"https://cdn\.jsdelivr\.net/npm/((?:@[^/]+/)?[^@/]+)@([^/]+)/(.+)")
DATASTAR = re.compile(r"https://cdn\.jsdelivr\.net/gh/starfederation/datastar@v([^/]+)/(.+)")
DATASTAR_BETA = NODE_MODULES / "@starfederation" / "datastar" / "dist"
DATASTAR_WHEEL = Path(__file__).parent.parent / ".venv" / "datastar" / "starhtml-0.7.0-py3-none-any.whl"
"""Downloaded by tests/install-tools. It contains Datastar 1.0.1."""


def serve_libraries(context: BrowserContext) -> None:
    """Answer all requests for https URLs in this context. One for a file that is not here fails."""
    context.route(re.compile("^https://"), _serve)


def _serve(route: Route) -> None:
    script = _script(route.request.url)
    if script is None:
        route.abort()
    else:
        headers = {"Access-Control-Allow-Origin": "*", "Content-Type": "text/javascript"}
        route.fulfill(body=script, headers=headers)


def _script(url: str) -> str | None:
    if found := NPM.fullmatch(url):
        return _from_npm(*found.groups())
    if found := DATASTAR.fullmatch(url):
        return _datastar(*found.groups())
    return None


def _from_npm(name: str, version: str, path: str) -> str | None:
    for manifest in (*NODE_MODULES.glob("*/package.json"), *NODE_MODULES.glob("@*/*/package.json")):
        package = json.loads(manifest.read_text())
        if (package["name"], package["version"]) == (name, version):
            return (manifest.parent / path).read_text()
    return None


def _datastar(version: str, path: str) -> str | None:
    if version == "1.0.1":
        with zipfile.ZipFile(DATASTAR_WHEEL) as wheel:
            return wheel.read("starhtml/static/js/datastar-core.js").decode()
    if version == "1.0.0-beta.11":
        return _module(DATASTAR_BETA / path)
    return None


def _module(path: Path) -> str:
    """Return the module that an import without an extension means, as bundlers read it."""
    if path.is_dir():
        return f'export * from "./{path.name}/index.js"'
    return (path if path.suffix == ".js" else path.with_name(f"{path.name}.js")).read_text()
