// Node's fetch. The form is "FormData", "Blob" (the text is a file of a FormData), "URLSearchParams" or "json".
import { readFileSync } from "node:fs";

const [url, form, channel, type, ...files] = process.argv.slice(2);

function body(fields) {
  if (form === "json") return JSON.stringify(fields);
  if (form === "URLSearchParams") return new URLSearchParams(fields);
  const data = new FormData();
  for (const [name, value] of Object.entries(fields)) {
    data.append(name, form === "Blob" && name === "data" ? new Blob([value]) : value);
  }
  return data;
}

async function post(path, fields) {
  const headers = form === "json" ? { "Content-Type": "application/json" } : {};
  const response = await fetch(url + path, { method: "POST", headers, body: body(fields) });
  if (!response.ok) throw new Error(`status ${response.status}: ${await response.text()}`);
  return response;
}

const token = await post("/token/", { userId: "alex", channel });
console.log(form === "json" ? (await token.json()).token : await token.text());
for (const file of files) {
  await (await post("/emit/", { userId: "*", channel, event: type, data: readFileSync(file, "utf8") })).text();
}
