// Bundles styles and islands into dist/ under hashed names, and writes manifest.json: source name → built file.
// An island is one custom element in islands/<tag-name>.ts; it is found by its file name and loaded when its tag appears.
import { readdirSync, rmSync, writeFileSync, mkdirSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import * as esbuild from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const dist = join(here, "dist");
const watch = process.argv.includes("--watch");

const tags = () =>
  readdirSync(join(here, "islands"))
    .filter((name) => /^[a-z]+(-[a-z]+)+\.ts$/.test(name))
    .map((name) => basename(name, ".ts"))
    .sort();

const registry = {
  name: "islands",
  setup(build) {
    build.onResolve({ filter: /^islands:registry$/ }, (args) => ({ path: args.path, namespace: "islands" }));
    build.onLoad({ filter: /.*/, namespace: "islands" }, () => ({
      contents: `export const islands = {${tags()
        .map((tag) => `${JSON.stringify(tag)}: () => import(${JSON.stringify(`./islands/${tag}.ts`)})`)
        .join(",")}};`,
      resolveDir: here,
      loader: "js",
      watchDirs: [join(here, "islands")],
    }));
  },
};

const manifest = {};
const remember = {
  name: "manifest",
  setup(build) {
    build.onEnd((result) => {
      for (const [file, output] of Object.entries(result.metafile?.outputs ?? {}))
        if (output.entryPoint && !file.endsWith(".map")) {
          const source = output.entryPoint.replace(/^islands:/, "");
          manifest[basename(source)] = basename(file);
        }
      writeFileSync(join(dist, "manifest.json"), `${JSON.stringify(manifest, null, 1)}\n`);
    });
  },
};

const common = {
  absWorkingDir: here,
  outdir: "dist",
  bundle: true,
  minify: !watch,
  sourcemap: watch ? "inline" : false,
  target: ["chrome120", "firefox121", "safari17.4"],
  metafile: true,
  entryNames: "[name]-[hash]",
  chunkNames: "[name]-[hash]",
  logLevel: "warning",
};

const builds = [
  { ...common, entryPoints: ["islands/app.ts"], format: "esm", splitting: true, plugins: [registry, remember] },
  // Runs before the first paint, so it is a plain blocking script.
  { ...common, entryPoints: ["islands/theme.ts"], format: "iife", plugins: [remember] },
  // light-dark() and color-mix() reach the browser as written.
  { ...common, entryPoints: ["styles/styles.css"], target: ["chrome125", "firefox128", "safari18"], plugins: [remember] },
];

rmSync(dist, { recursive: true, force: true });
mkdirSync(dist, { recursive: true });
const started = performance.now();
if (watch) {
  for (const options of builds) await (await esbuild.context(options)).watch();
} else {
  for (const options of builds) await esbuild.build(options);
  console.log(`frontend: ${Object.keys(manifest).length} files for the first load and the islands in ${Math.round(performance.now() - started)} ms`);
}
