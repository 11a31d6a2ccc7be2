// The islands' pure parts, bundled by esbuild and run by node's own test runner.
import assert from "node:assert/strict";
import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { test } from "node:test";
import { createRequire } from "node:module";
import { fileURLToPath, pathToFileURL } from "node:url";

const frontend = join(dirname(fileURLToPath(import.meta.url)), "../../frontend");
const esbuild = createRequire(join(frontend, "package.json"))("esbuild");
const out = mkdtempSync(join(tmpdir(), "lib-"));
await esbuild.build({ absWorkingDir: frontend, entryPoints: ["islands/lib/series.ts", "islands/lib/format.ts"], bundle: true, format: "esm", outdir: out, outExtension: { ".js": ".mjs" }, logLevel: "error" });
globalThis.location = { href: "http://localhost/" };
globalThis.requestAnimationFrame = (call) => setTimeout(call, 0);
const { put, smooth, unwire, store } = await import(pathToFileURL(join(out, "series.mjs")));
const { number, duration } = await import(pathToFileURL(join(out, "format.mjs")));

const empty = () => ({ steps: [], values: [], low: [], high: [], times: [] });

test("a point goes where its step belongs, and a step that is written again replaces what was there", () => {
  const points = empty();
  for (const [step, value] of [[10, 1], [30, 3], [20, 2], [30, 9], [40, NaN]]) put(points, step, value);
  assert.deepEqual(points.steps, [10, 20, 30, 40]);
  assert.deepEqual(points.values.slice(0, 3), [1, 2, 9]);
  assert.ok(Number.isNaN(points.values[3]));
  assert.equal(points.low.length, 4);
});

test("smoothing is unbiased at the start, keeps a constant, and leaves a gap where a value is no number", () => {
  assert.deepEqual(smooth([5, 5, 5], 0.9).map((value) => Math.round(value * 1e9) / 1e9), [5, 5, 5]);
  assert.equal(smooth([2, 4], 0)[1], 4);
  const broken = smooth([1, NaN, 1], 0.5);
  assert.ok(Number.isNaN(broken[1]));
  assert.equal(broken[2], 1);
});

test("what JSON cannot say comes back as it was", () => {
  assert.ok(Number.isNaN(unwire("nan")));
  assert.equal(unwire("inf"), Infinity);
  assert.equal(unwire("-inf"), -Infinity);
  assert.equal(unwire(0), 0);
});

test("points of the stream that arrive before the answer are kept, none is doubled", async () => {
  let answer;
  globalThis.fetch = () => new Promise((resolve) => (answer = resolve));
  globalThis.document = { querySelector: () => null };
  store.want(7, "loss");
  await new Promise((resolve) => setTimeout(resolve, 5));
  store.add(7, 20, { loss: 0.5, other: 1 });
  answer({ ok: true, status: 200, json: async () => ({ series: { loss: { steps: [10, 20], values: [0.9, 0.7] } } }) });
  await new Promise((resolve) => setTimeout(resolve, 5));
  assert.deepEqual(store.points(7, "loss").steps, [10, 20]);
  assert.deepEqual(store.points(7, "loss").values, [0.9, 0.5]);
  assert.equal(store.points(7, "other"), null);
});

test("a new attempt has all points of its run asked for again", async () => {
  store.add(7, 50, { loss: 0.1 });
  assert.equal(store.points(7, "loss").steps.at(-1), 50);
  let asked = 0;
  globalThis.fetch = async () => (asked++, { ok: true, status: 200, json: async () => ({ series: { loss: { steps: [10, 20, 30], values: [3, 2, 1] } } }) });
  store.reload(7);
  await new Promise((resolve) => setTimeout(resolve, 5));
  assert.equal(asked, 1);
  assert.deepEqual(store.points(7, "loss").steps, [10, 20, 30]);
});

test("numbers read as on the server", () => {
  assert.equal(number(2312), "2,312");
  assert.equal(number(0.69314), "0.6931");
  assert.equal(number(-1.5), "−1.5");
  assert.equal(number(NaN), "NaN");
  assert.equal(number(Infinity), "∞");
  assert.equal(number(null), "not measured");
  assert.equal(number(1e-5), "1.00e-5");
  assert.equal(number(123456), "123,456");
  assert.equal(duration(75), "1 min 15 s");
  assert.equal(duration(null), "unknown");
});
