/** Colors and dashes of the style sheets as a canvas needs them. */

import { h } from "./dom.ts";

const probe = h("span", { hidden: true });

/** A color token as the canvas needs it; light-dark() is resolved by the browser. */
export function color(token: string): string {
  if (!probe.isConnected) document.body.append(probe);
  probe.style.color = `var(${token})`;
  return getComputedStyle(probe).color;
}

export function dash(slot: number): number[] {
  if (slot < 2) return [];
  return getComputedStyle(document.documentElement).getPropertyValue(`--dash-${slot}`).trim().split(/\s+/).map(Number).filter(Number.isFinite);
}
