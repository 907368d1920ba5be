// Small parts that several pages use.

import type { ComponentChildren } from "preact";
import { span } from "./format";
import { hue } from "./hues";
import { now } from "./store";
import type { EngineRow, State } from "./types";

export const STATE_WORDS: Record<State, string> = {
  running: "computing",
  waiting: "waiting",
  pinned: "pinned",
  paused: "paused",
  idle: "at rest",
};

export function StateChip({ state }: { state: State }) {
  return (
    <span class={`chip state-${state}`}>
      <span class="dot" aria-hidden="true" />
      {STATE_WORDS[state]}
    </span>
  );
}

/** Whether an engine takes work, and since when nothing comes out of it. */
export function EngineChips({ row }: { row: EngineRow }) {
  const isSilent = row.silent_since !== null;
  const state = row.is_draining ? "draining" : !row.is_up ? "down" : isSilent ? "" : "up";
  return (
    <>
      {state && <span class={`chip engine-${state}`}><span class="dot" aria-hidden="true" />{state}</span>}
      {isSilent && (
        <span class="chip engine-silent" title="It has steps inside and nothing comes out: new steps go to others while one is well">
          <span class="dot" aria-hidden="true" />silent {span(now.value - row.silent_since!)}
        </span>
      )}
    </>
  );
}

export function Tenant({ name }: { name: string }) {
  return (
    <span class="tenant">
      <span class={`swatch hue-${hue(name)}`} aria-hidden="true" />
      {name}
    </span>
  );
}

export function Card({ title, aside, children, label }: {
  title?: ComponentChildren;
  aside?: ComponentChildren;
  children: ComponentChildren;
  label?: string;
}) {
  return (
    <section class="card" aria-label={label ?? (typeof title === "string" ? title : undefined)}>
      {title !== undefined && (
        <header>
          <h2>{title}</h2>
          {aside !== undefined && <div class="aside">{aside}</div>}
        </header>
      )}
      {children}
    </section>
  );
}

export function Spark({ values, label, tone = "accent" }: { values: (number | null)[]; label: string; tone?: string }) {
  const width = 120;
  const height = 28;
  const known = values.filter((v): v is number => v !== null);
  if (known.length < 2) return <svg class="spark" viewBox={`0 0 ${width} ${height}`} role="img" aria-label={label} />;
  const top = Math.max(...known, 1e-9);
  const step = width / (values.length - 1);
  let line = "";
  let pen = "M";
  values.forEach((value, i) => {
    if (value === null) {
      pen = "M";
      return;
    }
    line += `${pen}${(i * step).toFixed(1)} ${(height - 2 - (value / top) * (height - 4)).toFixed(1)}`;
    pen = "L";
  });
  return (
    <svg class={`spark tone-${tone}`} viewBox={`0 0 ${width} ${height}`} preserveAspectRatio="none" role="img" aria-label={label}>
      <path class="area" d={`${line}L${width} ${height}L0 ${height}Z`} />
      <path class="line" d={line} />
    </svg>
  );
}

export function Empty({ children }: { children: ComponentChildren }) {
  return <p class="empty">{children}</p>;
}
