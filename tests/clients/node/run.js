// Runs a model as anyone would with onnxruntime-node: run.js REQUEST.json; ../main.rs says what is in it.
const fs = require("node:fs");
const ort = require("onnxruntime-node");

const arrays = { float32: Float32Array, int64: BigInt64Array };

async function main() {
  const request = JSON.parse(fs.readFileSync(process.argv[2]));
  const session = await ort.InferenceSession.create(request.model);
  for (const run of request.runs) {
    const feeds = {};
    for (const [name, given] of Object.entries(run.inputs)) {
      const bytes = new Uint8Array(fs.readFileSync(given.file));
      feeds[name] = new ort.Tensor(given.type, new arrays[given.type](bytes.buffer), given.dims);
    }
    const { data } = (await session.run(feeds))[session.outputNames[0]];
    fs.writeFileSync(run.output, new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
  }
  const { version } = require("onnxruntime-node/package.json");
  console.log(JSON.stringify({ version, inputs: session.inputNames, outputs: session.outputNames }));
}

main();
