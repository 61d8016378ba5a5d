// @microsoft/fetch-event-source, as in the first example of its README: no handler but onmessage.
globalThis.window = globalThis;
globalThis.document = { hidden: false, addEventListener() {}, removeEventListener() {} };

const { fetchEventSource } = await import("@microsoft/fetch-event-source");
const { url, message, ended } = await import("./report.mjs");

fetchEventSource(url, {
  openWhenHidden: true,
  onmessage: ({ event, id, data }) => message(event, id, data),
}).then(() => ended("finished"), ended);
