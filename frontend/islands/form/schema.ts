/** A spec's JSON schema as the form reads it: kinds of fields, what they start with, what is wrong, what is sent. Pure. */
import { number } from "../lib/format.ts";

export interface Schema {
  $ref?: string;
  $defs?: Record<string, Schema>;
  type?: string;
  title?: string;
  description?: string;
  default?: unknown;
  const?: unknown;
  enum?: unknown[];
  properties?: Record<string, Schema>;
  additionalProperties?: Schema | boolean;
  items?: Schema;
  oneOf?: Schema[];
  discriminator?: { propertyName: string; mapping: Record<string, string> };
  minimum?: number;
  maximum?: number;
  exclusiveMinimum?: number;
  exclusiveMaximum?: number;
  minLength?: number;
  maxLength?: number;
  minItems?: number;
  minProperties?: number;
  pattern?: string;
}

/** What the form holds: as in the spec, but numbers as they were typed, and a dictionary as a list of `{name, value}`. */
export type Value = string | boolean | Value[] | { [name: string]: Value };
export type Document = { [name: string]: Value };

export type Kind =
  | "number" | "integer" | "text" | "escaped" | "long" | "enum" | "boolean"
  | "union" | "object" | "cards" | "strings" | "map"
  | "base" | "version" | "models" | "scorer" | "column" | "gate";

/** One field that exists under the present choices. */
export interface Node {
  path: string;
  name: string;
  kind: Kind;
  schema: Schema;
  /** What it starts with. */
  initial: Value;
  /** Kind → schema, of a union or of the items of a list of unions. */
  variants?: Map<string, Schema>;
  /** The nearest union above. */
  under?: string;
}

/** How a number or a word is written in a field. */
export function plain(value: unknown): string {
  if (typeof value === "number") return value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e7) ? value.toExponential().replace("e+", "e") : String(value);
  return value === undefined || value === null ? "" : String(value);
}

