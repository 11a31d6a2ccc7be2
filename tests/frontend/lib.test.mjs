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
await esbuild.build({ absWorkingDir: frontend, entryPoints: ["islands/lib/series.ts", "islands/lib/format.ts", "islands/lib/labels.ts", "islands/lib/counts.ts", "islands/form/schema.ts"], bundle: true, format: "esm", outdir: out, entryNames: "[name]", outExtension: { ".js": ".mjs" }, logLevel: "error" });
globalThis.location = { href: "http://localhost/" };
globalThis.requestAnimationFrame = (call) => setTimeout(call, 0);
const { near, padded, put, smooth, unwire, store } = await import(pathToFileURL(join(out, "series.mjs")));
const { ago, number, duration } = await import(pathToFileURL(join(out, "format.mjs")));

const { spread } = await import(pathToFileURL(join(out, "labels.mjs")));
const { escaped, Shape, unescaped } = await import(pathToFileURL(join(out, "schema.mjs")));
const { Counts } = await import(pathToFileURL(join(out, "counts.mjs")));

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

test("an axis keeps its distance from the line, and rounding noise reads flat", () => {
  assert.deepEqual(padded(0, 100).map(Math.round), [-7, 107]);
  assert.deepEqual(padded(0, 0), [-0.07, 0.07]);
  const [low, high] = padded(0.1, 0.10000000149);
  assert.ok(low < 0.094 && high > 0.106);
  const [down, up] = padded(-1000.0001, -1000);
  assert.ok(down < -1069 && up > -931);
  // Small is not the same as constant.
  assert.ok(padded(1e-9, 2e-9)[1] < 3e-9);
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
  assert.deepEqual([0, 5, 75].map(ago), ["just now", "5 s ago", "1 min 15 s ago"]);
});

test("labels stand apart, as near to their lines as that allows, and inside", () => {
  // 50, 51 and 52 share a block around 51; 20 has room.
  assert.deepEqual(spread([20, 50, 51, 52], 13, 0, 100), [20, 38, 51, 64]);
  // A block that meets another becomes one: 10, 12 and 24 less 0, 13 and 26 have the mean (10 − 1 − 2)/3 = 7/3.
  assert.deepEqual(spread([10, 12, 24], 13, 0, 100).map((place) => Math.round(3 * place)), [7, 46, 85]);
  // At the ends the block moves inward; without room for all the gap shrinks.
  assert.deepEqual(spread([99, 100], 13, 0, 100), [87, 100]);
  assert.deepEqual(spread([0, 0, 0], 13, 0, 100), [0, 13, 26]);
  assert.deepEqual(spread([5, 5, 5], 13, 0, 20), [0, 10, 20]);
  assert.deepEqual(spread([7], 13, 0, 20), [7]);
  assert.deepEqual(spread([], 13, 0, 20), []);
});

test("the tabs count on from what the server knew, and nothing twice", () => {
  const counts = new Counts({ metrics: ["loss", "eval_loss", "eval_reliability/accuracy_0"], steps: [0, 20], lines: 7 });
  assert.deepEqual(counts.shown(), { charts: 1, completions: 2, logs: 7 });
  assert.equal(counts.metrics(["loss", "eval_reliability/accuracy_1"]), true);
  assert.equal(counts.metrics(["eval_loss", "loss"]), false);
  assert.equal(counts.metrics(["kl"]), true);
  counts.completions(20);
  counts.completions(40);
  counts.line();
  assert.deepEqual(counts.shown(), { charts: 2, completions: 3, logs: 8 });
  // A new attempt goes on after step 20: what was written at 40 was taken back. From nothing: all of it.
  counts.rewind(20);
  assert.equal(counts.shown().completions, 2);
  counts.rewind(0);
  assert.equal(counts.shown().completions, 0);
});

test("the cursor reads the point nearest to it", () => {
  assert.deepEqual([-5, 4, 6, 14, 99].map((x) => near([0, 10, 20], x)), [0, 0, 1, 1, 2]);
});

test("a separator can be seen and typed, a regular expression stays as it is", () => {
  for (const text of ["\n", "\t|\r\n", "a\\n", "\\", "step"]) assert.equal(unescaped(escaped(text)), text);
  assert.equal(escaped("\n\n"), "\\n\\n");
  assert.equal(unescaped("\\n"), "\n");
  assert.equal(unescaped("half \\"), "half \\");
  const shape = new Shape({ properties: { separator: { type: "string", default: "\n" }, pattern: { type: "string" } } });
  assert.deepEqual(shape.nodes(shape.root, { separator: "\n", pattern: "\\d" }, shape.initial(shape.root)).map(({ kind }) => kind), ["escaped", "text"]);
  assert.deepEqual(shape.sent(shape.root, { separator: "\n\n", pattern: "\\n" }), { separator: "\n\n", pattern: "\\n" });
});
