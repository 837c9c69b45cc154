// Loads the model beside this file into onnxruntime-web:
//
//   import * as ort from "onnxruntime-web";
//   import { load } from "./load.js";
//   const session = await load(ort, { executionProviders: ["webgpu", "wasm"] });
//
// `folder` is where the files are: a URL or, in Node, a path, with a slash at its end. onnxruntime-node needs no
// loader: it finds the files with weights beside the model.

export const manifest = /* manifest */ {};

export async function load(ort, options = {}, folder = new URL(".", import.meta.url).href) {
  const externalData = manifest.externalData.map(({ path }) => ({ path, data: folder + path }));
  const files = externalData.length > 0 ? { externalData } : {};
  return ort.InferenceSession.create(folder + manifest.model, { ...options, ...files });
}
