"""Schemas of what requests and responses have in common. Each is as strict as the check of the hub that it names."""

from __future__ import annotations

from ..fields import MAX_NAMES, MAX_RETRY_MILLISECONDS
from ..grant import MAX_PATTERNS
from ..runs.model import MAX_SECONDS
from ..tokens import MAX_LIFETIME_SECONDS
from .description import TEXT, Content, Errors, Field, Named, Parameter, Schema, object_of
from .forms import JSON

_NUMBER = "([0-9]{1,19}|0[0-9]{19}|1[0-7][0-9]{18})"
"""Nearly all numbers of 64 bits, and no larger ones."""
_POSITION = rf"{_NUMBER}-{_NUMBER}\.[0-9a-z]{{1,32}}"
"""`Position.parse`."""
NAME: Schema = Named("Name", {"type": "string", "minLength": 1, "maxLength": 255, "pattern": r"^[^\u0000\r\n]+$"})
"""`check_name`."""
NAMES: Schema = {"anyOf": [NAME, {"type": "array", "items": NAME, "minItems": 1, "maxItems": MAX_NAMES}]}
"""One name, or several."""
PREFIX: Schema = {**NAME, "minLength": 0, "pattern": r"^[^\u0000\r\n]*$"}
"""A name, or nothing."""
NAME_LIST: Schema = {"type": "array", "items": NAME, "minItems": 1, "maxItems": MAX_NAMES}
"""`check_names`."""
RUN_NAME: Schema = Named("RunName", {**NAME, "pattern": r"^(?!\.{1,2}$)[^/\u0000-\u001f\u007f-\u009f]+$"})
"""`check_run_name`."""
TYPE: Schema = {**NAME, "pattern": r"^(?!stream-)[^\u0000\r\n]+$"}
"""`check_type`."""
EVENT_ID: Schema = {
    **NAME,
    "pattern": rf"^(?! )(?!{_POSITION}$)[^\u0000-\u001f\u007f]*[^\u0000-\u0020\u007f]$",
}
"""`check_id`."""
RETRY: Schema = {"type": "integer", "minimum": 0, "maximum": MAX_RETRY_MILLISECONDS}
"""`check_retry`."""
TTL: Schema = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 2**40}
"""`check_ttl`."""
PATTERN: Schema = Named("Pattern", {**NAME, "pattern": r"^[^*\u0000\r\n]*\*$"})
"""`check_pattern`."""
PATTERNS: Schema = {"type": "array", "items": PATTERN, "minItems": 1, "maxItems": MAX_PATTERNS}
POSSIBLE_PATTERNS: Schema = {**PATTERNS, "minItems": 0}
POSITION: Schema = Named(
    "Position",
    {
        "type": "string",
        "pattern": f"^{_POSITION}$",
        "description": "A position in the log, such as `1795633044736-0.loh23qqu`. It is the `id` of an event.",
    },
)
SINCE: Schema = {
    "type": "string",
    "pattern": rf"^(earliest|last:(?!0+$)[0-9]{{1,9}}|{_POSITION})$",
}
"""`Start.parse`."""
LIFETIME: Schema = {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_LIFETIME_SECONDS}
WHOLE_LIFETIME: Schema = {"type": "integer", "minimum": 1, "maximum": MAX_LIFETIME_SECONDS}
TOKEN: Schema = {"type": "string", "pattern": r"^[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+$"}
ANY_BUT_NULL: Schema = {"type": ["string", "number", "boolean", "object", "array"], "items": {}}
BOOLEAN: Schema = {"type": "boolean"}
STRING: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
COUNT: Schema = {"type": "integer", "minimum": 0}
UNIX_TIME: Schema = {"type": "number", "minimum": 0, "exclusiveMaximum": 2**53}
NULL: Schema = {"type": "null"}
MAX_DIGITS = 15


def nullable(schema: Schema) -> Schema:
    return {"anyOf": [schema, NULL]}


def whole_numbers(least: int = 0, most: int = 10**MAX_DIGITS - 1) -> Schema:
    """Return the schema of a whole number, as `forms.whole_number` reads it."""
    return {"type": "integer", "minimum": least, "maximum": most}


def seconds(least: int) -> Schema:
    """Return the schema of an option of runs in seconds, as `RunOptions` checks it."""
    return {"type": "number", "minimum": least, "exclusiveMaximum": MAX_SECONDS}


def one_of(values: list[str]) -> Schema:
    return {"type": "string", "enum": values}


ERROR = Named("Error", object_of({"error": {**STRING, "description": "What is wrong, and what would be right."}}))
MISSING: Schema = {"type": "array", "items": STRING, "description": "The workers that did not answer in time."}
TEXT_OR_JSON = Errors("Refusal", {TEXT: STRING, JSON: ERROR})
"""Errors of the control app: JSON if the request is JSON, otherwise one line of text."""
OK: Content = {TEXT: {"type": "string", "const": "OK"}}


IDEMPOTENCY_KEY = Parameter(
    "Idempotency-Key",
    "header",
    {"type": "string", "minLength": 1, "maxLength": 255},
    "Makes it safe to send a request again: with the same key and the same content it is carried out once.",
)


def names_field(text: str) -> Field:
    """Return a field that is one name, and in JSON perhaps a list of names."""
    return Field(NAMES, text, NAME)
