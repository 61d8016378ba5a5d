// Listens with the npm package eventsource, prints each event as JSON, and exits after the given number of events.
import { EventSource } from "eventsource";

const [url, count] = process.argv.slice(2);
let left = Number(count);
const source = new EventSource(url);
source.onopen = () => console.error("open");
source.onmessage = ({ data, lastEventId }) => {
  console.log(JSON.stringify({ data, lastEventId }));
  if (--left === 0) {
    source.close();
  }
};
