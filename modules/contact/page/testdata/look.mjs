// Uses the pages of the links in mails with the keyboard alone, in each size, colour scheme and
// language. Arguments: where they are, the browser, a folder for pictures.
import { chromium } from "playwright-core";

const [base, executablePath, pictures] = process.argv.slice(2);
const browser = await chromium.launch({
  executablePath,
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync"],
});
const problems = [], posts = [];
let seen = 0;

// luminance and contrast are those of WCAG 2.
const measure = () => {
  const channel = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const rgb = (text) => text.match(/[\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const c = rgb(getComputedStyle(e).backgroundColor);
      if (c[3] !== 0) return c;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const e of document.querySelectorAll("h1, p, label, button, a, input")) {
    if (!e.checkVisibility() || e.type === "checkbox") continue;
    const [a, b] = [luminance(rgb(getComputedStyle(e).color)), luminance(ground(e))].sort((x, y) => y - x);
    const contrast = (a + 0.05) / (b + 0.05);
    if (contrast < 4.5) found.push(`${e.tagName} ${e.textContent.trim().slice(0, 30)} has contrast ${contrast.toFixed(2)}`);
    const box = e.getBoundingClientRect();
    if (/BUTTON|INPUT/.test(e.tagName) && box.height < 44) found.push(`${e.tagName} is ${box.height} high`);
  }
  for (const e of document.querySelectorAll("input")) {
    if (e.checkVisibility() && !e.labels?.length) found.push(`${e.id} has no label`);
  }
  if (document.documentElement.scrollWidth > innerWidth) found.push(`${document.documentElement.scrollWidth} px wide`);
  if (!document.title || !document.documentElement.lang) found.push("no title or language");
  return found;
};

async function states(width, colorScheme, locale) {
  const context = await browser.newContext({ viewport: { width, height: 800 }, colorScheme, locale });
  const page = await context.newPage();
  page.setDefaultTimeout(Number(process.env.PATIENCE_MS ?? 60000));
  const where = `${width} ${colorScheme} ${locale}`;
  page.on("console", (m) => /error|warning/.test(m.type()) && !/status of 4\d\d/.test(m.text()) && problems.push(`${where}: ${m.text()}`));
  page.on("pageerror", (e) => problems.push(`${where}: ${e}`));
  page.on("request", (r) => new URL(r.url()).origin === base || r.url().startsWith("data:") || problems.push(`asks ${r.url()}`));
  // The service, as far as the pages know it.
  let refuse = null;
  await page.route("**/api/**", async (route) => {
    const request = route.request();
    posts.push(`${new URL(request.url()).pathname} ${request.postData()}`);
    if (refuse) {
      const body = refuse;
      refuse = null;
      return route.fulfill({ status: 422, contentType: "application/problem+json", body: JSON.stringify(body) });
    }
    if (request.url().endsWith("/forgot")) {
      return route.fulfill({ status: 202, contentType: "application/json", body: '{"challenge_id":"00000000-0000-4000-8000-000000000000"}' });
    }
    return route.fulfill({ status: 204 });
  });
  const look = async (name) => {
    seen++;
    for (const problem of await page.evaluate(measure)) problems.push(`${where} ${name}: ${problem}`);
    if (pictures) await page.screenshot({ path: `${pictures}/${name}-${width}-${colorScheme}-${locale}.png`, fullPage: true });
  };
  const key = (k) => page.keyboard.press(k);
  const visible = async (part) => page.locator(`#${part}`).waitFor({ state: "visible" });

  // A code is asked for, and entered; a refusal is shown, and what was entered stays.
  await page.goto(`${base}/account/reset`);
  await visible("ask");
  await look("ask");
  await page.keyboard.type(locale === "de" ? "alice@example.com" : "alice");
  await key("Enter");
  await visible("enter");
  await page.keyboard.type("ABCD-EFGH");
  await key("Tab");
  await page.keyboard.type("correct horse battery staple");
  refuse = { code: "validation_failed", detail: "The input is not valid.", errors: [
    { field: "new_password", code: "too_common", detail: "is too common" }, { field: "code", code: "some_code", detail: "is odd" },
  ] };
  await key("Enter");
  await page.locator("#error", { hasText: locale === "de" ? "zuerst ausprobieren" : "attackers try first" }).waitFor();
  await page.locator("#error", { hasText: locale === "de" ? "Code aus der E-Mail: is odd" : "Code from the mail: is odd" }).waitFor();
  if (await page.evaluate(() => document.activeElement.id) !== "error") problems.push(`${where}: the focus is not on the error`);
  await look("refused");
  await key("Tab"); await key("Tab"); await key("Tab"); // to the box that shows the password
  await key("Space");
  if (await page.locator("#password").getAttribute("type") !== "text") problems.push(`${where}: the password is not shown`);
  await key("Tab");
  await key("Enter");
  await visible("done");
  await look("done");

  // By a link.
  const gone = async () => {
    if (await page.evaluate(() => location.hash) !== "") problems.push(`${where}: the secret stays in the address`);
  };
  await page.goto(`${base}/account/verify#token=act_secret`);
  await visible("ready");
  await gone();
  await look("verify");
  await key("Tab");
  await key("Enter");
  await visible("done");
  await page.goto(`${base}/account/undo#token=act_secret`);
  await visible("ready");
  await gone();
  await look("undo");
  await key("Tab");
  await key("Space");
  await visible("done");
  await page.goto(`${base}/account/reset#token=act_secret`);
  await visible("enter");
  await gone();
  await look("enter");
  if (await page.locator("#code").isVisible()) problems.push(`${where}: a link asks for a code`);
  await page.keyboard.type("correct horse battery staple");
  await key("Enter");
  await visible("done");
  await page.goto(`${base}/account/verify`);
  await visible("incomplete");
  // Another link in the same tab.
  await page.evaluate(() => { location.hash = "#token=act_other"; });
  await visible("ready");
  await context.close();
}

try {
  for (const width of [320, 1200]) {
    for (const scheme of ["light", "dark"]) {
      for (const locale of ["en", "de"]) await states(width, scheme, locale);
    }
  }
  console.log(JSON.stringify({ seen, problems, posts }));
} finally {
  await browser.close();
}
