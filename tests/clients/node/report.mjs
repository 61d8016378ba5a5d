// What all programs share: the arguments, and the lines for the runner.
import { writeSync } from "node:fs";

setInterval(() => {}, 60_000); // the timers of some libraries do not keep Node running while they wait

export const url = process.argv[2];
export const types = (process.argv[3] ?? "").split(",").filter(Boolean);

export function report(line) {
  const bytes = Buffer.from(JSON.stringify(line) + "\n");
  for (let written = 0; written < bytes.length; ) {
    try {
      written += writeSync(1, bytes, written);
    } catch (error) {
      if (error.code !== "EAGAIN") throw error; // a full pipe: try again
    }
  }
}

export const message = (type, id, data) => report({ type: type || "message", id: id ?? null, data });

export function ended(why) {
  report({ ended: String(why) });
  process.exit();
}

// For a library with the interface of a browser's EventSource.
export function listen(source) {
  const show = (event) => message(event.type, event.lastEventId, event.data);
  for (const type of ["message", ...types]) source.addEventListener(type, show);
  source.onopen = () => report({ open: true });
  source.onerror = (event) => {
    report({ error: String(event?.message ?? event?.type) });
    if (source.readyState === 2) ended("the source is closed");
  };
}
