"""The load test: opens many subscribers on a hub, publishes events to them, and reports what arrived and at what cost.

The process that runs `measure` publishes; worker processes (`python -m ssehub.bench`) open the subscribers. Each event
carries its publisher, a sequence number and the time at which it was due, so that every subscriber detects each lost,
duplicated or reordered event, and latency includes the time a slow hub kept its publishers waiting.
"""

from .plan import BenchError, Plan
from .poster import tokens_from_hub
from .report import Report, table
from .run import Progress, measure

__all__ = ["BenchError", "Plan", "Progress", "Report", "measure", "table", "tokens_from_hub"]
