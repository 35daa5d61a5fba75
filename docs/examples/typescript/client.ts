// Registers, refreshes, lists the sessions and reads a refusal. The types are those of authctl.d.ts,
// which "npm run types" makes of the OpenAPI document.
import createClient from "openapi-fetch";
import type { paths } from "./authctl.js";

const api = createClient<paths>({ baseUrl: process.env.AUTHCTL_URL ?? "http://localhost:8080" });
const account = { username: `typescript-${Date.now()}`, password: "correct horse battery staple" };

const registered = await api.POST("/api/v1/auth/register", { body: { ...account, device_name: "example" } });
if (registered.error) throw new Error(registered.error.code);
// Where sign-in waits for a verified address, the answer has the id of the code that was sent instead of tokens.
if ("challenge_id" in registered.data) throw new Error(`verify ${registered.data.challenge_id} first`);

const refreshed = await api.POST("/api/v1/auth/refresh", { body: { refresh_token: registered.data.refresh_token } });
if (refreshed.error) throw new Error(refreshed.error.code);

const headers = { Authorization: `Bearer ${refreshed.data.access_token}` };
const listed = await api.GET("/api/v1/auth/sessions", { headers });
for (const session of listed.data?.sessions ?? []) {
  console.log("signed in:", session.device_name, session.last_used_at, session.current);
}

const refused = await api.POST("/api/v1/auth/login", { body: { ...account, password: "wrong" } });
switch (refused.error?.code) {
  case "invalid_credentials":
    console.log("refused:", refused.error.status, refused.error.title);
    break;
  case "too_many_attempts":
    console.log("wait", refused.response.headers.get("Retry-After"), "seconds");
    break;
  // @ts-expect-error: login does not answer this code, and the compiler knows it
  case "session_revoked":
    break;
}
