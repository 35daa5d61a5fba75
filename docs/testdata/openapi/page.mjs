// Uses the page that shows the OpenAPI document as a person would: registers there, authorizes with
// the token, and asks who they are. Arguments: the page, the browser, a folder for pictures.
import { chromium } from "playwright-core";

const [page_, executablePath, pictures] = process.argv.slice(2);
const patience = Number(process.env.PATIENCE_MS ?? 60000);
const browser = await chromium.launch({
  executablePath, timeout: patience,
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync"],
});
const problems = [];
try {
  const page = await browser.newPage({ viewport: { width: 1200, height: 1400 } });
  page.setDefaultTimeout(patience);
  page.on("console", (m) => m.type() === "error" && problems.push(m.text()));
  page.on("pageerror", (e) => problems.push(String(e)));
  page.on("requestfailed", (r) => problems.push(`${r.url()}: ${r.failure()?.errorText}`));
  page.on("request", (r) => new URL(r.url()).origin === new URL(page_).origin || r.url().startsWith("data:") || problems.push(`asks ${r.url()}`));
  const picture = async (name) => pictures && page.screenshot({ path: `${pictures}/${name}.png` });

  await page.goto(page_);
  const run = async (id, body) => {
    const block = page.locator(`#operations-${id}`);
    await block.locator(".opblock-summary-control").click();
    if (body) await block.locator("textarea.body-param__text").fill(JSON.stringify(body));
    await block.locator("button.execute").click();
    const live = block.locator(".live-responses-table");
    await live.locator("tbody .response-col_status").waitFor();
    const status = Number((await live.locator("tbody .response-col_status").first().innerText()).trim().slice(0, 3));
    return { status, text: await live.locator("tbody .highlight-code").first().innerText() };
  };
  await page.locator("#operations-account-me").waitFor();
  await picture("page");
  const version = await page.locator(".info .version-stamp, .info .version").allInnerTexts();

  const name = `page-${Date.now()}`;
  const registered = await run("account-register", { username: name, password: "correct horse battery staple" });
  await picture("registered");
  const token = /"access_token":\s*"([^"]+)"/.exec(registered.text)?.[1];
  if (!token) throw new Error(`register answers ${registered.status} ${registered.text}`);
  const before = await run("account-me");

  await page.locator(".scheme-container button.authorize").click();
  const bearer = page.locator(".auth-container", { hasText: "bearer" }).first();
  await bearer.locator("input").first().fill(token);
  await picture("authorize");
  await bearer.locator("button.authorize").click();
  await page.locator(".dialog-ux button.btn-done").first().click();
  await page.locator("#operations-account-me button.execute").click();
  const me = page.locator("#operations-account-me .live-responses-table");
  await me.locator("tbody", { hasText: name }).first().waitFor();
  await picture("me");
  const after = (await me.locator("tbody .response-col_status").first().innerText()).trim().slice(0, 3);
  console.log(JSON.stringify({
    version, operations: await page.locator(".opblock").count(), registered: registered.status, before: before.status,
    after: Number(after), problems: problems.filter((p) => !p.includes("401")),
  }));
} finally {
  await browser.close();
}
