"""The nodes of a deployment, as answers of the control app name them."""

from __future__ import annotations

from typing import Any

from ..hub import Hub
from .description import Named, list_of, object_of
from .schemas import COUNT, STRING, nullable

_NODE = Named(
    "Node",
    object_of(
        {
            "id": STRING,
            "host": STRING,
            "pid": COUNT,
            "control": nullable(STRING),
            "startedAt": {**STRING, "format": "date-time"},
            "version": STRING,
        }
    ),
)
NODES = {"node": _NODE, "nodes": nullable(list_of(_NODE)), "nodesProblem": nullable(STRING)}
"""Schemas of what `described` returns."""
OPTIONAL_OF_NODES = ("nodesProblem",)


def described(hub: Hub) -> dict[str, Any]:
    """Return this node as `node`, and the others that share its log as `nodes`.

    If those are unknown, `nodes` is None and `nodesProblem` says why.
    """
    this, others, problem = hub.broker.nodes
    if others is None:
        return {"node": this.to_json(), "nodes": None, "nodesProblem": problem}
    return {"node": this.to_json(), "nodes": [node.to_json() for node in others]}
