// Runs a WASI program in node: FOLDER (its root directory) PROGRAM ARGUMENTS
import { readFile } from "node:fs/promises";
import { setFlagsFromString } from "node:v8";
import { WASI } from "node:wasi";

// Optimized code may call WASI without a safepoint: node crashes now and then, even after the program's last line
// (nodejs/node#46777, #53087). Baseline code does not, and has no compiler in the background when node ends.
setFlagsFromString("--no-turbo-fast-api-calls");
setFlagsFromString("--liftoff-only");

const [, , folder, program, ...args] = process.argv;
const wasi = new WASI({ version: "preview1", args: ["run", ...args], preopens: { "/": folder } });
const module = await WebAssembly.compile(await readFile(program));
const instance = await WebAssembly.instantiate(module, wasi.getImportObject());
process.exitCode = wasi.start(instance);
