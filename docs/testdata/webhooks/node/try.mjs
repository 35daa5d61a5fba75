// Tries receiver.mjs, which docs/webhooks_test.go takes out of the page: says where it listens and
// what it handles, until the standard input ends.
import { once, receiver } from "./receiver.mjs";

const server = receiver(
  process.argv[2],
  once(new Map(), async (event) => {
    if (event.subject === "trouble") throw new Error("trouble");
    console.log(`${event.subject} ${event.sequence} ${event.data.reason}`);
  }),
);
server.listen(0, "127.0.0.1", () => console.log(`http://127.0.0.1:${server.address().port}/`));
process.stdin.resume().on("end", () => {
  server.close();
  server.closeAllConnections();
});
