import { EventSource } from "launchdarkly-eventsource";
import { ended, message, report, types, url } from "./report.mjs";

const source = new EventSource(url);
for (const type of ["message", ...types])
  source.addEventListener(type, (event) => message(event.type, event.lastEventId, event.data));
source.onopen = () => report({ open: true });
source.onerror = (event) => report({ error: String(event?.message ?? event?.status) });
source.addEventListener("closed", () => ended("closed"));
