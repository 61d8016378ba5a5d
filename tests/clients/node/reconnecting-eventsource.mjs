// reconnecting-eventsource wraps the EventSource of the platform: here the package eventsource.
import { EventSource } from "eventsource";
import ReconnectingEventSource from "reconnecting-eventsource";
import { message, report, types, url } from "./report.mjs";

const source = new ReconnectingEventSource(url, { eventSourceClass: EventSource });
for (const type of ["message", ...types])
  source.addEventListener(type, (event) => message(event.type, event.lastEventId, event.data));
source.onopen = () => report({ open: true });
source.onerror = (event) => report({ error: String(event.message ?? event.type) });
