// The list of programs: only rows in sight are in the page, so thousands cost what thirty cost.

import { signal } from "@preact/signals";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { cachedPart, percent, short, span, tokens } from "./format";
import { href } from "./router";
import { everyone, now, programsTotal, query, rows, sorting, type SortKey, wanted } from "./store";
import type { ProgramRow, State } from "./types";
import { Empty, STATE_WORDS, StateChip, Tenant } from "./ui";

const OVERSCAN = 8;

export const chosen = signal("");

/** Columns that people read from A on, and not from the greatest number. */
const WORDS = new Set<SortKey | "">(["state", "tenant"]);

const COLUMNS: [SortKey | "", string, string][] = [
  ["state", "State", "c-state"],
  ["", "Program", "c-program"],
  ["tenant", "Tenant", "c-tenant"],
  ["", "Doing", "c-doing"],
  ["steps", "Steps", "c-num"],
  ["context_tokens", "Context", "c-num"],
  ["cached", "Cached", "c-num"],
  ["output_tokens", "Output", "c-num"],
  ["since", "For", "c-num"],
  ["opened", "Age", "c-num"],
];

export function move(by: number): void {
  const list = rows.value;
  if (!list.length) return;
  const at = list.findIndex((row) => row.program === chosen.value);
  chosen.value = list[Math.min(list.length - 1, Math.max(0, at + by))]!.program;
  // A screen reader tells which row that is while the focus is on the grid.
  document.getElementById(GRID)?.focus({ preventScroll: true });
}

const GRID = "programs";

/** A row's name in the page, which has no spaces, as names of programs may. */
const rowId = (program: string): string => `program-${encodeURIComponent(program)}`;

function doing(row: ProgramRow): string {
  switch (row.state) {
    case "running":
      return `${row.live > 1 ? `${row.live} steps ` : ""}on ${row.engine}`;
    case "waiting":
      return row.held_for || "for an engine";
    default:
      return row.tool ? `for ${row.tool}` : row.engine ? `KV on ${row.engine}` : "";
  }
}

function Row({ row, top, height, index }: { row: ProgramRow; top: number; height: number; index: number }) {
  const at = now.value;
  return (
    <a
      id={rowId(row.program)}
      class="row"
      role="row"
      aria-rowindex={index + 2}
      aria-selected={chosen.value === row.program}
      href={href("programs", row.program)}
      style={{ transform: `translateY(${top}px)`, height: `${height}px` }}
      tabIndex={-1}
    >
      <span role="gridcell" class="c-state"><StateChip state={row.state} /></span>
      <span role="gridcell" class="c-program" title={row.program}>
        <b>{short(row.program.includes("/") ? row.program.slice(row.program.indexOf("/") + 1) : row.program, 30)}</b>
        {row.agent && <i>{row.agent}</i>}
      </span>
      <span role="gridcell" class="c-tenant"><Tenant name={row.tenant} /></span>
      <span role="gridcell" class="c-doing">{doing(row)}</span>
      <span role="gridcell" class="c-num">{row.steps}</span>
      <span role="gridcell" class="c-num">{tokens(row.context_tokens)}</span>
      <span role="gridcell" class="c-num">{percent(cachedPart(row))}</span>
      <span role="gridcell" class="c-num">{tokens(row.output_tokens)}</span>
      <span role="gridcell" class="c-num">{span(at - row.since)}</span>
      <span role="gridcell" class="c-num">{span(at - row.opened)}</span>
    </a>
  );
}

function Filter({ name, label, values, words }: {
  name: "tenant" | "state" | "agent" | "engine";
  label: string;
  values: string[];
  words?: Record<string, string>;
}) {
  if (values.length < 2 && !wanted.value[name]) return null;
  return (
    <select
      aria-label={label}
      value={wanted.value[name]}
      onChange={(e) => (wanted.value = { ...wanted.value, [name]: e.currentTarget.value })}
    >
      <option value="">{label}: all</option>
      {[...new Set([...values, wanted.value[name]])].filter(Boolean).map((value) => (
        <option key={value} value={value}>{words?.[value] ?? value}</option>
      ))}
    </select>
  );
}

