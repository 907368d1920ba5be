// The first page: how it goes, in one glance, and all live programs.

import { percent, span, tokens } from "./format";
import { Filters, ProgramList } from "./list";
import { href } from "./router";
import { counts, engines, everyone, history, overview, wanted } from "./store";
import type { EngineRow, State } from "./types";
import { Card, Empty, EngineChips, Spark, STATE_WORDS } from "./ui";

function Tile({ label, value, note, children, tone }: {
  label: string;
  value: string;
  note?: string;
  tone?: string;
  children?: preact.ComponentChildren;
}) {
  return (
    <div class={`tile ${tone ?? ""}`}>
      <span class="label">{label}</span>
      <strong>{value}</strong>
      {note && <span class="note">{note}</span>}
      {children}
    </div>
  );
}

function Tiles() {
  const it = overview.value!;
  const past = history.value;
  const isLate = it.oldest_wait_s !== null && it.oldest_wait_s > it.max_wait_s * 0.8;
  const hit = it.prompt_tokens_total ? it.cached_tokens_total / it.prompt_tokens_total : null;
  const told = percent(1 - it.untold_tokens_total / Math.max(1, it.prompt_tokens_total));
  const isTold = told === percent(1);
  const hitText = `${isTold ? "" : "about "}${percent(hit)}`;
  return (
    <div class="tiles">
      <Tile label="Steps computing" value={String(it.running_steps)} note={`${it.steps_total.toLocaleString("en")} so far`}>
        <Spark values={past.map((s) => s.running_steps)} label="Steps computing, last quarter of an hour" />
      </Tile>
      <Tile
        label="Steps waiting"
        value={String(it.waiting_steps)}
        tone={isLate ? "bad" : undefined}
        note={it.oldest_wait_s === null ? "nobody waits" : `longest ${span(it.oldest_wait_s)} of ${span(it.max_wait_s)}`}
      >
        <Spark values={past.map((s) => s.waiting_steps)} label="Steps waiting, last quarter of an hour" tone="wait" />
      </Tile>
      <Tile label="Wait, 95th percentile" value={span(it.wait_p95_s)} note={it.wait_p95_s === null ? undefined : `median ${span(it.wait_p50_s)}, most ${span(it.wait_max_s)}`}>
        <Spark values={past.map((s) => s.wait_p95_s)} label="Wait, 95th percentile, last quarter of an hour" tone="wait" />
      </Tile>
      <Tile label="Prompt from cache" value={hitText} note={`${tokens(it.prompt_tokens_total)} prompt tokens${isTold ? "" : `; engines tell of ${told}`}`}>
        <Meter part={hit ?? 0} label={`${hitText} of prompt tokens came from the cache`} />
      </Tile>
      <Tile label="Pins" value={String(it.pins)} note={it.rejected_total === null ? undefined : it.rejected_total ? `${it.rejected_total} steps rejected` : "no step rejected"}>
        <Spark values={past.map((s) => s.pins)} label="Pins, last quarter of an hour" tone="pin" />
      </Tile>
    </div>
  );
}

export function Meter({ part, label }: { part: number; label: string }) {
  return (
    <div class="meter" role="img" aria-label={label}>
      <span style={{ width: `${Math.min(100, part * 100)}%` }} />
    </div>
  );
}

export function KvBar({ row }: { row: EngineRow }) {
  if (row.held_tokens === null || row.pinned_tokens === null || row.wanted_tokens === null) return <p class="note">What lies in its cache is for operators.</p>;
  if (!row.kv_tokens) return <p class="note">Its cache's size is unknown.</p>;
  const of = (count: number) => `${Math.min(100, (count / row.kv_tokens!) * 100)}%`;
  const over = row.wanted_tokens / row.kv_tokens;
  const label = `Cache of ${tokens(row.kv_tokens)} tokens: ${tokens(row.held_tokens)} held, ${tokens(row.pinned_tokens)} pinned; programs want ${tokens(row.wanted_tokens)}`;
  return (
    <div class="kv" role="img" aria-label={label} title={label}>
      <div class="track">
        <span class="held" style={{ width: of(row.held_tokens) }} />
        <span class="pinned" style={{ width: of(row.pinned_tokens) }} />
      </div>
      <div class={`want ${over > 1 ? "over" : ""}`} style={{ width: of(row.wanted_tokens) }} />
    </div>
  );
}

function EngineCard({ row }: { row: EngineRow }) {
  return (
    <a class="engine" href={href("engines", row.engine)}>
      <div class="line">
        <b>{row.engine}</b>
        <EngineChips row={row} />
        {row.is_contended && row.is_up && <span class="chip tight" title="Programs under way want more of its cache than it has">contended</span>}
        <span class="spacer" />
        {row.running_steps !== null && <span class="num">{row.running_steps} computing</span>}
      </div>
      <KvBar row={row} />
      <div class="line small">
        {row.is_up || row.is_draining ? (
          row.held_tokens !== null && row.wanted_tokens !== null && (
            <>
              <span>held {tokens(row.held_tokens)} of {row.kv_tokens ? tokens(row.kv_tokens) : "?"}</span>
              <span class={row.kv_tokens && row.wanted_tokens > row.kv_tokens ? "bad" : ""}>wanted {tokens(row.wanted_tokens)}</span>
              {row.pins !== null && row.pins > 0 && <span>{row.pins} pins</span>}
            </>
          )
        ) : (
          <span class="bad">{row.last_error || "has not answered yet"}</span>
        )}
      </div>
    </a>
  );
}

function StateStrip() {
  const total = everyone.value.length;
  return (
    <div class="states" role="group" aria-label="Programs by state">
      {(Object.keys(STATE_WORDS) as State[]).map((state) => {
        const isOn = wanted.value.state === state;
        return (
          <button
            key={state}
            type="button"
            class={`state-button state-${state}`}
            aria-pressed={isOn}
            onClick={() => (wanted.value = { ...wanted.value, state: isOn ? "" : state })}
          >
            <span class="dot" aria-hidden="true" />
            <b>{counts.value[state]}</b> {STATE_WORDS[state]}
          </button>
        );
      })}
      <span class="bar" aria-hidden="true">
        {(Object.keys(STATE_WORDS) as State[]).map((state) => (
          <span key={state} class={`fill-${state}`} style={{ flexGrow: total ? counts.value[state] : 0 }} />
        ))}
      </span>
    </div>
  );
}

export function OverviewPage() {
  const it = overview.value!;
  return (
    <>
      {it.is_bound_too_tight && (
        <p class="banner warn">
          <span role="status">The wait bound of {span(it.max_wait_s)} is tighter than this load allows</span> (about {span(it.sensible_wait_s)}).
        </p>
      )}
      <Tiles />
      <div class="engines" aria-label="Engines">
        {engines.value.map((row) => <EngineCard key={row.engine} row={row} />)}
        {!engines.value.length && <Empty>No engines.</Empty>}
      </div>
      <Card title="Programs" aside={<Filters />}>
        <StateStrip />
        <ProgramList />
      </Card>
    </>
  );
}
