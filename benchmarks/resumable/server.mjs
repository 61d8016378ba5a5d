// A server with npm's resumable-stream, written as its README says: POST begins a stream of words, GET resumes it.
import { createServer } from "node:http";
import { createClient } from "redis";
import { createResumableStreamContext } from "resumable-stream";

// Without these two handlers, the first lost connection to Redis ends the whole process.
process.on("unhandledRejection", () => {});
async function connected() {
  return createClient({ url: process.env.REDIS_URL }).on("error", () => {}).connect();
}

const [count, perSecond] = process.argv.slice(2).map(Number);
const clients = { publisher: await connected(), subscriber: await connected() };
const context = createResumableStreamContext({ waitUntil: (promise) => promise, ...clients });

function words(prefix) {
  let sent = 0;
  return () =>
    new ReadableStream({
      async pull(controller) {
        if (sent === count) return controller.close();
        sent += 1;
        controller.enqueue(`data: ${prefix}${sent}\n\n`);
        await new Promise((resolve) => setTimeout(resolve, 1000 / perSecond));
      },
    });
}

async function begin(id, prefix, response) {
  const stream = await context.createNewResumableStream(id, words(prefix));
  response.writeHead(200, { "Content-Type": "text/event-stream" });
  for await (const chunk of stream) response.write(chunk);
  response.end();
}

async function resume(id, response) {
  const stream = await context.resumeExistingStream(id);
  if (!stream) {
    response.writeHead(stream === null ? 422 : 404);
    return response.end(stream === null ? "Stream is already done" : "No such stream");
  }
  response.writeHead(200, { "Content-Type": "text/event-stream" });
  for await (const chunk of stream) response.write(chunk);
  response.end();
}

const server = createServer((request, response) => {
  const url = new URL(request.url, "http://localhost");
  const id = url.searchParams.get("id");
  const answer = request.method === "POST" ? begin(id, url.searchParams.get("prefix"), response) : resume(id, response);
  answer.catch((error) => {
    if (!response.headersSent) response.writeHead(500);
    response.end(error.message);
  });
});
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
