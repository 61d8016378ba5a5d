"""Descriptions: how an endpoint says what it takes and answers, as plain data beside its code.

A request never looks at one. `openapi.py` makes the documents of both apps from them. The names of a request's fields
are listed once: the mapping of a name to its `Field` is also what the parsing compares the given names with.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..rights import Right
from .forms import FORM, JSON, MULTIPART

Schema = Mapping[str, Any]
"""A JSON Schema (2020-12), as OpenAPI 3.1 uses them."""
Content = Mapping[str, Schema]
"""Schemas of a body by its media type. That of NDJSON is an array of what the lines are."""

TEXT = "text/plain"


class Named(dict[str, Any]):
    """A schema that documents refer to by its `name`."""

    def __init__(self, name: str, schema: Schema) -> None:
        super().__init__(schema)
        self.name = name


class Described(dict[str, Any]):
    """A schema with a description of its own at the place where it is used."""

    def __init__(self, schema: Schema, text: str) -> None:
        super().__init__(schema, description=text)
        self.schema = schema


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a request's body or query. `in_form` is its schema there, if that differs from the one in JSON."""

    schema: Schema
    text: str
    in_form: Schema | None = None


@dataclass(frozen=True, slots=True)
class Shape:
    """One way in which fields go together: those that are `required`, and others that may be there.

    `instead` has schemas that differ from those of the fields, and `rules` are further keywords of the object.
    """

    name: str
    required: Sequence[str]
    optional: Sequence[str] = ()
    instead: Mapping[str, Schema] = field(default_factory=dict)
    rules: Schema = field(default_factory=dict)

    def schema(self, fields: Mapping[str, Field], *, in_form: bool = False) -> Schema:
        """Return the schema of an object in JSON, or of a form, which has a name of its own."""
        properties = {name: self._property(name, fields[name], in_form) for name in (*self.required, *self.optional)}
        return Named(f"{self.name}Form" if in_form else self.name, object_of(properties, self.optional, **self.rules))

    def _property(self, name: str, one: Field, in_form: bool) -> Schema:
        schema = one.in_form if in_form and one.in_form is not None else one.schema
        return Described(self.instead.get(name, schema), one.text)


@dataclass(frozen=True, slots=True)
class Parameter:
    """A header, or a field of the query or the path. `place` is the `in` of OpenAPI."""

    name: str
    place: str
    schema: Schema
    text: str
    required: bool = False
    more: Schema = field(default_factory=dict)
    """Further keywords, such as how an array is written."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A response with this status."""

    status: int
    text: str
    content: Content = field(default_factory=dict)
    headers: Mapping[str, tuple[Schema, str]] = field(default_factory=dict)
    """Schema and description of each."""


@dataclass(frozen=True, slots=True)
class Errors:
    """Bodies of refusals. Documents refer to each of them by `name` and its status."""

    name: str
    content: Content


@dataclass(frozen=True, slots=True)
class Description:
    """What an endpoint takes and answers. `operation` names it for generated clients, and never changes.

    `refusals` are the statuses with which it refuses requests, beyond those that its app adds: of the guard, and of
    bodies and queries that can't be read. `answers` come before these where both have a status.
    """

    operation: str
    summary: str
    answers: Sequence[Answer]
    parameters: Sequence[Parameter] = ()
    body: Content | None = None
    is_body_required: bool = True
    refusals: Sequence[int] = ()
    errors: Errors | None = None
    """Of the refusals, if they differ from those of the app."""
    text: str = ""


@dataclass(frozen=True, slots=True)
class Operation:
    """A description at its place in an app. `schemes` are those by which a client may log in: one of them will do.

    `right` is the one that a control key needs; None if any key will do.
    """

    path: str
    method: str
    description: Description
    schemes: Sequence[str] = ()
    right: Right | None = None


def object_of(properties: Mapping[str, Schema], optional: Iterable[str] = (), **rules: Any) -> Schema:
    """Return the schema of an object with these properties only, of which all are required but the `optional` ones."""
    names = [name for name in properties if name not in optional]
    given = {"required": names} if names else {}
    return {"type": "object", "properties": dict(properties), **given, "additionalProperties": False, **rules}


def any_of(schemas: Sequence[Schema]) -> Schema:
    return schemas[0] if len(schemas) == 1 else {"anyOf": list(schemas)}


def map_of(values: Schema) -> Schema:
    return {"type": "object", "additionalProperties": values}


def list_of(items: Schema, least: int = 0) -> Schema:
    return {"type": "array", "items": items} | ({"minItems": least} if least else {})


def fields_body(
    fields: Mapping[str, Field], shapes: Sequence[Shape], json_fields: Mapping[str, Field] | None = None
) -> Content:
    """Return the content of a body that is a form, or one JSON object. `json_fields` are those of JSON, if they differ.

    Of `shapes` a form has those whose required fields it can have.
    """
    in_form = [shape.schema(fields, in_form=True) for shape in _possible(shapes, fields)]
    in_json = [shape.schema(json_fields or fields) for shape in shapes]
    return {FORM: any_of(in_form), MULTIPART: any_of(in_form), JSON: any_of(in_json)}


def _possible(shapes: Sequence[Shape], fields: Mapping[str, Field]) -> list[Shape]:
    """Return `shapes` without the fields that are not among `fields`."""
    return [
        replace(shape, optional=[name for name in shape.optional if name in fields], instead={})
        for shape in shapes
        if fields.keys() >= set(shape.required)
    ]


def queries(fields: Mapping[str, Field], required: Sequence[str] = ()) -> list[Parameter]:
    """Return `fields` as those of a query."""
    return [
        Parameter(name, "query", one.schema if one.in_form is None else one.in_form, one.text, name in required)
        for name, one in fields.items()
    ]
