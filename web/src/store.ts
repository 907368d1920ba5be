// The state of the page: one stream of frames, folded into signals.

import { computed, signal } from "@preact/signals";
import { follow, Refused, resume, type Session } from "./api";
import { cachedPart } from "./format";
import { giveHues } from "./hues";
import type { Decision, EngineRow, Frame, Overview, ProgramRow, Sample, State, TenantRow } from "./types";

const DECISIONS_MAX = 500;
const HISTORY_MAX = 450;

export type Link = "connecting" | "live" | "lost" | "full" | "locked";

/** Where others have all places there is no hurry, and not everybody should come at once. */
const FULL_MS = 5_000;

/** For so long a page that nobody sees keeps its stream. */
const UNSEEN_MS = 10_000;

export const link = signal<Link>("connecting");
export const overview = signal<Overview | null>(null);
export const engines = signal<EngineRow[]>([]);
export const tenants = signal<TenantRow[]>([]);
export const tenantsTotal = signal(0);
export const decisions = signal<Decision[]>([]);
export const decisionsLeftOut = signal(0);
export const history = signal<Sample[]>([]);
export const programsTotal = signal(0);
/** Whether what answers is of another version than what answered first, and so than this page. */
export const isOld = signal(false);
let born = "";
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
export const sorting = signal<{ key: SortKey; down: boolean }>({ key: "opened", down: false });

const STATE_ORDER: Record<State, number> = { waiting: 0, running: 1, pinned: 2, paused: 3, idle: 4 };

function rank(row: ProgramRow, key: SortKey): number | string {
  switch (key) {
    case "state":
      return STATE_ORDER[row.state];
    case "cached":
      return cachedPart(row) ?? -1;
    case "tenant":
      return row.tenant;
    case "since":
    case "opened":
      return -row[key]; // as long as is shown: the latest is the shortest
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
  born ||= frame.overview.version;
  isOld.value = frame.overview.version !== born;
  now.value = frame.now;
  overview.value = frame.overview;
  engines.value = frame.engines;
  tenants.value = frame.tenants;
  tenantsTotal.value = frame.tenants_total;
  programsTotal.value = frame.programs_total;
  if (frame.history.length) history.value = [...history.value, ...frame.history].slice(-HISTORY_MAX);
  if (frame.decisions.length) decisions.value = [...decisions.value, ...frame.decisions].slice(-DECISIONS_MAX);
  decisionsLeftOut.value += frame.decisions_left_out;
  if (frame.is_full || frame.programs.length || frame.gone.length) version.value++;
}

export const session = signal<Session | null>(null);
export const mayChange = computed(() => session.value?.scopes.includes("admin") ?? false);

let running: AbortController | null = null;

/** Follow what the proxy tells, from now on. */
export function connect(): void {
  running?.abort();
  running = new AbortController();
  link.value = "connecting";
  void stay(running.signal);
}

let unseen: ReturnType<typeof setTimeout> | undefined;

/** A page that nobody sees leaves its stream to others: a browser has six for all its tabs. */
function attend(): void {
  clearTimeout(unseen);
  if (!document.hidden) {
    if (running?.signal.aborted) connect();
    return;
  }
  unseen = setTimeout(() => {
    if (link.value !== "locked") running?.abort();
  }, UNSEEN_MS);
}
document.addEventListener("visibilitychange", attend);
attend();

/** One stream after the other, until somebody has to log in. */
async function stay(stop: AbortSignal): Promise<void> {
  let failed = 0;
  while (!stop.aborted) {
    try {
      // What one may do is asked each time: what answers now may have been away, or be another.
      session.value = await resume();
      if (!session.value.is_open) throw new Refused(401, "Nobody is logged in.");
      await follow("feed", stop, (data) => {
        failed = 0;
        link.value = "live";
        take(JSON.parse(data) as Frame);
      });
      link.value = "connecting";
    } catch (error) {
      if (stop.aborted) return;
      link.value = broken(error);
      if (link.value === "locked") return;
    }
    failed = Math.min(failed + 1, 6);
    const pause = link.value === "full" ? FULL_MS * (1 + Math.random()) : 250 * 2 ** failed;
    await new Promise((resolve) => setTimeout(resolve, pause));
  }
}

function broken(error: unknown): Link {
  if (!(error instanceof Refused)) return "lost";
  if (error.status === 401 || error.status === 403) return "locked";
  return error.code === "too_many_watchers" ? "full" : "lost";
}
