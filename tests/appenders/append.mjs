// Appends to a run until it is told to stop: `node append.mjs LIBRARY PACE URL`, as append.py does. LIBRARY is `fetch` or
// `http`, which is the module node:http.
import { request } from "node:http";
import { Readable } from "node:stream";
import { setTimeout as sleep } from "node:timers/promises";

const [library, pace, url] = process.argv.slice(2);
const LINE = '{"data":"a word and another "}\n';
const end = Date.now() + 15_000;
const headers = { "Content-Type": "application/x-ndjson" };

async function* lines() {
  while (Date.now() < end) {
    yield Buffer.from(pace === "slow" ? LINE : LINE.repeat(500));
    await sleep(pace === "slow" ? 20 : 0);
  }
  console.log("nobody has told it to stop");
  process.exit(1);
}

function withHttp() {
  return new Promise((resolve, reject) => {
    const body = Readable.from(lines());
    const sending = request(url, { method: "POST", headers }, async (response) => {
      let text = "";
      for await (const part of response) text += part;
      resolve([response.statusCode, text]);
    });
    sending.on("error", reject);
    body.pipe(sending);
  });
}

async function withFetch() {
  const body = Readable.toWeb(Readable.from(lines()));
  const response = await fetch(url, { method: "POST", headers, body, duplex: "half" });
  return [response.status, await response.text()];
}

const [status, text] = await (library === "fetch" ? withFetch() : withHttp());
console.log(status, text);
process.exit(0);
