// The state of the page: one stream of frames, folded into signals.

import { computed, signal } from "@preact/signals";
import { api, Refused, resume, type Session } from "./api";
import { giveHues } from "./hues";
import type { Decision, EngineRow, Frame, Overview, ProgramRow, Sample, State, TenantRow } from "./types";

const DECISIONS_MAX = 500;
const HISTORY_MAX = 450;

export type Link = "connecting" | "live" | "lost" | "locked";

export const link = signal<Link>("connecting");
export const overview = signal<Overview | null>(null);
export const engines = signal<EngineRow[]>([]);
export const tenants = signal<TenantRow[]>([]);
export const decisions = signal<Decision[]>([]);
export const decisionsLeftOut = signal(0);
export const history = signal<Sample[]>([]);
export const programsTotal = signal(0);
/** The proxy's clock, as of the latest frame. */
export const now = signal(0);

const known = new Map<string, ProgramRow>();
const version = signal(0);

export function program(id: string): ProgramRow | undefined {
  version.value;
  return known.get(id);
}

export type SortKey = "opened" | "state" | "steps" | "context_tokens" | "cached" | "since" | "tenant" | "output_tokens";
export const query = signal("");
export const wanted = signal<{ tenant: string; state: string; agent: string; engine: string }>({
  tenant: "",
  state: "",
  agent: "",
  engine: "",
});
export const sorting = signal<{ key: SortKey; down: boolean }>({ key: "opened", down: true });

const STATE_ORDER: Record<State, number> = { waiting: 0, running: 1, pinned: 2, paused: 3, idle: 4 };

function rank(row: ProgramRow, key: SortKey): number | string {
  switch (key) {
    case "state":
      return STATE_ORDER[row.state];
    case "cached":
      return row.prompt_tokens ? row.cached_tokens / row.prompt_tokens : -1;
    case "tenant":
      return row.tenant;
    default:
      return row[key];
  }
}

export const everyone = computed(() => {
  version.value;
  return [...known.values()];
});

export const rows = computed(() => {
  const words = query.value.toLowerCase().split(/\s+/).filter(Boolean);
  const { tenant, state, agent, engine } = wanted.value;
  const found = everyone.value.filter(
    (row) =>
      (!tenant || row.tenant === tenant) &&
      (!state || row.state === state) &&
      (!agent || row.agent === agent) &&
      (!engine || row.engine === engine) &&
      words.every((word) =>
        `${row.program} ${row.tenant} ${row.agent} ${row.tool} ${row.state} ${row.engine}`.toLowerCase().includes(word),
      ),
  );
  const { key, down } = sorting.value;
  const sign = down ? -1 : 1;
  return found.sort((a, b) => {
    const x = rank(a, key);
    const y = rank(b, key);
    if (x !== y) return x < y ? -sign : sign;
    // Every order is total: rows that are level must not change places.
    return a.opened - b.opened || (a.program < b.program ? -1 : 1);
  });
});

export const counts = computed(() => {
  const found: Record<State, number> = { running: 0, waiting: 0, pinned: 0, paused: 0, idle: 0 };
  for (const row of everyone.value) found[row.state]++;
  return found;
});

function take(frame: Frame): void {
  if (frame.is_full) {
    known.clear();
    decisions.value = [];
    decisionsLeftOut.value = 0;
    history.value = [];
  }
  for (const key of frame.gone) known.delete(key);
  for (const row of frame.programs) known.set(row.program, row);
  giveHues(frame.tenants.map((it) => it.tenant));
  now.value = frame.now;
  overview.value = frame.overview;
  engines.value = frame.engines;
  tenants.value = frame.tenants;
  programsTotal.value = frame.programs_total;
  if (frame.history.length) history.value = [...history.value, ...frame.history].slice(-HISTORY_MAX);
  if (frame.decisions.length) decisions.value = [...decisions.value, ...frame.decisions].slice(-DECISIONS_MAX);
  decisionsLeftOut.value += frame.decisions_left_out;
  if (frame.is_full || frame.programs.length || frame.gone.length) version.value++;
}

export const session = signal<Session | null>(null);
export const mayChange = computed(() => session.value?.scopes.includes("admin") ?? false);

export async function start(): Promise<void> {
  try {
    session.value = await resume();
  } catch {
    session.value = null;
  }
  if (session.value && !session.value.is_open) link.value = "locked";
  else connect();
}

let source: EventSource | null = null;
let retry = 0;

export function connect(): void {
  source?.close();
  if (link.value === "locked") link.value = "connecting";
  source = new EventSource("v1/feed");
  source.addEventListener("frame", (event) => {
    retry = 0;
    link.value = "live";
    take(JSON.parse((event as MessageEvent<string>).data) as Frame);
  });
  source.onerror = () => {
    source?.close();
    void diagnose();
  };
}

/** A stream does not say why it failed; a plain request does. */
async function diagnose(): Promise<void> {
  try {
    await api.get("statistics");
    link.value = "connecting";
  } catch (error) {
    if (error instanceof Refused && (error.status === 401 || error.status === 403)) {
      link.value = "locked";
      return;
    }
    link.value = "lost";
  }
  retry = Math.min(retry + 1, 6);
  setTimeout(connect, 250 * 2 ** retry);
}
