// Loads a bundle and runs it: run.js PACKAGE REQUEST.json, where PACKAGE is onnxruntime-web (its WebAssembly build,
// through the bundle's own load.js) or onnxruntime-node (which finds data files by itself). ../web.rs says what is in a
// request.
import fs from "node:fs";
import { pathToFileURL } from "node:url";

const [name, path] = process.argv.slice(2);
const ort = await import(name);
const request = JSON.parse(fs.readFileSync(path));
const { load, manifest } = await import(pathToFileURL(request.folder + "load.js"));
const arrays = { float32: Float32Array, int64: BigInt64Array };

ort.env.wasm.numThreads = 1;
const session =
  name === "onnxruntime-web"
    ? await load(ort, { executionProviders: ["wasm"] }, request.folder)
    : await ort.InferenceSession.create(request.folder + manifest.model);
for (const run of request.runs) {
  const feeds = {};
  for (const [input, given] of Object.entries(run.inputs)) {
    const bytes = new Uint8Array(fs.readFileSync(given.file));
    feeds[input] = new ort.Tensor(given.type, new arrays[given.type](bytes.buffer), given.dims);
  }
  const { data } = (await session.run(feeds))[session.outputNames[0]];
  fs.writeFileSync(run.output, new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
}
const root = new URL(`./node_modules/${name}/package.json`, import.meta.url);
const { version } = JSON.parse(fs.readFileSync(root));
console.log(JSON.stringify({ version, inputs: session.inputNames, outputs: session.outputNames, manifest }));
process.exit(0);
