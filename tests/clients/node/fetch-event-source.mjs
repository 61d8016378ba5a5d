// @microsoft/fetch-event-source, with the error handling of its README. It is made for browsers: it expects a window, and
// a document that becomes hidden.
globalThis.window = globalThis;
globalThis.document = { hidden: false, addEventListener() {}, removeEventListener() {} };

const { fetchEventSource, EventStreamContentType } = await import("@microsoft/fetch-event-source");
const { url, report, message, ended } = await import("./report.mjs");

class RetriableError extends Error {}
class FatalError extends Error {}

fetchEventSource(url, {
  openWhenHidden: true,
  async onopen(response) {
    if (response.ok && response.headers.get("content-type").startsWith(EventStreamContentType)) {
      report({ open: true });
    } else if (response.status >= 400 && response.status < 500 && response.status !== 429) {
      throw new FatalError(`status ${response.status}`);
    } else {
      throw new RetriableError(`status ${response.status}`);
    }
  },
  onmessage: ({ event, id, data }) => message(event, id, data),
  onclose() {
    throw new RetriableError("the response has ended");
  },
  onerror(error) {
    report({ error: String(error) });
    if (error instanceof FatalError) throw error;
  },
}).then(() => ended("finished"), ended);
