"""Runs: streams with an end, each with a log of its own that keeps everything from its first event."""
