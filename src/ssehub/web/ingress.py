"""The hub and the limits that every call is given that publishes, to channels or to runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from ..control_keys import ControlKeys
from ..hub import Hub
from ..settings import Limits, RequestLimits
from .open_body import LineLimits
from .rates import PublishRates
from .refusals import Refusals


@dataclass(frozen=True, slots=True)
class Ingress:
    """The hub, who may publish to it, how much and how fast, and where refusals are counted and logged."""

    hub: Hub
    refusals: Refusals
    keys: ControlKeys
    limits: Limits
    line_limits: LineLimits
    rates: PublishRates

    @classmethod
    def of(cls, hub: Hub, refusals: Refusals, keys: ControlKeys, limits: Limits, request_limits: RequestLimits) -> Self:
        """Return the ingress of a hub with these settings."""
        lines = LineLimits(request_limits.body_seconds, request_limits.min_body_bytes_per_second)
        return cls(hub, refusals, keys, limits, lines, PublishRates(limits.max_publishes_per_second))
