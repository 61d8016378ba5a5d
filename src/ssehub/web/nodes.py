"""The nodes of a deployment, as answers of the control app name them."""

from __future__ import annotations

from typing import Any

from ..hub import Hub


def described(hub: Hub) -> dict[str, Any]:
    """Return this node as `node`, and the others that share its log as `nodes`.

    If those are unknown, `nodes` is None and `nodesProblem` says why.
    """
    this, others, problem = hub.broker.nodes
    if others is None:
        return {"node": this.to_json(), "nodes": None, "nodesProblem": problem}
    return {"node": this.to_json(), "nodes": [node.to_json() for node in others]}