export function Filters() {
  const unique = (key: "tenant" | "agent" | "engine") =>
    [...new Set(everyone.value.map((row) => row[key]).filter(Boolean))].sort();
  return (
    <div class="filters" role="search">
      <input
        id="search"
        type="search"
        placeholder="Search programs"
        aria-label="Search programs"
        aria-keyshortcuts="/"
        value={query.value}
        onInput={(e) => (query.value = e.currentTarget.value)}
      />
      <Filter name="state" label="State" values={Object.keys(STATE_WORDS)} words={STATE_WORDS as Record<State, string>} />
      <Filter name="tenant" label="Tenant" values={unique("tenant")} />
      <Filter name="agent" label="Agent" values={unique("agent")} />
      <Filter name="engine" label="Engine" values={unique("engine")} />
    </div>
  );
}

function Head() {
  const { key, down } = sorting.value;
  return (
    <div class="row head" role="row" aria-rowindex={1}>
      {COLUMNS.map(([sort, title, place]) => (
        <span
          key={title}
          role="columnheader"
          class={place}
          aria-sort={sort && sort === key ? (down ? "descending" : "ascending") : undefined}
        >
          {sort ? (
            <button type="button" onClick={() => (sorting.value = { key: sort, down: key === sort ? !down : !WORDS.has(sort) })}>
              {title}
              <span aria-hidden="true">{key === sort ? (down ? " ↓" : " ↑") : ""}</span>
            </button>
          ) : (
            title
          )}
        </span>
      ))}
    </div>
  );
}

export function ProgramList() {
  const scroller = useRef<HTMLDivElement>(null);
  const [view, setView] = useState({ top: 0, height: 600, row: 40 });
  const list = rows.value;

  useLayoutEffect(() => {
    const element = scroller.current!;
    const measure = () => {
      const row = parseFloat(getComputedStyle(element).getPropertyValue("--row")) || 40;
      setView((old) => ({ ...old, height: element.clientHeight, row }));
    };
    const observer = new ResizeObserver(measure);
    observer.observe(element);
    return () => observer.disconnect();
  }, []);

  useEffect(() => {
    const at = list.findIndex((row) => row.program === chosen.value);
    const element = scroller.current;
    if (at < 0 || !element) return;
    const top = at * view.row;
    if (top < element.scrollTop) element.scrollTop = top;
    else if (top + view.row > element.scrollTop + view.height) element.scrollTop = top + view.row - view.height;
  }, [chosen.value]);

  const first = Math.max(0, Math.floor(view.top / view.row) - OVERSCAN);
  const last = Math.min(list.length, Math.ceil((view.top + view.height) / view.row) + OVERSCAN);
  const shown = list.slice(first, last);
  const page = Math.max(1, Math.floor(view.height / view.row) - 1);
  const moves: Record<string, number> = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -list.length, End: list.length };
  const isNarrowed = list.length < everyone.value.length;
  return (
    <div class="list">
      <div
        id={GRID}
        role="grid"
        aria-label="Live programs"
        aria-rowcount={list.length + 1}
        tabIndex={0}
        aria-activedescendant={shown.some((row) => row.program === chosen.value) ? rowId(chosen.value) : undefined}
        onKeyDown={(e) => {
          const by = moves[e.key];
          if (by === undefined || e.ctrlKey || e.metaKey || e.altKey) return;
          move(by);
          e.preventDefault();
        }}
      >
        <Head />
        <div
          class="scroller"
          role="rowgroup"
          ref={scroller}
          tabIndex={-1}
          onScroll={(e) => {
            const top = e.currentTarget.scrollTop;
            setView((old) => (Math.abs(old.top - top) < old.row ? old : { ...old, top }));
          }}
        >
          <div class="rows" role="presentation" style={{ height: `${list.length * view.row}px` }}>
            {shown.map((row, i) => (
              <Row key={row.program} row={row} index={first + i} top={(first + i) * view.row} height={view.row} />
            ))}
          </div>
          {!list.length && (
            <Empty>{everyone.value.length ? "No program matches." : "No programs yet: point an agent's base URL at this proxy."}</Empty>
          )}
        </div>
      </div>
      <p class="foot" aria-live={isNarrowed ? "polite" : "off"}>
        {list.length === everyone.value.length ? `${list.length} programs` : `${list.length} of ${everyone.value.length} programs`}
        {programsTotal.value > everyone.value.length && `; ${programsTotal.value} are live, the latest are shown`}
      </p>
    </div>
  );
}
