// A chat of the npm package ai: it sends a message, reconnects whenever its stream breaks off, and prints what it has
// at the end as JSON. `node chat.mjs API RECONNECT [resume]`; with `resume` it only reconnects, as a page that loads.
import { AbstractChat, DefaultChatTransport } from "ai";

const [api, reconnect, mode] = process.argv.slice(2);
// An error of the run itself is an Error. A broken connection is a TypeError, and a status like 503 an AI_APICallError.
const isBroken = ({ error, status }) => status === "error" && error.name !== "Error";
const deadline = Date.now() + 50_000;

class State {
  status = "ready";
  error = undefined;
  messages = [];
  pushMessage = (message) => void (this.messages = [...this.messages, message]);
  popMessage = () => void (this.messages = this.messages.slice(0, -1));
  replaceMessage = (index, message) => void (this.messages = this.messages.with(index, message));
  snapshot = (thing) => structuredClone(thing);
}

class Chat extends AbstractChat {}

const finishes = [];
const state = new State();
const chat = new Chat({
  id: "chat",
  state,
  transport: new DefaultChatTransport({ api, prepareReconnectToStreamRequest: () => ({ api: reconnect }) }),
  onFinish: ({ isAbort, isError }) => finishes.push({ isAbort, isError }),
});

let resumes = 0;
await (mode === "resume" ? chat.resumeStream() : chat.sendMessage({ text: "hi" }));
while (isBroken(chat) && Date.now() < deadline) {
  resumes += 1;
  await new Promise((resolve) => setTimeout(resolve, 50));
  await chat.resumeStream();
}
const answers = state.messages.filter(({ role }) => role === "assistant");
const text = answers.flatMap(({ parts }) => parts.filter(({ type }) => type === "text").map(({ text }) => text));
const aborted = answers.flatMap(({ parts }) => parts).filter(({ state }) => state === "streaming").length;
console.log(JSON.stringify({ text, status: chat.status, error: chat.error?.message, resumes, finishes, aborted }));
