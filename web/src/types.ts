// What the proxy says, as agentsched/dashboard/shapes.py has it. Instants are seconds on its clock.

export type State = "running" | "waiting" | "pinned" | "paused" | "idle";

export interface ProgramRow {
  program: string;
  tenant: string;
  agent: string;
  parent: string | null;
  state: State;
  since: number;
  opened: number;
  last: number;
  tool: string;
  held_for: string;
  engine: string;
  steps: number;
  live: number;
  conversations: number;
  pins: number;
  context_tokens: number;
  prompt_tokens: number;
  cached_tokens: number;
  output_tokens: number;
  /** of the prompt tokens, those of which no engine said how much was cached */
  untold_tokens: number;
}

export interface EngineRow {
  engine: string;
  url: string;
  is_up: boolean;
  is_draining: boolean;
  last_error: string;
  /** null, as the other numbers, for who may not see all tenants */
  running_steps: number | null;
  running_max: number | null;
  waiting: number | null;
  kv_usage: number | null;
  kv_tokens: number | null;
  held_tokens: number | null;
  pinned_tokens: number | null;
  pins: number | null;
  wanted_tokens: number | null;
  is_contended: boolean;
  preemptions: number | null;
  can_pin: boolean;
  can_order: boolean;
  has_prefix_cache: boolean;
  prefill_us: number;
  decode_ms: number;
  samples: number;
  models: string[];
  /** since when it answers nothing, with steps inside; null while it is well */
  silent_since: number | null;
}

export interface TenantRow {
  tenant: string;
  weight: number;
  entitled: number | null;
  charged_tokens: number;
  served_tokens: number;
  prompt_tokens: number;
  output_tokens: number;
  idle_kv_tokens: number;
  steps: number;
  programs: number;
  waiting_steps: number;
  running_steps: number;
}

export interface Replicas {
  replica: string;
  is_connected: boolean;
  others: string[];
  gone: { replica: string; since: number }[];
}

export interface Overview {
  version: string;
  profile: string;
  policies: Record<string, string>;
  is_draining: boolean;
  waiting_steps: number;
  running_steps: number;
  pins: number;
  oldest_wait_s: number | null;
  wait_p50_s: number | null;
  wait_p95_s: number | null;
  wait_max_s: number | null;
  max_wait_s: number;
  sensible_wait_s: number | null;
  is_bound_too_tight: boolean;
  steps_total: number;
  rejected_total: number | null;
  retried_total: number | null;
  yielded_total: number | null;
  policy_errors_total: number | null;
  prompt_tokens_total: number;
  cached_tokens_total: number;
  /** of the prompt tokens, those of which no engine said so: what is cached of them is believed */
  untold_tokens_total: number;
  /** null without a bus */
  replicas: Replicas | null;
}

export interface Decision {
  seq: number;
  at: number;
  kind: string;
  program?: string;
  tenant?: string;
  engine?: string;
  step?: string;
  reason?: string;
  wait_s?: number;
}

export interface Sample {
  at: number;
  waiting_steps: number | null;
  running_steps: number | null;
  pins: number | null;
  wait_p95_s: number | null;
  /** engine, running steps, KV in use, pinned part, wanted part */
  engines: [string, number, number | null, number | null, number | null][];
  /** tenant, charged tokens so far, part that its weight entitles it to */
  tenants: [string, number, number | null][];
}

export interface Frame {
  now: number;
  is_full: boolean;
  overview: Overview;
  engines: EngineRow[];
  tenants: TenantRow[];
  /** the busiest are told */
  tenants_total: number;
  programs: ProgramRow[];
  gone: string[];
  programs_total: number;
  decisions: Decision[];
  decisions_left_out: number;
  history: Sample[];
}

export interface Span {
  kind: "wait" | "prefill" | "decode" | "compute" | "tool" | "pause" | "pin" | "warm" | "folded" | "program";
  begins: number;
  ends: number | null;
  label: string;
  node?: string;
  row?: number;
  state?: string;
  engine?: string;
  reason?: string;
  prompt_tokens?: number;
  cached_tokens?: number;
  output_tokens?: number;
  is_error?: boolean;
}

export interface Lane {
  conversation: string;
  role: string;
  spans: Span[];
}

export interface Timeline {
  program: string;
  tenant: string;
  agent: string;
  now: number;
  closed: number | null;
  lanes: Lane[];
  sums: Record<"wait" | "prefill" | "decode" | "compute" | "tool" | "pause" | "pin", number>;
}

export interface GraphNode {
  node: string;
  kind: "step" | "tool" | "program" | "folded";
  conversation: string;
  label: string;
  state: string;
  begins: number;
  dispatched?: number;
  started?: number;
  ends?: number;
  lineage?: string;
  engine?: string;
  prompt_tokens?: number;
  cached_tokens?: number;
  output_tokens?: number;
  is_error?: boolean;
}

export interface GraphEdge {
  source: string;
  target: string;
  kind: string;
}

export interface Graph {
  program: string;
  now: number;
  nodes: GraphNode[];
  edges: GraphEdge[];
}

export interface Forecast {
  steps_left: number | null;
  critical_path_left: number | null;
  fan_out: number;
  is_waiting_for_children: boolean;
  conversations: Record<
    string,
    {
      next_tools: Record<string, number>;
      returns: { has_skill: boolean; p50_s: number | null; p90_s: number | null } | null;
    }
  >;
}

export interface ProgramDetail {
  program: string;
  tenant: string;
  parent: string | null;
  agent: string;
  conversations: {
    conversation: string;
    parent: string | null;
    engine: string | null;
    is_resident: boolean;
    context_tokens: number;
    growth_tokens: number;
    steps_done: number;
    active_steps: number;
    paused_s: number | null;
    waits_for: Record<string, string>;
  }[];
  forecast: Forecast | null;
}

export interface KvRow {
  conversation: string;
  program: string;
  tenant: string;
  tokens: number;
  own_tokens: number;
  running_steps: number;
  paused_at: number | null;
  pinned_until: number | null;
}

export interface KvMap {
  now: number;
  engine: string;
  capacity_tokens: number | null;
  held_tokens: number;
  pinned_tokens: number;
  wanted_tokens: number;
  rows: KvRow[];
  blocks: { row: number; rows: number; begins: number; tokens: number }[];
  left_out: number;
}
