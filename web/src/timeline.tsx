// A program's life: a lane for each conversation, steps above, tools and pins below.

import type { ComponentChildren } from "preact";
import { useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import { percent, short, span, tokens } from "./format";
import type { Lane, Span, Timeline } from "./types";

const STEP = 20;
const TOOL = 11;
const PIN = 5;
const GAP = 3;
const PAD = 9;
const TOOL_ROWS = 5;

const WORDS: Record<Span["kind"], string> = {
  wait: "waited",
  prefill: "computed the prompt",
  decode: "computed the answer",
  compute: "computed, not streamed",
  tool: "ran a tool",
  pause: "paused",
  pin: "pinned",
  warm: "warmed",
  folded: "earlier steps",
  program: "sub-program",
};

/** Steps of an axis that people count in. */
function ticks(from: number, to: number, count: number): number[] {
  const rough = Math.max((to - from) / Math.max(1, count), 1e-3);
  const base = 10 ** Math.floor(Math.log10(rough));
  const unit = rough >= 60 ? [60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400, 28_800, 86_400, 172_800, 604_800] : [1, 2, 5, 10].map((m) => m * base);
  const step = unit.find((u) => u >= rough) ?? unit[unit.length - 1]!;
  const found = [];
  for (let at = Math.ceil(from / step) * step; at <= to; at += step) found.push(at);
  return found;
}

function clock(seconds: number, whole: number): string {
  if (whole < 2) return `${Math.round(seconds * 1000)} ms`;
  if (whole < 20) return `${seconds.toFixed(1)} s`;
  if (whole < 180) return `${Math.round(seconds)} s`;
  const s = Math.round(seconds);
  return `${Math.floor(s / 60)}:${String(s % 60).padStart(2, "0")}`;
}

interface Shape {
  lane: Lane;
  top: number;
  height: number;
  toolRows: number;
  hasPins: boolean;
}

function layOut(lanes: Lane[]): { shapes: Shape[]; height: number } {
  let top = 0;
  const shapes = lanes.map((lane) => {
    const toolRows = Math.min(
      TOOL_ROWS,
      1 + Math.max(-1, ...lane.spans.filter((s) => s.kind === "tool" || s.kind === "program").map((s) => s.row ?? 0)),
    );
    const hasPins = lane.spans.some((s) => s.kind === "pin" || s.kind === "warm");
    const height = PAD * 2 + STEP + toolRows * (TOOL + GAP) + (hasPins ? PIN + GAP : 0);
    const shape = { lane, top, height, toolRows, hasPins };
    top += height;
    return shape;
  });
  return { shapes, height: top };
}

function box(shape: Shape, it: Span): { y: number; height: number } {
  const steps = shape.top + PAD;
  const tools = steps + STEP + GAP;
  switch (it.kind) {
    case "pause":
      return { y: steps + STEP / 2 - 1.5, height: 3 };
    case "tool":
    case "program":
      return { y: tools + Math.min(it.row ?? 0, TOOL_ROWS - 1) * (TOOL + GAP), height: TOOL };
    case "pin":
    case "warm":
      return { y: tools + shape.toolRows * (TOOL + GAP), height: PIN };
    default:
      return { y: steps, height: STEP };
  }
}

function told(it: Span, end: number): string {
  const parts = [`${it.label} ${WORDS[it.kind]}`, span((it.ends ?? end) - it.begins)];
  if (it.ends === null) parts.push("so far");
  return parts.join(", ");
}

export function Details({ it, end }: { it: Span | null; end: number }) {
  if (!it) return <p class="details note">Point at a bar, or move with the arrow keys, for its details.</p>;
  const facts: [string, string][] = [
    ["begins", `+${span(it.begins)}`],
    ["takes", `${span((it.ends ?? end) - it.begins)}${it.ends === null ? " so far" : ""}`],
  ];
  if (it.engine) facts.push(["engine", it.engine]);
  if (it.prompt_tokens) {
    facts.push(["prompt", `${tokens(it.prompt_tokens)} tokens`]);
    if (it.cached_tokens !== undefined && it.kind !== "pin") {
      facts.push(["cached", `${tokens(it.cached_tokens)} (${percent(it.cached_tokens / it.prompt_tokens)})`]);
    }
  }
  if (it.output_tokens) facts.push(["answer", `${tokens(it.output_tokens)} tokens`]);
  if (it.state) facts.push(["state", it.state]);
  if (it.reason) facts.push([it.kind === "pin" || it.kind === "warm" ? "ended" : "decided", it.reason]);
  return (
    <dl class="details" aria-live="polite">
      <div class="what"><dt><span class={`swatch span-${it.kind}`} /> {it.kind === "tool" ? "tool" : WORDS[it.kind]}</dt><dd><b>{it.label}</b></dd></div>
      {facts.map(([name, value]) => (
        <div key={name}><dt>{name}</dt><dd>{value}</dd></div>
      ))}
    </dl>
  );
}

export function TimelineView({ data, legend }: { data: Timeline; legend: ComponentChildren }) {
  const scroller = useRef<HTMLDivElement>(null);
  const [room, setRoom] = useState(800);
  const [zoom, setZoom] = useState(1);
  const [picked, setPicked] = useState<Span | null>(null);
  const [walked, setWalked] = useState(0);
  const end = data.closed ?? data.now;
  const whole = Math.max(end, 0.05);
  const width = Math.max(room * zoom, 200);
  const scale = (width - 14) / whole;
  const { shapes, height } = useMemo(() => layOut(data.lanes), [data]);
  const all = useMemo(() => data.lanes.flatMap((l) => l.spans).filter((s) => s.kind !== "pause"), [data]);

  useLayoutEffect(() => {
    const element = scroller.current!;
    const observer = new ResizeObserver(() => setRoom(element.clientWidth));
    observer.observe(element);
    return () => observer.disconnect();
  }, []);

  // Zoomed in, the present is what people want to see of a program that lives.
  useLayoutEffect(() => {
    const element = scroller.current!;
    if (zoom > 1) element.scrollLeft = element.scrollWidth;
  }, [zoom]);

  const x = (at: number) => 4 + at * scale;
  const step = (by: number) => {
    const at = picked ? all.findIndex((s) => s.node === picked.node && s.kind === picked.kind && s.begins === picked.begins) : -1;
    setPicked(all[Math.min(all.length - 1, Math.max(0, at + by))] ?? null);
    setWalked(walked + 1);
  };
  // Who goes there with keys has to see where; the mouse is where its bar is.
  useLayoutEffect(() => {
    scroller.current!.querySelector(".is-picked")?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }, [walked]);
  return (
    <div class="timeline">
      <div class="toolbar">
        {legend}
        <span class="spacer" />
        <div class="group" role="group" aria-label="Zoom">
          <button type="button" onClick={() => setZoom(Math.max(1, zoom / 2))} disabled={zoom <= 1} aria-label="Zoom out">−</button>
          <button type="button" onClick={() => setZoom(1)} disabled={zoom === 1}>fit</button>
          <button type="button" onClick={() => setZoom(Math.min(64, zoom * 2))} disabled={zoom >= 64} aria-label="Zoom in">+</button>
        </div>
      </div>
      <div class="lanes">
        <div class="names" aria-hidden="true">
          <div class="axis-space" />
          {shapes.map((shape, i) => (
            <div key={shape.lane.conversation} class="name" style={{ height: `${shape.height}px` }}>
              <b>{shape.lane.role}</b>
              <span>{shape.lane.conversation ? `#${shape.lane.conversation.split("#").pop()?.slice(-14) || i}` : ""}</span>
            </div>
          ))}
        </div>
        <div
          class="chart"
          ref={scroller}
          tabIndex={0}
          role="group"
          aria-label={`Timeline of ${data.program}: ${data.lanes.length} conversations over ${span(whole)}`}
          onKeyDown={(e) => {
            if (e.key === "ArrowRight" || e.key === "ArrowLeft") {
              step(e.key === "ArrowRight" ? 1 : -1);
              e.preventDefault();
            }
          }}
        >
          <svg width={width} height={height + 22} role="presentation" onMouseLeave={() => setPicked(null)}>
            {ticks(0, whole, width / 110).map((at) => (
              <g key={at} class="tick">
                <line x1={x(at)} x2={x(at)} y1={18} y2={height + 22} />
                <text x={x(at) + 3} y={12}>{clock(at, whole)}</text>
              </g>
            ))}
            <g transform="translate(0 22)">
              {shapes.map((shape) => (
                <g key={shape.lane.conversation}>
                  <line class="rule" x1={0} x2={width} y1={shape.top} y2={shape.top} />
                  {shape.lane.spans.map((it) => {
                    const { y, height: h } = box(shape, it);
                    const left = x(it.begins);
                    const w = Math.max(it.kind === "pause" ? 0 : 1.2, ((it.ends ?? end) - it.begins) * scale);
                    const isPicked = picked !== null && picked.node === it.node && picked.kind === it.kind && picked.begins === it.begins;
                    return (
                      <g
                        key={`${it.kind}${it.node}${it.begins}`}
                        class={`span span-${it.kind} ${it.is_error ? "is-error" : ""} ${it.ends === null ? "is-open" : ""} ${isPicked ? "is-picked" : ""}`}
                        onMouseEnter={() => setPicked(it)}
                        onClick={() => setPicked(it)}
                      >
                        <rect x={left} y={y} width={w} height={h} rx={Math.min(3, w / 2)}>
                          <title>{told(it, end)}</title>
                        </rect>
                        {(it.kind === "tool" || it.kind === "program") && w > 26 && (
                          <text x={left + 4} y={y + h - 2.5}>{short(it.label, Math.max(3, Math.floor((w - 6) / 5.6)))}</text>
                        )}
                        {(it.kind === "decode" || it.kind === "compute") && w > 8 + it.label.length * 7 && <text class="on-step" x={left + 4} y={y + 14}>{it.label}</text>}
                      </g>
                    );
                  })}
                </g>
              ))}
              {data.closed === null && <line class="present" x1={x(end)} x2={x(end)} y1={-4} y2={height} />}
            </g>
          </svg>
        </div>
      </div>
      <Details it={picked} end={end} />
    </div>
  );
}
