// Looks at pages in a browser. The argument is a file with a request, {browser, pages: [{file, steps: [...]}]}; for each
// page it prints the answers of the steps, and what it logged and asked the network for. `browser` is a program's path,
// or null for the one unpacked beside this script by `node look.mjs unpack`.
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import puppeteer from "puppeteer-core";

const unpacked = fileURLToPath(new URL("unpacked", import.meta.url));

/** Unpacks the browser of @sparticuz/chromium, with the libraries and fonts that a bare system lacks. */
async function unpack() {
  mkdirSync(unpacked);
  process.env.TMPDIR = unpacked;
  const { inflate } = await import("@sparticuz/chromium");
  const packed = fileURLToPath(new URL("node_modules/@sparticuz/chromium/bin", import.meta.url));
  const files = ["chromium.br", "al2023.tar.br", "fonts.tar.br", "swiftshader.tar.br"];
  for (const file of files) await inflate(join(packed, file));
  writeFileSync(join(unpacked, "fonts", "fonts.conf"), '<fontconfig><dir prefix="relative">fonts</dir></fontconfig>');
}

if (process.argv[2] === "unpack") {
  await unpack();
  process.exit();
}
const request = JSON.parse(readFileSync(process.argv[2], "utf8"));

/** What a step does, and answers if it answers. */
const STEPS = {
  /** Sets width and colour scheme, and waits until the page is drawn for them. */
  async view(page, { width, scheme }) {
    await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
    await page.setViewport({ width, height: 900 });
    // One frame for the page to see its new width, one to draw, one to be sure.
    for (let frame = 0; frame < 3; frame += 1) {
      await page.evaluate(() => new Promise((done) => requestAnimationFrame(() => setTimeout(done))));
    }
  },
  async click(page, { selector }) {
    const found = await page.$(selector);
    if (!found) throw new Error(`nothing is ${selector}`);
    await found.click();
  },
  async press(page, { selector, key }) {
    await page.$eval(selector, (one) => one.focus());
    await page.keyboard.press(key);
  },
  async type(page, { selector, text }) {
    await page.type(selector, text);
  },
  /** The texts of all elements that the selector finds. */
  texts: (page, { selector }) =>
    page.$$eval(selector, (all) => all.map((one) => (one.innerText ?? one.textContent).replaceAll("\u00a0", " ").trim())),
  attributes: (page, { selector, name }) =>
    page.$$eval(selector, (all, name) => all.map((one) => one.getAttribute(name)), name),
  /** The cells of a table, its heads first. */
  table: (page, { caption }) =>
    page.$eval(`table[aria-label="${caption}"]`, (table) => [...table.rows].map((row) =>
      [...row.cells].map((cell) => cell.textContent.replaceAll("\u00a0", " ").trim()))),
  /** By how many pixels the page is wider than the window. */
  overflow: (page) => page.evaluate(() => document.documentElement.scrollWidth - innerWidth),
  /** The page's colours, and the text with the least contrast to what is behind it. */
  contrast: (page) => page.evaluate(leastContrast),
  /** Whether Tab reaches an element that the selector finds within some steps. */
  async tab(page, { selector, limit }) {
    for (let steps = 0; steps < limit; steps += 1) {
      await page.keyboard.press("Tab");
      if (await page.evaluate((selector) => document.activeElement.matches(selector), selector)) return true;
    }
    return false;
  },
};

function leastContrast() {
  const parse = (text) => {
    const [r, g, b, a = 1] = text.match(/[\d.]+/g).map(Number);
    return { r, g, b, a };
  };
  const over = (top, below) => {
    const mix = (key) => top[key] * top.a + below[key] * (1 - top.a);
    return { r: mix("r"), g: mix("g"), b: mix("b"), a: 1 };
  };
  const luminance = ({ r, g, b }) => {
    const [x, y, z] = [r, g, b].map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const ratio = (a, b) => {
    const [high, low] = [luminance(a), luminance(b)].sort((x, y) => y - x);
    return (high + 0.05) / (low + 0.05);
  };
  const page = parse(getComputedStyle(document.body).backgroundColor);
  const behindHtml = (node) => {
    const layers = [];
    for (let at = node; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      layers.push(colour);
      if (colour.a === 1) break;
    }
    return layers.reduceRight((below, top) => over(top, below), page);
  };
  const hatch = getComputedStyle(document.documentElement).getPropertyValue("--hatch").trim();
  const hatched = parse(`${parseInt(hatch.slice(1, 3), 16)} ${parseInt(hatch.slice(3, 5), 16)} ${parseInt(hatch.slice(5, 7), 16)} ${parseInt(hatch.slice(7, 9), 16) / 255}`);
  const behindSvg = (node) => {
    const below = behindHtml(node.ownerSVGElement.parentElement);
    const box = node.parentElement.querySelector(":scope > .box");
    const fill = box ? getComputedStyle(box).fill : "none";
    const solid = fill === "none" ? below : over(parse(fill), below);
    return node.parentElement.querySelector(":scope > .hatched") ? [solid, over(hatched, solid)] : [solid];
  };
  let [least, checked] = [{ ratio: Infinity }, 0];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim();
    const node = walker.currentNode.parentElement;
    if (!text || node.closest("script, noscript, title") || node.getClientRects().length === 0) continue;
    const inSvg = node instanceof SVGElement;
    const colour = parse(getComputedStyle(node)[inSvg ? "fill" : "color"]);
    for (const behind of inSvg ? behindSvg(node) : [behindHtml(node)]) {
      const found = ratio(over(colour, behind), behind);
      checked += 1;
      if (found < least.ratio) least = { ratio: found, text, tag: node.tagName, class: node.getAttribute("class") };
    }
  }
  const style = getComputedStyle(document.body);
  return { least, checked, background: style.backgroundColor, ink: style.color };
}

const { LD_LIBRARY_PATH: libraries } = process.env;
const own = {
  executablePath: join(unpacked, "chromium"),
  headless: "shell",
  env: {
    ...process.env,
    FONTCONFIG_PATH: join(unpacked, "fonts"),
    LD_LIBRARY_PATH: [join(unpacked, "al2023", "lib"), ...(libraries ? [libraries] : [])].join(":"),
  },
};
const browser = await puppeteer.launch({
  ...(request.browser ? { executablePath: request.browser } : own),
  // A process of root's, as in containers, cannot have Chromium's sandbox.
  args: ["--disable-dev-shm-usage", "--disable-gpu", ...(process.getuid() === 0 ? ["--no-sandbox"] : [])],
  timeout: 300_000,
  protocolTimeout: 300_000,
});
const seen = [];
try {
  for (const { file, steps } of request.pages) {
    const page = await browser.newPage();
    const [logged, requests, answers] = [[], [], []];
    page.on("console", (message) => logged.push(message.text()));
    page.on("pageerror", (error) => logged.push(String(error)));
    page.on("request", (asked) => requests.push(asked.url()));
    const address = pathToFileURL(file).href;
    await page.goto(address, { timeout: 300_000 });
    for (const { step, ...what } of steps) answers.push((await STEPS[step](page, what)) ?? null);
    await page.close();
    seen.push({ answers, logged, requests: requests.filter((url) => url !== address) });
  }
} finally {
  await browser.close();
}
console.log(JSON.stringify(seen));
