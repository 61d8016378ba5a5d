import { createEventSource } from "eventsource-client";
import { ended, message, report, url } from "./report.mjs";

const source = createEventSource({
  url,
  onConnect: () => report({ open: true }),
  onScheduleReconnect: ({ delay }) => report({ error: `connects again in ${delay} ms` }),
});

for await (const { event, id, data } of source) message(event, id, data);
ended("the source is closed");
