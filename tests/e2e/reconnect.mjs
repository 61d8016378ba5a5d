// Listens with the npm package eventsource until it is killed, and prints the data of each event and reset as JSON.
import { EventSource } from "eventsource";

const source = new EventSource(process.argv[2]);
source.onmessage = ({ data }) => console.log(JSON.stringify(data));
source.addEventListener("stream-reset", ({ data }) => console.log(JSON.stringify(`reset ${JSON.parse(data).reason}`)));
