// One file of what report.js needs of Observable Plot, and the notices of every package that went into it.
import {readFileSync, writeFileSync} from "node:fs";
import {build} from "esbuild";

const assets = "../dsv4_shard/reporting/assets";
const {version} = JSON.parse(readFileSync("node_modules/@observablehq/plot/package.json"));

const {metafile} = await build({
  stdin: {contents: 'export {axisX, barX, plot, rect, ruleX, text} from "@observablehq/plot";', resolveDir: "."},
  outfile: `${assets}/plot.js`,
  bundle: true,
  minify: true,
  format: "iife",
  globalName: "Plot",
  target: "es2020",
  charset: "utf8",
  legalComments: "none",
  metafile: true,
  banner: {js: `/* Observable Plot ${version}; licences: plot.licenses.txt */`},
});

const packages = new Set(
  Object.keys(metafile.inputs).flatMap((path) => /^node_modules\/((@[^/]+\/)?[^/]+)\//.exec(path)?.[1] ?? [])
);
const notices = [...packages].sort().map((name) => {
  const {version} = JSON.parse(readFileSync(`node_modules/${name}/package.json`));
  return `${name} ${version}\n\n${readFileSync(`node_modules/${name}/LICENSE`, "utf8").trim()}\n`;
});
writeFileSync(`${assets}/plot.licenses.txt`, notices.join(`\n${"-".repeat(78)}\n\n`));
