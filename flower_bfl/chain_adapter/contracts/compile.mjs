// Writes FlowerBFL.json from FlowerBFL.sol. With Node.js, in this folder:
//     npm install --no-save --prefix <some folder> solc@0.8.30
//     NODE_PATH=<some folder>/node_modules node compile.mjs [output file]
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";

const solc = createRequire(import.meta.url)("solc");
const folder = new URL(".", import.meta.url);
const settings = {
  evmVersion: "prague",
  viaIR: true,
  optimizer: { enabled: true, runs: 10000 },
  metadata: { bytecodeHash: "none", appendCBOR: false },
};
const input = {
  language: "Solidity",
  sources: { "FlowerBFL.sol": { content: readFileSync(new URL("FlowerBFL.sol", folder), "utf8") } },
  settings: { ...settings, outputSelection: { "*": { "*": ["abi", "evm.bytecode.object"] } } },
};

const output = JSON.parse(solc.compile(JSON.stringify(input)));
for (const problem of output.errors ?? []) console.error(problem.formattedMessage);
if (output.errors?.length) process.exit(1);

const contract = output.contracts["FlowerBFL.sol"].FlowerBFL;
const text = JSON.stringify(
  { compiler: solc.version(), settings, abi: contract.abi, bytecode: "0x" + contract.evm.bytecode.object }, null, 1);
writeFileSync(process.argv[2] ?? new URL("FlowerBFL.json", folder), text + "\n");
