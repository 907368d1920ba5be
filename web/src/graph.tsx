// The execution graph, drawn left to right: conversations are rows, steps follow their causes.

import { useLayoutEffect, useMemo, useRef } from "preact/hooks";
import { percent, short, span, tokens } from "./format";
import type { Graph, GraphNode } from "./types";

const COLUMN = 160;
const BOX = 118;
const STEP_H = 40;
const PILL_H = 18;
const PILL_GAP = 4;
const PILLS = 4;
const ROW_PAD = 20;

interface Place {
  node: GraphNode;
  x: number;
  y: number;
  w: number;
  h: number;
}

interface Drawing {
  places: Map<string, Place>;
  rows: { title: string; top: number; height: number }[];
  width: number;
  height: number;
  more: { x: number; y: number; count: number }[];
}

function columns(graph: Graph): Map<string, number> {
  const owner = new Map<string, string>();
  for (const edge of graph.edges) if (edge.kind === "calls") owner.set(edge.target, edge.source);
  const incoming = new Map<string, string[]>();
  for (const edge of graph.edges) {
    if (edge.kind === "calls") continue;
    const source = owner.get(edge.source) ?? edge.source;
    incoming.set(edge.target, [...(incoming.get(edge.target) ?? []), source]);
  }
  // No edge points into the past, so that in order of time all causes come before their effects.
  const column = new Map<string, number>();
  for (const node of [...graph.nodes].sort((a, b) => a.begins - b.begins)) {
    if (node.kind === "tool") continue;
    const before = (incoming.get(node.node) ?? []).map((source) => column.get(source) ?? -1);
    column.set(node.node, 1 + Math.max(-1, ...before));
  }
  for (const [tool, step] of owner) column.set(tool, column.get(step) ?? 0);
  return column;
}

export function draw(graph: Graph): Drawing {
  const column = columns(graph);
  const byConversation = new Map<string, GraphNode[]>();
  for (const node of [...graph.nodes].sort((a, b) => a.begins - b.begins)) {
    byConversation.set(node.conversation, [...(byConversation.get(node.conversation) ?? []), node]);
  }
  const places = new Map<string, Place>();
  const rows: Drawing["rows"] = [];
  const more: Drawing["more"] = [];
  let top = 6;
  let number = 0;
  for (const [conversation, nodes] of byConversation) {
    const below = new Map<number, number>();
    // A step in a column that another one of its conversation has stands beneath it.
    const stacked = new Map<number, number>();
    for (const node of nodes) {
      const at = column.get(node.node) ?? 0;
      const x = 8 + at * COLUMN;
      if (node.kind === "tool") {
        const place = below.get(at) ?? 0;
        below.set(at, place + 1);
        if (place < PILLS) {
          const y = top + ROW_PAD + (STEP_H + 8) * (stacked.get(at) ?? 1) + place * (PILL_H + PILL_GAP);
          places.set(node.node, { node, x: x + 8, y, w: BOX - 8, h: PILL_H });
        }
      } else {
        const place = stacked.get(at) ?? 0;
        stacked.set(at, place + 1);
        places.set(node.node, { node, x, y: top + ROW_PAD + place * (STEP_H + 8), w: BOX, h: STEP_H });
      }
    }
    const pills = Math.min(PILLS, Math.max(0, ...below.values()));
    const deep = Math.max(1, ...stacked.values());
    for (const [at, count] of below) {
      if (count > PILLS) {
        more.push({ x: 16 + at * COLUMN, y: top + ROW_PAD + deep * (STEP_H + 8) + PILLS * (PILL_H + PILL_GAP) + 10, count: count - PILLS });
      }
    }
    const extra = [...below.values()].some((count) => count > PILLS) ? 16 : 0;
    const height = ROW_PAD + deep * (STEP_H + 8) + pills * (PILL_H + PILL_GAP) + extra + 10;
    const lineage = nodes.find((n) => n.kind === "step")?.lineage ?? "";
    const role = { spawned: "sub-agent", forks: "branch", compacts: "after compaction" }[lineage] ?? (number === 0 ? "main" : "conversation");
    rows.push({ title: conversation ? `${role} · #${conversation.split("#").pop()}` : "sub-programs", top, height });
    top += height + 8;
    number++;
  }
  const last = Math.max(0, ...column.values());
  return { places, rows, more, width: 16 + (last + 1) * COLUMN, height: top };
}

