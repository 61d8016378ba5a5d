"""Fan-out: everything that lives in one event loop and brings the events of the log to the open streams."""
