// Makes ../../node.ndjson with argon2, bcrypt and better-auth: npm install && node make.mjs
import argon2 from "argon2";
import bcrypt from "bcrypt";
import { hashPassword } from "better-auth/crypto";
import { writeFileSync } from "node:fs";

const password = "a quite good password";
const hashes = {
  "node.argon2id": await argon2.hash(password),
  "node.argon2i": await argon2.hash(password, { type: argon2.argon2i, memoryCost: 1024, timeCost: 2, parallelism: 2 }),
  "node.bcrypt": await bcrypt.hash(password, 4),
  "node.better-auth": await hashPassword(password),
  "node.better-auth-wide": await hashPassword("ａ　ｑｕｉｔｅ　ｇｏｏｄ　ｐａｓｓｗｏｒｄ"), // it normalises to NFKC
};
const lines = Object.entries(hashes).map(([username, password_hash]) => JSON.stringify({ username, password_hash }) + "\n");
writeFileSync(new URL("../../node.ndjson", import.meta.url), lines.join(""));
