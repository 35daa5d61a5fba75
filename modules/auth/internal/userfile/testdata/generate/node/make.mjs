// Makes ../../node.ndjson and ../../firebase-npm.json with packages of npm: npm install && node make.mjs
import argon2 from "argon2";
import bcrypt from "bcrypt";
import bcryptjs from "bcryptjs";
import { hash as nodeRS } from "@node-rs/argon2";
import { hashPassword } from "better-auth/crypto";
import { FirebaseScrypt } from "firebase-scrypt";
import { readFileSync, writeFileSync } from "node:fs";

const password = "a quite good password";
const hashes = {
  "node.argon2id": await argon2.hash(password),
  "node.argon2i": await argon2.hash(password, { type: argon2.argon2i, memoryCost: 1024, timeCost: 2, parallelism: 2 }),
  "node.bcrypt": await bcrypt.hash(password, 4),
  "node.bcryptjs": await bcryptjs.hash(password, 4),
  "node.node-rs-argon2": await nodeRS(password, { memoryCost: 8192 }),
  "node.better-auth": await hashPassword(password),
  "node.better-auth-wide": await hashPassword("ａ　ｑｕｉｔｅ　ｇｏｏｄ　ｐａｓｓｗｏｒｄ"), // it normalises to NFKC
};
const lines = Object.entries(hashes).map(([username, password_hash]) => JSON.stringify({ username, password_hash }) + "\n");
writeFileSync(new URL("../../node.ndjson", import.meta.url), lines.join(""));

// Firebase's scrypt, with the parameters of the other examples of it.
const shown = Object.fromEntries(readFileSync(new URL("../../firebase-hash.txt", import.meta.url), "utf8")
  .split("\n").map((line) => line.split(":")).filter((pair) => pair.length === 2)
  .map(([name, value]) => [name.trim(), value.trim().replace(/,$/, "")]));
const scrypt = new FirebaseScrypt({ memCost: Number(shown.mem_cost), rounds: Number(shown.rounds),
  saltSeparator: shown.base64_salt_separator, signerKey: shown.base64_signer_key });
const salt = "nf65EOgLrQM=";
const users = [{ localId: "Xk2pQ9dD0bTtZq3yYw1hVvNn5mL7", email: "firebase.npm@example.com", emailVerified: true,
  passwordHash: await scrypt.hash(password, salt), salt, createdAt: "1486324170000", phoneNumber: "+15550100" }];
writeFileSync(new URL("../../firebase-npm.json", import.meta.url), JSON.stringify({ users }, null, 1) + "\n");
