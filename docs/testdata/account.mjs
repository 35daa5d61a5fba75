// Gets back into an account as its owner would: by the mails in a folder and the pages of their links. A
// scanner has rendered every link before. Arguments: the service, the browser, the folder of the mails.
import { readFileSync, readdirSync } from "node:fs";
import { chromium } from "playwright-core";

const [base, executablePath, folder] = process.argv.slice(2);
const patience = Number(process.env.PATIENCE_MS ?? 60000);
const browser = await chromium.launch({
  executablePath, timeout: patience,
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync"],
});
const problems = [], scanned = [];
const expect = (what, got, want) => got === want || problems.push(`${what}: ${got}, want ${want}`);

async function api(method, path, body, token) {
  const answer = await fetch(`${base}/api/v1/auth/${path}`, {
    method, body: body && JSON.stringify(body),
    headers: { "Content-Type": "application/json", ...(token && { Authorization: `Bearer ${token}` }) },
  });
  const text = await answer.text();
  return { status: answer.status, ...(text ? JSON.parse(text) : {}) };
}

// mail waits for the next mail of a purpose, and returns its code and link.
const read = new Set();
async function mail(purpose) {
  for (const deadline = Date.now() + patience; Date.now() < deadline; await new Promise((r) => setTimeout(r, 50))) {
    let names = [];
    try { names = readdirSync(folder); } catch { /* there is no mail yet */ }
    const name = names.filter((n) => n.includes(`-${purpose}-`) && n.endsWith(".eml") && !read.has(n)).sort()[0];
    if (!name) continue;
    read.add(name);
    const bytes = readFileSync(`${folder}/${name}`, "latin1").replace(/=\r?\n/g, "")
      .replace(/=([0-9A-F]{2})/g, (_, hex) => String.fromCharCode(parseInt(hex, 16)));
    const text = Buffer.from(bytes, "latin1").toString("utf8");
    const links = [...new Set([...text.matchAll(/https?:\/\/[^\s"<>]+/g)].map((m) => m[0].replaceAll("&amp;", "&")))];
    for (const link of links) await scan(link);
    return { text, link: links[0], code: /^ {4}([A-Z0-9]{4}-[A-Z0-9]{4})\r?$/m.exec(text)?.[1] };
  }
  throw new Error(`there is no mail ${purpose}`);
}

// scan does what mail scanners do: it fetches a link, and renders it with all its scripts.
async function scan(link) {
  for (const method of ["GET", "HEAD"]) expect(`${method} ${link}`, (await fetch(link, { method })).status, 200);
  const context = await browser.newContext();
  const page = await context.newPage();
  page.setDefaultTimeout(patience);
  page.on("request", (r) => r.method() === "GET" || problems.push(`rendering ${link} sends ${r.method()} ${r.url()}`));
  await page.goto(link, { waitUntil: "networkidle" });
  await page.locator("section:visible").waitFor();
  await context.close();
  scanned.push(link.replace(/#.*/, ""));
}

// open is a page of a link, or of the form without one.
async function open(link) {
  const page = await browser.newPage();
  page.setDefaultTimeout(patience);
  page.on("console", (m) => m.type() === "error" && !/status of 4\d\d/.test(m.text()) && problems.push(m.text()));
  page.on("pageerror", (e) => problems.push(String(e)));
  await page.goto(link);
  return page;
}

const address = "alice@example.com";
const signIn = (password) => api("POST", "login", { username: "alice", password });

try {
  const first = "correct horse battery staple";
  const registered = await api("POST", "register", { username: "alice", password: first, email: address });
  expect("register", registered.status, 201);
  const confirmed = async () => {
    const list = await api("GET", "contacts", undefined, (await signIn(first)).access_token);
    return Boolean(list.contacts?.[0]?.verified_at);
  };
  const verify = await mail("verify");
  expect("confirmed by the scanner", await confirmed(), false);
  let page = await open(verify.link);
  await page.locator("#act").click();
  await page.locator("#done").waitFor({ state: "visible" });
  expect("confirmed", await confirmed(), true);
  await page.close();
  page = await open(verify.link); // it works once
  await page.locator("#act").click();
  await page.locator("#error").waitFor({ state: "visible" });
  await page.close();

  // By the code, on the page where it was asked for.
  page = await open(`${base}/account/reset`);
  await page.locator("#who").fill(address);
  await page.keyboard.press("Enter");
  await page.locator("#code").waitFor({ state: "visible" });
  const byCode = await mail("reset");
  await page.locator("#code").fill("AAAA-AAAA");
  await page.locator("#password").fill("staple battery horse correct");
  await page.keyboard.press("Enter");
  await page.locator("#error").waitFor({ state: "visible" });
  await page.locator("#code").fill(byCode.code.toLowerCase());
  await page.locator("#password").fill("staple battery horse correct");
  await page.keyboard.press("Enter");
  await page.locator("#done").waitFor({ state: "visible" });
  await page.close();
  expect("the former password", (await signIn(first)).status, 401);
  expect("the new password", (await signIn("staple battery horse correct")).status, 200);

  // By the link.
  expect("forgot", (await api("POST", "password/forgot", { username: "alice" })).status, 202);
  const byLink = await mail("reset");
  page = await open(byLink.link);
  await page.locator("#password").fill("password");
  await page.keyboard.press("Enter");
  await page.locator("#error").waitFor({ state: "visible" }); // too common; the link still works
  expect("another code while the link works", await page.locator("#again").isVisible(), false);
  await page.locator("#password").fill("third time lucky, they say");
  await page.keyboard.press("Enter");
  await page.locator("#done").waitFor({ state: "visible" });
  await page.close();
  for (const former of [byLink.link, byLink.link.slice(0, -4)]) { // used, and cut off: it says where another one comes from
    page = await open(former);
    await page.locator("#password").fill("fourth time lucky, they say");
    await page.keyboard.press("Enter");
    await page.locator("#error").waitFor({ state: "visible" });
    await page.locator("#again").click();
    await page.locator("#who").waitFor({ state: "visible" });
    await page.close();
  }
  page = await open(`${base}/account/reset#token=`);
  await page.locator("#who").waitFor({ state: "visible" });
  await page.close();
  expect("the third password", (await signIn("third time lucky, they say")).status, 200);

  // Undone: the password is closed until it is reset.
  await mail("notice_password");
  const notice = await mail("notice_password");
  expect("after the scanner", (await signIn("third time lucky, they say")).status, 200);
  page = await open(notice.link);
  await page.locator("#act").click();
  await page.locator("#done").waitFor({ state: "visible" });
  const undone = await open(notice.link);
  await undone.locator("#act").click();
  await undone.locator("#error").waitFor({ state: "visible" });
  expect("an undone change", /once/.test(await undone.locator("#error").textContent()), true);
  await undone.close();
  expect("the closed password", (await signIn("third time lucky, they say")).status, 401);
  await page.locator("#done a").click();
  await page.locator("#who").fill("alice");
  await page.keyboard.press("Enter");
  await page.locator("#code").waitFor({ state: "visible" });
  const last = await mail("reset");
  await page.locator("#code").fill(last.code);
  await page.locator("#password").fill("now it is mine again");
  await page.keyboard.press("Enter");
  await page.locator("#done").waitFor({ state: "visible" });
  expect("the last password", (await signIn("now it is mine again")).status, 200);
  console.log(JSON.stringify({ problems, scanned }));
} finally {
  await browser.close();
}
