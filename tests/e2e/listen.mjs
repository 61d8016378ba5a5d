// Listens with the npm package eventsource until it has shown as many events as it was told, and prints each as JSON.
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
