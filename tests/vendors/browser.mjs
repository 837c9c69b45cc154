// Runs web bundles in headless Chromium: browser.mjs REQUEST.json, with {installed, dist, runs: [{bundle, provider,
// inputs}]}. `installed` is where look.mjs unpacked Chromium and SwiftShader, `dist` onnxruntime-web's folder. It prints
// the elements that each run gave, and the adapter that WebGPU runs on.
import { createReadStream, readFileSync } from "node:fs";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { extname, join } from "node:path";

const request = JSON.parse(readFileSync(process.argv[2], "utf8"));
const puppeteer = createRequire(join(request.installed, "look.mjs"))("puppeteer-core");
const unpacked = join(request.installed, "unpacked");
const types = { ".mjs": "text/javascript", ".js": "text/javascript", ".wasm": "application/wasm" };
const folders = { dist: request.dist, ...Object.fromEntries(request.runs.map((run, i) => [`bundle${i}`, run.bundle])) };

const server = createServer((asked, answer) => {
  const [folder, file] = asked.url.slice(1).split("/");
  if (!(folder in folders)) return answer.setHeader("Content-Type", "text/html").end("<!doctype html>");
  answer.setHeader("Content-Type", types[extname(file)] ?? "application/octet-stream");
  createReadStream(join(folders[folder], file)).on("error", () => answer.writeHead(404).end()).pipe(answer);
});
await new Promise((listens) => server.listen(0, "127.0.0.1", listens));

/** Runs a bundle, in the page. */
async function run({ folder, provider, inputs }) {
  const ort = await import("/dist/ort.webgpu.min.mjs");
  const { load } = await import(`/${folder}/load.js`);
  const elements = { float32: (values) => Float32Array.from(values), int64: (values) => BigInt64Array.from(values, BigInt) };
  ort.env.wasm.numThreads = 1;
  const session = await load(ort, { executionProviders: [provider] });
  const feeds = {};
  for (const [name, { type, dims, values }] of Object.entries(inputs)) {
    feeds[name] = new ort.Tensor(type, elements[type](values), dims);
  }
  const { data } = (await session.run(feeds))[session.outputNames[0]];
  await session.release();
  return [...data];
}

const { LD_LIBRARY_PATH: libraries } = process.env;
const browser = await puppeteer.launch({
  executablePath: join(unpacked, "chromium"),
  headless: "shell",
  env: { ...process.env, LD_LIBRARY_PATH: [join(unpacked, "al2023", "lib"), libraries].filter(Boolean).join(":") },
  // WebGPU on a processor has to be asked for. A process of root's cannot have Chromium's sandbox.
  args: ["--disable-dev-shm-usage", "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan"]
    .concat(process.getuid() === 0 ? ["--no-sandbox"] : []),
  timeout: 300_000,
  protocolTimeout: 600_000,
});
try {
  const page = await browser.newPage();
  page.on("console", (message) => console.error(message.text()));
  page.on("requestfailed", (asked) => console.error(`${asked.url()}: ${asked.failure().errorText}`));
  await page.goto(`http://127.0.0.1:${server.address().port}/`);
  const outputs = [];
  for (const [i, { provider, inputs }] of request.runs.entries()) {
    const began = performance.now();
    outputs.push(await page.evaluate(run, { folder: `bundle${i}`, provider, inputs }));
    console.error(`${provider}: ${Math.round(performance.now() - began)} ms`);
  }
  const adapter = await page.evaluate(async () => {
    const { vendor, architecture } = (await navigator.gpu.requestAdapter()).info;
    return { vendor, architecture };
  });
  console.log(JSON.stringify({ adapter, outputs }));
} finally {
  await browser.close();
  server.close();
}
