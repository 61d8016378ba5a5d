// The undici that Node 20 contains as its EventSource.
import { EventSource } from "undici-6";
import { listen, url } from "./report.mjs";

listen(new EventSource(url));
