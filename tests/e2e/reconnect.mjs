// Listens with the npm package eventsource for as long as it lives, and prints each event's data, and each reset, as JSON.
import { EventSource } from "eventsource";

const source = new EventSource(process.argv[2]);
source.onmessage = ({ data }) => console.log(JSON.stringify(data));
source.addEventListener("stream-reset", ({ data }) => console.log(JSON.stringify(`reset ${JSON.parse(data).reason}`)));
