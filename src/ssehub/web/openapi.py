"""`GET /openapi.json` of both apps: their OpenAPI 3.1 documents, made of the descriptions of their endpoints.

A document is made when it is first asked for. It names no setting but the cookie of tokens, and nothing secret.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from importlib.metadata import version
from typing import Any
from urllib.parse import quote

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .description import Answer, Content, Described, Description, Errors, Named, Operation, Parameter, Schema
from .endpoint import Endpoint
from .forms import JSON
from .requests import ControlRequest
from .schemas import COUNT, STRING

PATH = "/openapi.json"
OPENAPI = "3.1.0"
MAX_AGE_SECONDS = 300
"""A document changes only with the version and the settings, so at a restart."""

_REFUSALS: Mapping[int, str] = {
    400: "The request can't be used: a field is missing, unknown, given twice or invalid.",
    401: "The key or the token is missing or wrong.",
    403: "The request comes from a web page or through a proxy, or the key or the token does not allow it.",
    404: "There is none.",
    408: "A line of the body took too long.",
    409: "The state of the run does not allow it.",
    413: "The body, or something in it, is too large.",
    415: "The content type, charset or encoding of the body is not supported.",
    422: "The idempotency key was used before, for something else.",
    429: "Too many events were published with this key: nothing was stored.",
    500: "The login failed on the server.",
    503: "Not possible at present: try again. An event may or may not be stored.",
}
_HEADERS: Mapping[int, Mapping[str, tuple[Schema, str]]] = {
    401: {"WWW-Authenticate": (STRING, "How to log in.")},
    429: {"Retry-After": (COUNT, "Seconds to wait.")},
    503: {"Retry-After": (COUNT, "Seconds to wait.")},
}
DESCRIPTION = Description(
    "getOpenAPI", "Read this document", [Answer(200, "The document.", {JSON: {"type": "object"}})]
)


class Document:
    """The document of an app with these `operations`.

    `schemes` are the ways to log in by their names, and `errors` the bodies of refusals. `refusals` are the statuses
    with which the app refuses requests for an operation before its endpoint sees them.
    """

    def __init__(
        self,
        title: str,
        text: str,
        operations: Sequence[Operation],
        schemes: Mapping[str, Schema],
        errors: Errors,
        refusals: Callable[[Operation], set[int]],
    ) -> None:
        self._title = title
        self._text = text
        self._operations = operations
        self._schemes = schemes
        self._errors = errors
        self._refusals = refusals
        self._named: dict[str, Any] = {}
        self._refused: dict[str, Any] = {}

    @cached_property
    def body(self) -> bytes:
        """The document as JSON."""
        return json.dumps(self.to_json(), ensure_ascii=False, separators=(",", ":")).encode()

    def to_json(self) -> dict[str, Any]:
        """Return the document."""
        paths: dict[str, dict[str, Any]] = {}
        for operation in self._operations:
            paths.setdefault(operation.path, {})[operation.method.lower()] = self._operation(operation)
        return {
            "openapi": OPENAPI,
            "info": {"title": self._title, "version": version("ssehub"), "description": self._text},
            "paths": paths,
            "components": {
                "schemas": dict(sorted(self._named.items())),
                "responses": dict(sorted(self._refused.items())),
                "securitySchemes": dict(self._schemes),
            },
        }

    def _operation(self, operation: Operation) -> dict[str, Any]:
        description = operation.description
        found: dict[str, Any] = {"operationId": description.operation, "summary": description.summary}
        if description.text:
            found["description"] = description.text
        roles = [] if operation.right is None else [operation.right.value]
        found["security"] = [{scheme: roles} for scheme in operation.schemes]
        if description.parameters:
            found["parameters"] = [self._parameter(one) for one in description.parameters]
        if description.body is not None:
            found["requestBody"] = {
                "required": description.is_body_required,
                "content": self._content(description.body),
            }
        responses = {answer.status: self._answer(answer) for answer in description.answers}
        for status in {*description.refusals, *self._refusals(operation)} - responses.keys():
            responses[status] = self._refusal(status, description.errors or self._errors)
        found["responses"] = {str(status): responses[status] for status in sorted(responses)}
        return found

    def _refusal(self, status: int, errors: Errors) -> dict[str, Any]:
        """Return a reference to the response with this status, which becomes a component."""
        name = f"{errors.name}{status}"
        if name not in self._refused:
            answer = Answer(status, _REFUSALS[status], errors.content, _HEADERS.get(status, {}))
            self._refused[name] = self._answer(answer)
        return {"$ref": f"#/components/responses/{name}"}

    def _parameter(self, one: Parameter) -> dict[str, Any]:
        return {
            "name": one.name,
            "in": one.place,
            "required": one.required,
            "description": one.text,
            **one.more,
            "schema": self._schema(one.schema),
        }

    def _answer(self, answer: Answer) -> dict[str, Any]:
        found: dict[str, Any] = {"description": answer.text}
        if answer.headers:
            found["headers"] = {
                name: {"schema": self._schema(schema), "description": text}
                for name, (schema, text) in answer.headers.items()
            }
        if answer.content:
            found["content"] = self._content(answer.content)
        return found

    def _content(self, content: Content) -> dict[str, Any]:
        return {kind: {"schema": self._schema(schema)} for kind, schema in content.items()}

    def _schema(self, value: Any) -> Any:
        """Return `value` with references in place of named schemas, which become components."""
        if isinstance(value, Named):
            if value.name not in self._named:
                self._named[value.name] = {name: self._schema(one) for name, one in value.items()}
            return {"$ref": f"#/components/schemas/{value.name}"}
        if isinstance(value, Described):
            return {**self._schema(value.schema), "description": value["description"]}
        if isinstance(value, Mapping):
            return {name: self._schema(one) for name, one in value.items()}
        if isinstance(value, list | tuple):
            return [self._schema(one) for one in value]
        return value

    def response(self, visibility: str) -> Response:
        """Return the response with the document. `visibility` says if shared caches may keep it."""
        return _DocumentResponse(
            self.body, media_type=JSON, headers={"Cache-Control": f"{visibility}, max-age={MAX_AGE_SECONDS}"}
        )


class _DocumentResponse(Response):
    """Adds to a document where its paths begin, if the app is mounted below a path, or behind a proxy's."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if root := scope.get("root_path", ""):
            servers = json.dumps({"servers": [{"url": quote(root)}]}).encode()
            self.body = servers[:-1] + b"," + bytes(self.body[1:])
            self.headers["Content-Length"] = str(len(self.body))
        await super().__call__(scope, receive, send)


class GetDocument(Endpoint):
    """`GET /openapi.json` of the control app. Any key will do, so that every backend can generate its client."""

    path = PATH
    method = "GET"
    right = None
    description = DESCRIPTION

    def __init__(self, document: Document) -> None:
        super().__init__()
        self._document = document

    async def respond(self, request: ControlRequest) -> Response:
        return self._document.response("private")


class PublicDocument:
    """The same of the client app, for GET and HEAD."""

    def __init__(self, document: Document) -> None:
        self._document = document

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._document.response("public")(scope, receive, send)