const ESCAPES: Record<string, string> = { "\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\" };
const UNESCAPES = Object.fromEntries(Object.entries(ESCAPES).map(([one, other]) => [other, one]));

/** Control characters as one can see and type them, and back. */
export const escaped = (text: string): string => text.replace(/[\n\r\t\\]/g, (one) => ESCAPES[one] as string);
export const unescaped = (text: string): string => text.replace(/\\[nrt\\]/g, (one) => UNESCAPES[one] as string);

export function at(value: Value | undefined, path: string): Value | undefined {
  let found: Value | undefined = value;
  for (const part of path ? path.split(".") : []) {
    if (typeof found !== "object") return undefined;
    found = Array.isArray(found) ? found[Number(part)] : found[part];
  }
  return found;
}

export function put(document: Document, path: string, value: Value): void {
  const parts = path.split(".");
  const last = parts.pop() as string;
  const place = parts.length ? at(document, parts.join(".")) : document;
  if (Array.isArray(place)) place[Number(last)] = value;
  else if (typeof place === "object") place[last] = value;
}

export class Shape {
  constructor(readonly root: Schema) {}

  resolve(schema: Schema): Schema {
    if (!schema.$ref) return schema;
    const named = this.root.$defs?.[schema.$ref.replace("#/$defs/", "")] ?? {};
    // A sentence at the field says more than the one at its type.
    return { ...named, ...schema, $ref: undefined };
  }

  variants(schema: Schema): Map<string, Schema> | undefined {
    if (!schema.oneOf || !schema.discriminator) return undefined;
    const key = schema.discriminator.propertyName;
    return new Map(
      schema.oneOf.map((one) => {
        const resolved = this.resolve(one);
        return [String(resolved.properties?.[key]?.const ?? ""), resolved];
      }),
    );
  }

  kind(schema: Schema, path: string): Kind {
    const name = path.split(".").at(-1) ?? "";
    if (path === "base_model") return "base";
    if (path === "dataset") return "version";
    if (schema.oneOf) return "union";
    if (schema.properties) return "object";
    if (schema.type === "object") return "map";
    if (schema.type === "array") {
      if (schema.items && this.variants(this.resolve(schema.items))) return "cards";
      return name === "models" ? "models" : "strings";
    }
    if (schema.enum) return "enum";
    if (schema.type === "boolean") return "boolean";
    if (schema.type === "integer") return name === "model" ? "scorer" : "integer";
    if (schema.type === "number") return "number";
    // A field for control characters starts with one; in others (a regular expression) a backslash is what it is.
    if (typeof schema.default === "string" && schema.default !== escaped(schema.default)) return "escaped";
    return name === "column" ? "column" : name === "only_if" ? "gate" : name === "json_schema" || name === "setup" ? "long" : "text";
  }

  /** What a field starts with: its default, or what its parts start with. */
  initial(schema: Schema, path = ""): Value {
    const resolved = this.resolve(schema);
    return this.take(resolved, resolved.default, path);
  }

  /** A JSON value as the form holds it; what is missing starts as it would by itself. */
  take(schema: Schema, given: unknown, path = ""): Value {
    const resolved = this.resolve(schema);
    const below = (name: string): string => (path ? `${path}.${name}` : name);
    const record = typeof given === "object" && given !== null && !Array.isArray(given) ? (given as Record<string, unknown>) : {};
    switch (this.kind(resolved, path)) {
      case "union": {
        const variants = this.variants(resolved) ?? new Map<string, Schema>();
        const kind = variants.has(String(record.kind)) ? String(record.kind) : ([...variants.keys()][0] ?? "");
        const made = this.take(variants.get(kind) ?? {}, record, path);
        return typeof made === "object" && !Array.isArray(made) ? { kind, ...made } : { kind };
      }
      case "object": {
        const made: Document = {};
        for (const [name, raw] of Object.entries(resolved.properties ?? {})) {
          const property = this.resolve(raw);
          if (property.const !== undefined) continue;
          made[name] = record[name] === undefined ? this.initial(raw, below(name)) : this.take(property, record[name], below(name));
        }
        return made;
      }
      case "map":
        return Object.entries(record).map(([name, value]) => ({ name, value: plain(value) }));
      case "cards":
        return (Array.isArray(given) ? given : []).map((item, index) => this.take(resolved.items ?? {}, item, below(String(index))));
      case "models":
      case "strings":
        return (Array.isArray(given) ? given : []).map(plain);
      case "boolean":
        return given === true;
      default:
        return plain(given);
    }
  }

  /** Every field that exists in *value*, in the schema's order, the ones below a union after it. */
  nodes(schema: Schema, value: Value, initial: Value, path = "", under?: string): Node[] {
    const resolved = this.resolve(schema);
    const found: Node[] = [];
    for (const [name, raw] of Object.entries(resolved.properties ?? {})) {
      const property = this.resolve(raw);
      if (property.const !== undefined) continue;
      const here = path ? `${path}.${name}` : name;
      const now = at(value, name) ?? "";
      const kind = this.kind(property, here);
      const first = at(initial, name) ?? this.initial(raw, here);
      if (kind === "object") {
        found.push(...this.nodes(property, now, first, here, under));
        continue;
      }
      const variants = kind === "cards" ? this.variants(this.resolve(property.items ?? {})) : this.variants(property);
      found.push({ path: here, name, kind, schema: property, initial: kind === "union" ? (at(first, "kind") ?? "") : first, variants, under });
      if (kind === "union") found.push(...this.#chosen(variants, now, first, here));
      if (kind === "cards" && Array.isArray(now)) now.forEach((item, index) => found.push(...this.#chosen(variants, item, "", `${here}.${index}`)));
    }
    return found;
  }

  #chosen(variants: Map<string, Schema> | undefined, value: Value, initial: Value, path: string): Node[] {
    const kind = String(at(value, "kind") ?? "");
    const variant = variants?.get(kind);
    if (!variant) return [];
    return this.nodes(variant, value, at(initial, "kind") === kind ? initial : this.take(variant, undefined, path), path, path);
  }

  /** The JSON that is sent for what the form holds. */
  sent(schema: Schema, value: Value, path = ""): unknown {
    const resolved = this.resolve(schema);
    switch (this.kind(resolved, path)) {
      case "union": {
        const kind = String(at(value, "kind") ?? "");
        return { kind, ...(this.sent(this.variants(resolved)?.get(kind) ?? {}, value, path) as object) };
      }
      case "object": {
        const made: Record<string, unknown> = {};
        for (const [name, raw] of Object.entries(resolved.properties ?? {})) {
          if (this.resolve(raw).const !== undefined) continue;
          made[name] = this.sent(raw, at(value, name) ?? "", path ? `${path}.${name}` : name);
        }
        return made;
      }
      case "map":
        return Object.fromEntries((Array.isArray(value) ? value : []).map((row) => [String(at(row, "name")), Number(at(row, "value"))]));
      case "cards":
        return (Array.isArray(value) ? value : []).map((item, index) => this.sent(resolved.items ?? {}, item, `${path}.${index}`));
      case "models":
        return (Array.isArray(value) ? value : []).map(Number);
      case "strings":
        return resolved.items?.type === "integer" ? (value as Value[]).map(Number) : value;
      case "enum":
        return resolved.enum?.find((entry) => String(entry) === value) ?? value;
      case "number":
      case "integer":
      case "base":
      case "version":
      case "scorer":
        return Number(value);
      default:
        return value;
    }
  }

  /**
   * The field that a refusal's path means: `rewards.components.0.exact.column` and `rewards.components[0].column` are the
   * same field. Names of variants are skipped; what has no field of its own is said at the nearest field above.
   */
  place(given: string, value: Value, paths: Set<string>): string | undefined {
    const parts = given.replaceAll(/\[(\d+)\]/g, ".$1").split(".").filter(Boolean);
    let found: string | undefined;
    let here: Value | undefined = value;
    let path = "";
    for (const part of parts) {
      if (typeof here !== "object") break;
      const next: Value | undefined = Array.isArray(here) ? here[Number(part)] : here[part];
      // The name of the chosen variant stands in the path of a refusal, but not in the spec.
      if (next === undefined && (part === at(here, "kind") || part === "body" || part === "spec" || path === "")) continue;
      if (next === undefined) break;
      path = path ? `${path}.${part}` : part;
      if (paths.has(path)) found = path;
      here = next;
    }
    // What is wrong with a part as a whole is said at its first field.
    return found ?? (path ? [...paths].find((one) => one.startsWith(`${path}.`)) : undefined);
  }
}

/** Whether two values would be sent as the same. */
export const same = (one: unknown, other: unknown): boolean => JSON.stringify(one) === JSON.stringify(other);

/** Why a typed number or word cannot be sent, or "". */
export function wrongText(kind: Kind, schema: Schema, value: string): string {
  if (kind === "number" || kind === "integer") {
    const text = value.trim();
    if (!text) return "A number is needed.";
    const parsed = Number(text);
    if (!Number.isFinite(parsed)) return `“${text}” is not a number.`;
    if (kind === "integer" && !Number.isInteger(parsed)) return "A whole number is needed.";
    const { minimum, maximum, exclusiveMinimum, exclusiveMaximum } = schema;
    if (minimum !== undefined && parsed < minimum) return `At least ${number(minimum)}.`;
    if (maximum !== undefined && parsed > maximum) return `At most ${number(maximum)}.`;
    if (exclusiveMinimum !== undefined && parsed <= exclusiveMinimum) return `More than ${number(exclusiveMinimum)}.`;
    if (exclusiveMaximum !== undefined && parsed >= exclusiveMaximum) return `Less than ${number(exclusiveMaximum)}.`;
    return "";
  }
  if (schema.minLength && value.length < schema.minLength) return "Something is needed here.";
  if (schema.maxLength && value.length > schema.maxLength) return `At most ${schema.maxLength} characters.`;
  if (schema.pattern && !new RegExp(schema.pattern, "u").test(value)) return schema.pattern === "^[a-z0-9_]*$" ? "Only a–z, 0–9 and _." : `It must match ${schema.pattern}.`;
  return "";
}
