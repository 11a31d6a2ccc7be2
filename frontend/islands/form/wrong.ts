/** What is wrong with a field before anything is sent, and between which bounds it lies. Pure. */
import { h, type Child } from "../lib/dom.ts";
import type { VersionOption } from "./fields.ts";
import { at, escaped, plain, wrongText, type Document, type Node, type Value } from "./schema.ts";
import { CHOICES } from "./words.ts";

/** Why a field cannot be sent, or "". */
export function wrong(node: Node, values: Document, version: VersionOption | undefined): string {
  const value = at(values, node.path) ?? "";
  switch (node.kind) {
    case "base":
      return value ? "" : "No model of this project fits; register one first.";
    case "version":
      return value ? "" : "No dataset version of this project fits; import or freeze one first.";
    case "scorer":
      return value ? "" : "A process reward model is needed.";
    case "models":
      return (value as Value[]).length ? "" : "At least one reward model is needed.";
    case "column":
      return !version || version.columns.includes(String(value)) ? "" : `The rows have no column “${String(value)}”.`;
    case "cards":
      return (value as Value[]).length ? "" : "Nothing scores a completion yet; add a reward.";
    case "strings":
      return (value as Value[]).length < (node.schema.minItems ?? 0) ? "Something is needed here." : "";
    case "map":
      return wrongMap(value as Value[], node, version?.attributes ?? []);
    case "gate":
      return value && !names(node, values).before.includes(String(value)) ? `“${String(value)}” must come before it.` : "";
    case "union":
    case "enum":
    case "boolean":
    case "object":
      return "";
    default:
      return wrongText(node.kind, node.schema, String(value)) || (node.name === "name" && node.path.includes(".") ? twice(node, values) : "");
  }
}

function wrongMap(rows: Value[], node: Node, attributes: string[]): string {
  if (rows.length < (node.schema.minProperties ?? 0)) return "At least one is needed.";
  for (const row of rows) {
    const name = String(at(row, "name"));
    const said = wrongText("number", {}, String(at(row, "value")));
    if (said) return `${name}: ${said}`;
    if (!attributes.includes(name)) return `The rows have no score “${name}”.`;
  }
  return "";
}

/** The name of the component that *node* belongs to, and of those before it. */
function names(node: Node, values: Document): { before: string[]; own: string } {
  const [, list = "", index = "0"] = /^(.*)\.(\d+)\.[^.]+$/.exec(node.path) ?? [];
  const all = ((at(values, list) ?? []) as Value[]).map((item) => String(at(item, "name") || at(item, "kind")));
  return { before: all.slice(0, Number(index)), own: all[Number(index)] ?? "" };
}

function twice(node: Node, values: Document): string {
  const { before, own } = names(node, values);
  return before.includes(own) ? `Another reward is called ${own}; give this one its own name.` : "";
}

const said = (value: number): string => (Number.isInteger(value) ? value.toLocaleString("en-US") : plain(value));

/** The range, the default and what a preset has set, for the line under a field. */
export function bounds(node: Node, value: Value, preset: Value | undefined): Child[] {
  const { minimum, maximum, exclusiveMinimum, exclusiveMaximum, default: given } = node.schema;
  const isNumber = node.kind === "number" || node.kind === "integer";
  const big = (bound: number | undefined): string | null => (bound === undefined || bound >= 2 ** 31 ? null : said(bound));
  const low = minimum !== undefined ? said(minimum) : exclusiveMinimum !== undefined ? `more than ${said(exclusiveMinimum)}` : null;
  const high = big(maximum) ?? (big(exclusiveMaximum) ? `less than ${big(exclusiveMaximum)}` : null);
  const range = low && high ? `${low} to ${high}` : low ? (low.startsWith("more") ? low : `${low} or more`) : high;
  const word = (text: string): string => (node.kind === "escaped" ? escaped(text) : text.replaceAll("_", " "));
  const parts: Child[] = [];
  if (range) parts.push(range);
  if (given !== undefined && node.kind === "boolean") parts.push(`default ${node.initial ? "on" : "off"}`);
  else if (given !== undefined && typeof node.initial === "string" && node.initial) parts.push(`default ${isNumber ? said(Number(node.initial)) : (node.kind === "union" && CHOICES[node.initial]) || word(node.initial)}`);
  if (isNumber && preset !== undefined && Number(preset) === Number(value) && Number(preset) !== Number(node.initial)) parts.push(h("span", { class: "was" }, `${plain(Number(preset))} from the preset`));
  return parts.flatMap((part, index) => (index ? [" · ", part] : [part]));
}
