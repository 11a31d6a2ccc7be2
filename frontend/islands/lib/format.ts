/** How values read; the same rules as backend/web/filters.py. */

/** `2312` → `2,312`; `0.69314` → `0.6931`; NaN → `NaN`. */
export function number(value: number | null | undefined, digits = 4): string {
  if (value === null || value === undefined) return "not measured";
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e-4 && size < 1e6) return value.toLocaleString("en-US", { maximumSignificantDigits: Math.max(digits, Math.floor(Math.log10(size)) + 1) }).replace("-", "−");
  return value.toExponential(2).replace("-", "−").replace("e−", "e-").replace("e+", "e");
}

/** `75` → `1 min 15 s`. */
export function duration(seconds: number | null | undefined): string {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "unknown";
  const total = Math.round(seconds);
  if (total < 60) return `${total} s`;
  if (total < 3600) return `${Math.floor(total / 60)} min ${total % 60} s`;
  if (total < 86400) return `${Math.floor(total / 3600)} h ${Math.floor((total % 3600) / 60)} min`;
  return `${Math.floor(total / 86400)} d ${Math.floor((total % 86400) / 3600)} h`;
}

/** How long ago, in words. */
export function ago(seconds: number): string {
  return seconds < 5 ? "just now" : `${duration(seconds)} ago`;
}
