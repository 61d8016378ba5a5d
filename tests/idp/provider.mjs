// An OpenID provider on loopback, for tests: `node provider.mjs PORT`.
//
// It reads its settings from standard input, one JSON object a line, and prints "ready" when they are in force:
//   audience    of the access tokens
//   clients     metadata, as in OpenID Connect Dynamic Client Registration
//   keys        [[alg, kid], ...]: the first of an algorithm signs, all are published
// Sessions and grants outlive a change of settings, as they outlive the restart of a provider with a database.
import { generateKeyPairSync } from "node:crypto";
import { createServer } from "node:http";
import { createInterface } from "node:readline";

import { Provider } from "oidc-provider";

import { createMemoryAdapter } from "./node_modules/oidc-provider/lib/adapters/memory_adapter.js";

const port = Number(process.argv[2]);
const adapter = createMemoryAdapter();
const made = new Map();
let answer = (request, response) => response.writeHead(503).end();

function key([alg, kid]) {
  if (!made.has(kid)) {
    const { privateKey } = alg.startsWith("ES")
      ? generateKeyPairSync("ec", { namedCurve: "P-256" })
      : generateKeyPairSync("rsa", { modulusLength: 2048 });
    made.set(kid, { ...privateKey.export({ format: "jwk" }), alg, kid, use: "sig" });
  }
  return made.get(kid);
}

function configuration({ audience, clients, keys }) {
  return {
    adapter,
    clients,
    jwks: { keys: keys.map(key) },
    cookies: { keys: ["signs the cookies of a test"] },
    clientBasedCORS: () => true,
    // Without the dispatcher, which refuses loopback addresses.
    fetch: (url, { dispatcher, ...options }) => fetch(url, options),
    // Access tokens of clients that require a session in logout tokens carry it, too.
    extraTokenClaims: (context, token) => (token.sid ? { sid: token.sid } : undefined),
    features: {
      backchannelLogout: { enabled: true },
      devInteractions: { enabled: true },
      resourceIndicators: {
        enabled: true,
        defaultResource: () => audience,
        useGrantedResource: () => true,
        getResourceServerInfo: (context, resource, client) => ({
          scope: "listen",
          audience,
          accessTokenFormat: "jwt",
          accessTokenTTL: 3600,
          jwt: { sign: { alg: client.idTokenSignedResponseAlg } },
        }),
      },
    },
    ttl: { Session: 3600, Grant: 3600, Interaction: 600, IdToken: 3600 },
  };
}

createInterface({ input: process.stdin })
  .on("line", (line) => {
    const provider = new Provider(`http://127.0.0.1:${port}`, configuration(JSON.parse(line)));
    provider.on("backchannel.success", (context, client) => console.log("logout accepted", client.clientId));
    provider.on("backchannel.error", (context, error, client) =>
      console.log("logout refused", client.clientId, error.message),
    );
    provider.on("server_error", (context, error) => console.log("error", error.message));
    answer = provider.callback();
    console.log("ready");
  })
  .on("close", () => process.exit());
createServer((request, response) => answer(request, response)).listen(port, "127.0.0.1");