function curve(a: Place, b: Place, kind: string): string {
  if (kind === "calls") {
    const x = a.x + 4;
    return `M${x} ${a.y + a.h}V${b.y + b.h / 2}H${b.x}`;
  }
  const x1 = a.x + a.w;
  const y1 = a.y + a.h / 2;
  const y2 = b.y + b.h / 2;
  const bend = Math.max(18, (b.x - x1) / 2);
  return `M${x1} ${y1}C${x1 + bend} ${y1} ${b.x - bend} ${y2} ${b.x} ${y2}`;
}

function took(node: GraphNode): string {
  return node.ends === undefined || node.ends === null ? node.state : span((node.ends - node.begins) / 1e9);
}

function title(node: GraphNode): string {
  const parts = [`${node.kind} ${node.label}`, node.state, took(node)];
  if (node.engine) parts.push(`on ${node.engine}`);
  if (node.prompt_tokens) parts.push(`${tokens(node.prompt_tokens)} prompt tokens`);
  if (node.prompt_tokens && node.cached_tokens !== undefined && node.cached_tokens !== null) {
    parts.push(`${percent(node.cached_tokens / node.prompt_tokens)} cached`);
  }
  return parts.join(", ");
}

export function GraphView({ graph }: { graph: Graph }) {
  const drawing = useMemo(() => draw(graph), [graph]);
  const scroller = useRef<HTMLDivElement>(null);
  const last = useRef(0);
  useLayoutEffect(() => {
    const element = scroller.current!;
    const isAtEnd = last.current === 0 || element.scrollLeft + element.clientWidth >= last.current - 40;
    if (isAtEnd) element.scrollLeft = element.scrollWidth;
    last.current = element.scrollWidth;
  }, [drawing.width]);
  const drawn = graph.edges.filter((e) => drawing.places.has(e.source) && drawing.places.has(e.target));
  return (
    <div class="graph" ref={scroller} tabIndex={0} role="img" aria-label={`Execution graph: ${graph.nodes.length} nodes in ${drawing.rows.length} conversations`}>
      <svg width={drawing.width} height={drawing.height}>
        {drawing.rows.map((row) => (
          <g key={row.title}>
            <rect class="lane" x={0} y={row.top} width={drawing.width} height={row.height} rx={8} />
            <text class="lane-title" x={10} y={row.top + 13}>{short(row.title, 60)}</text>
          </g>
        ))}
        {drawn.map((edge) => (
          <path
            key={`${edge.source}>${edge.target}>${edge.kind}`}
            class={`edge edge-${edge.kind}`}
            d={curve(drawing.places.get(edge.source)!, drawing.places.get(edge.target)!, edge.kind)}
          />
        ))}
        {[...drawing.places.values()].map(({ node, x, y, w, h }) => (
          <g key={node.node} class={`node node-${node.kind} is-${node.is_error ? "failed" : node.state}`} transform={`translate(${x} ${y})`}>
            <title>{title(node)}</title>
            <rect width={w} height={h} rx={node.kind === "tool" ? h / 2 : 7} />
            {node.kind === "tool" ? (
              <text x={8} y={12.5}>
                {short(node.label, 9)} <tspan class="faint">{took(node)}</tspan>
              </text>
            ) : (
              <>
                <text class="strong" x={8} y={16}>{node.kind === "step" ? node.label : short(node.label, 14)}</text>
                <text class="faint end" x={w - 8} y={16}>{took(node)}</text>
                <text class="faint" x={8} y={31}>
                  {node.prompt_tokens ? `${tokens(node.prompt_tokens)} → ${tokens(node.output_tokens ?? 0)}` : node.state}
                </text>
                {!!node.prompt_tokens && node.cached_tokens !== undefined && node.cached_tokens !== null && (
                  <rect class="cached" x={8} y={h - 4.5} height={2} width={Math.max(0, (w - 16) * Math.min(1, node.cached_tokens / node.prompt_tokens))} rx={1} />
                )}
              </>
            )}
          </g>
        ))}
        {drawing.more.map((it) => (
          <text key={`${it.x}${it.y}`} class="faint" x={it.x} y={it.y}>+{it.count} more</text>
        ))}
      </svg>
    </div>
  );
}
