// Prints what the AsyncAPI parser finds in a document: its errors and warnings, or "messages N".
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";

const [modules, file] = process.argv.slice(2);
const { Parser } = createRequire(modules + "/")("@asyncapi/parser");

const { document, diagnostics } = await new Parser().parse(await readFile(file, "utf8"));
const found = diagnostics.filter((d) => d.severity <= 1).map((d) => `${d.code} at ${d.path.join(".")}: ${d.message}`);
if (!document || found.length > 0) {
  console.log(found.join("\n") || "no document");
  process.exit(1);
}
console.log(`messages ${document.allMessages().all().length}`);
