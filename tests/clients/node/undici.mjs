import { EventSource } from "undici";
import { listen, url } from "./report.mjs";

listen(new EventSource(url));
