// Runs a WASI program in node: FOLDER (its root directory) PROGRAM ARGUMENTS
import { readFile } from "node:fs/promises";
import { WASI } from "node:wasi";

const [, , folder, program, ...args] = process.argv;
const wasi = new WASI({ version: "preview1", args: ["run", ...args], preopens: { "/": folder } });
const module = await WebAssembly.compile(await readFile(program));
const instance = await WebAssembly.instantiate(module, wasi.getImportObject());
process.exitCode = wasi.start(instance);
