import { EventSource } from "extended-eventsource";
import { listen, url } from "./report.mjs";

listen(new EventSource(url, { disableLogger: true }));
