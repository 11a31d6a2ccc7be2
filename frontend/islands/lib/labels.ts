/** The labels behind the ends of a chart's lines. */

export interface End {
  /** Where the line ends, in pixels of the canvas. */
  x: number;
  y: number;
  name: string;
  value: string;
  color: string;
}

const GAP = 13;
const LEAD = 9;
const font = (weight: number, ratio: number): string => `${weight} ${11.5 * ratio}px system-ui, sans-serif`;

/**
 * Places for labels that would like to stand at `wanted` (by rising value), at least `gap` apart and inside low … high: as near to
 * where they want to be as that allows (the least sum of squared moves). What is too close becomes a block around its
 * mean: without gaps that is isotonic regression, by pooling adjacent violators (Ayer et al. 1955). If there is no room for all, the gap shrinks.
 */
export function spread(wanted: number[], gap: number, low: number, high: number): number[] {
  const between = wanted.length > 1 ? Math.min(gap, (high - low) / (wanted.length - 1)) : 0;
  const blocks: { mean: number; size: number }[] = [];
  wanted.forEach((place, index) => {
    let block = { mean: place - index * between, size: 1 };
    for (let above = blocks.at(-1); above && above.mean > block.mean; above = blocks.at(-1)) {
      blocks.pop();
      const size = above.size + block.size;
      block = { mean: (above.mean * above.size + block.mean * block.size) / size, size };
    }
    blocks.push(block);
  });
  const top = high - (wanted.length - 1) * between;
  return blocks.flatMap(({ mean, size }) => Array<number>(size).fill(Math.max(low, Math.min(mean, top)))).map((place, index) => place + index * between);
}

/** Room that the labels would like to have beside the plot. */
export function roomFor(ends: { name: string; value: string }[]): number {
  const context = document.createElement("canvas").getContext("2d");
  if (!context) return 0;
  context.font = font(600, 1);
  return Math.max(...ends.map(({ name, value }) => context.measureText(`${name} ${value}`.trim()).width)) + LEAD + 5;
}

/**
 * All labels in one column to the right of the plot, never on a line; a lead, dotted and faint because it measures nothing, goes from a
 * line's end to a label that stands elsewhere. A name too long for `room` is cut, its value never.
 */
export function drawLabels(ctx: CanvasRenderingContext2D, ends: End[], plot: { top: number; bottom: number; right: number }, room: number, ratio: number): void {
  const sorted = [...ends].sort((one, other) => one.y - other.y);
  // Below the base line stand the numbers of the axis.
  const places = spread(sorted.map((end) => end.y), GAP * ratio, plot.top, plot.bottom - 3 * ratio);
  const left = plot.right + LEAD * ratio;
  ctx.save();
  ctx.textBaseline = "middle";
  ctx.textAlign = "left";
  ctx.lineWidth = 0.75 * ratio;
  ctx.setLineDash([ratio, 3 * ratio]);
  sorted.forEach(({ x, y, name, value, color }, index) => {
    const to = places[index] as number;
    ctx.fillStyle = ctx.strokeStyle = color;
    ctx.beginPath();
    ctx.arc(x, y, 2.6 * ratio, 0, 2 * Math.PI);
    ctx.fill();
    if (plot.right - x > 3 * ratio || Math.abs(to - y) > 3 * ratio) {
      ctx.globalAlpha = 0.6;
      ctx.beginPath();
      ctx.moveTo(x, y);
      ctx.lineTo(plot.right, y);
      ctx.lineTo(left - 2 * ratio, to);
      ctx.stroke();
      ctx.globalAlpha = 1;
    }
    ctx.font = font(400, ratio);
    const least = ctx.measureText(` ${value}`).width;
    ctx.font = font(600, ratio);
    let said = name;
    while (said.length > 1 && ctx.measureText(said).width + least > room * ratio - LEAD * ratio) said = `${said.replace(/…$/, "").slice(0, -1)}…`;
    ctx.fillText(said, left, to);
    const width = said ? ctx.measureText(`${said} `).width : 0;
    ctx.font = font(400, ratio);
    ctx.fillText(value, left + width, to);
  });
  ctx.restore();
}
