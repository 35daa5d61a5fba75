// Tries verify.mjs, follow.mjs and events.mjs, which docs/verifying_test.go takes out of the page.
import { createLocalJWKSet } from "jose";
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { followEvents } from "./events.mjs";
import { Ended, follow } from "./follow.mjs";
import { keysOf, verifier } from "./verify.mjs";

// What is garbage is collected soon, so that an example which relies on it fails each time.
setInterval(() => globalThis.gc(), 200).unref();

const settings = JSON.parse(process.argv[2]);
if (settings.vectors) {
  const all = JSON.parse(readFileSync(settings.vectors, "utf8"));
  for (const v of all.vectors) {
    const ended = new Ended();
    all.feeds[v.feed].revocations.forEach((entry) => ended.add(entry));
    const check = verifier({
      issuer: all.issuer, audience: all.audience, keys: createLocalJWKSet(all.keys[v.keys]), ended, now: () => new Date(v.time),
    });
    const verdict = await check(v.token).then(() => "accept", () => "refuse");
    console.log(JSON.stringify({ name: v.name, verdict }));
  }
} else {
  const ended = new Ended();
  const over = new AbortController();
  const following = settings.silence
    ? followEvents(ended, { ...settings, silence: Number(settings.silence), signal: over.signal })
    : follow(ended, { ...settings, signal: over.signal });
  const check = verifier({ ...settings, keys: keysOf(settings.jwks, settings.every && Number(settings.every)), ended });
  for await (const token of createInterface({ input: process.stdin })) {
    while (ended.lag() > 60_000) await new Promise((resume) => setTimeout(resume, 20));
    console.log(JSON.stringify({ name: "", verdict: await check(token).then(() => "accept", (e) => `refuse: ${e.message}`) }));
  }
  over.abort();
  await following;
}
