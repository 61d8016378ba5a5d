// Node's own EventSource, which needs the option --experimental-eventsource.
import { listen, url } from "./report.mjs";

listen(new EventSource(url));
