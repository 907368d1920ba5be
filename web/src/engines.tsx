// Engines: what each can do and has learnt, and the map of its cache.

import { useMemo, useState } from "preact/hooks";
import { api, path } from "./api";
import { useFetched } from "./fetching";
import { percent, short, span, tokens } from "./format";
import { hue } from "./hues";
import { KvBar } from "./overview";
import { href, route } from "./router";
import { engines, history, mayChange, now } from "./store";
import type { EngineRow, KvMap } from "./types";
import { Card, Empty, EngineChips, Spark, Tenant } from "./ui";

function Map_({ map }: { map: KvMap }) {
  const [picked, setPicked] = useState<number | null>(null);
  const longest = Math.max(1, ...map.rows.map((row) => row.tokens));
  const width = 1_000;
  const scale = width / longest;
  // Few conversations get tall rows, many thin ones: the map stays about as high.
  const ROW = Math.max(7, Math.min(22, Math.round(260 / Math.max(1, map.rows.length))));
  const height = map.rows.length * ROW;
  const tenants = useMemo(() => [...new Set(map.rows.map((row) => row.tenant))].sort(), [map]);
  const shared = map.blocks.filter((b) => b.rows > 1);
  const saved = shared.reduce((sum, b) => sum + b.tokens * (b.rows - 1), 0);
  const row = picked === null ? undefined : map.rows[picked];
  if (!map.rows.length) return <Empty>Nothing lies in its cache, as far as we know.</Empty>;
  return (
    <div class="map">
      <ul class="legend" aria-label="Legend">
        {tenants.slice(0, 8).map((name) => <li key={name}><Tenant name={name} /></li>)}
        <li><span class="swatch kv-shared" aria-hidden="true" />shared, held once</li>
        <li><span class="swatch kv-pinned" aria-hidden="true" />pinned</li>
        <li><span class="swatch kv-running" aria-hidden="true" />in use now</li>
      </ul>
      <p class="note">
        A row is a conversation, its length tokens of context from the first on; a block beside several rows is a prefix that they share.
        {saved > 0 && ` Sharing saves ${tokens(saved)} tokens here.`}
        {map.left_out > 0 && ` ${map.left_out} more are not shown.`}
      </p>
      <svg
        viewBox={`0 0 ${width} ${height}`}
        preserveAspectRatio="none"
        style={{ height: `${Math.max(ROW, height)}px` }}
        role="img"
        aria-label={`KV map of ${map.engine}: ${map.rows.length} conversations hold ${tokens(map.held_tokens)} tokens`}
        onMouseLeave={() => setPicked(null)}
        onMouseMove={(e) => {
          const box = e.currentTarget.getBoundingClientRect();
          const at = Math.floor(((e.clientY - box.top) / box.height) * map.rows.length);
          setPicked(at >= 0 && at < map.rows.length ? at : null);
        }}
      >
        <defs>
          <pattern id={`pinned-${map.engine}`} width="7" height="7" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">
            <rect class="stripe" width="2.6" height="7" />
          </pattern>
        </defs>
        {map.blocks.map((block) => {
          const owner = map.rows[block.row]!;
          const kind = block.rows > 1 ? "shared" : owner.running_steps ? "running" : owner.pinned_until !== null ? "pinned" : "held";
          return (
            <rect
              key={`${block.row}.${block.rows}.${block.begins}`}
              class={`kv-block kv-${kind} ${block.rows > 1 ? "" : `hue-${hue(owner.tenant)}`}`}
              x={block.begins * scale}
              y={block.row * ROW + 0.5}
              width={Math.max(0.5, block.tokens * scale - 1)}
              height={block.rows * ROW - 1}
            />
          );
        })}
        {map.rows.map((it, i) =>
          it.pinned_until === null ? null : (
            <rect key={it.conversation} x={0} y={i * ROW + 0.5} width={it.tokens * scale} height={ROW - 1} fill={`url(#pinned-${map.engine})`} />
          ),
        )}
        {picked !== null && <rect class="hover" x={0} y={picked * ROW} width={width} height={ROW} />}
      </svg>
      <div class="axis"><span>0</span><span>{tokens(longest / 2)}</span><span>{tokens(longest)} tokens</span></div>
      <p class="details" aria-live="polite">
        {row ? (
          <>
            <a href={href("programs", row.program)}>{short(row.conversation, 48)}</a>
            <span><Tenant name={row.tenant} /></span>
            <span>{tokens(row.tokens)} tokens, {tokens(row.own_tokens)} its own</span>
            <span>
              {row.running_steps ? "computing" : row.pinned_until !== null ? `pinned for ${span(row.pinned_until - map.now)} more` : row.paused_at !== null ? `paused ${span(map.now - row.paused_at)}` : ""}
            </span>
          </>
        ) : (
          <span class="note">Point at a row for whose it is.</span>
        )}
      </p>
    </div>
  );
}

function Can({ is, word }: { is: boolean; word: string }) {
  return <li class={is ? "yes" : "no"}><span aria-hidden="true">{is ? "✓" : "–"}</span> {is ? "" : "no "}{word}</li>;
}

function EnginePage({ row }: { row: EngineRow }) {
  const map = useFetched<KvMap>(`engines/${path(row.engine)}/kv`, Math.floor(now.value), 1_500);
  const [said, setSaid] = useState("");
  const past = history.value.map((s) => s.engines.find((e) => e[0] === row.engine));
  const drain = async () => {
    const verb = row.is_draining ? "undrain" : "drain";
    if (verb === "drain" && !confirm(`Give ${row.engine} no new work? Running steps go on.`)) return;
    try {
      await api.post(`engines/${path(row.engine)}/${verb}`);
      setSaid("");
    } catch (error) {
      setSaid((error as Error).message);
    }
  };
  return (
    <Card
      label={`Engine ${row.engine}`}
      title={<>{row.engine} <EngineChips row={row} /></>}
      aside={
        mayChange.value && (
          <button type="button" class="quiet" onClick={drain}>{row.is_draining ? "Take back into service" : "Drain"}</button>
        )
      }
    >
      {said && <p class="banner bad" role="alert">{said}</p>}
      {!row.is_up && row.last_error && <p class="banner bad">{row.last_error}</p>}
      {row.silent_since !== null && (
        <p class="banner bad" role="status">
          It has steps inside and nothing comes out: new steps go to other engines while one is well, those inside wait for it.
          Is its process stopped, swapping, or waiting for its GPU? Restart it if it does not go on by itself.
        </p>
      )}
      <div class="engine-facts">
        <div>
          <KvBar row={row} />
          {row.held_tokens !== null && row.pinned_tokens !== null && row.wanted_tokens !== null && (
            <p class="line small">
              <span>held <b>{tokens(row.held_tokens)}</b> of {row.kv_tokens ? tokens(row.kv_tokens) : "?"}</span>
              <span>pinned <b>{tokens(row.pinned_tokens)}</b> ({row.pins})</span>
              <span class={row.kv_tokens && row.wanted_tokens > row.kv_tokens ? "bad" : ""}>wanted <b>{tokens(row.wanted_tokens)}</b></span>
              <span>engine says <b>{percent(row.kv_usage)}</b> in use</span>
            </p>
          )}
          <ul class="can">
            <Can is={row.has_prefix_cache} word="prefix cache" />
            <Can is={row.can_pin} word="pins" />
            <Can is={row.can_order} word="priorities" />
          </ul>
        </div>
        <dl class="facts">
          {row.running_steps !== null && (
            <>
              <div><dt>address</dt><dd>{row.url}</dd></div>
              <div><dt>computing</dt><dd>{row.running_steps}{row.running_max ? ` of ${row.running_max}` : ""}{row.waiting ? `, ${row.waiting} in its own queue` : ""}</dd></div>
              <div><dt>1k prompt tokens</dt><dd>{row.samples ? span(row.prefill_us / 1e3) : "not learnt yet"}</dd></div>
              <div><dt>output token</dt><dd>{row.samples ? span(row.decode_ms / 1e3) : "not learnt yet"}</dd></div>
            </>
          )}
          {row.preemptions !== null && <div><dt>preemptions</dt><dd>{row.preemptions}</dd></div>}
          {row.models.length > 0 && <div><dt>models</dt><dd>{short(row.models.join(", "), 40)}</dd></div>}
        </dl>
        <div class="sparks">
          <label>computing<Spark values={past.map((e) => e?.[1] ?? null)} label="Steps computing" /></label>
          <label>wanted of cache<Spark values={past.map((e) => e?.[4] ?? null)} label="Part of the cache that is wanted" tone="wait" /></label>
        </div>
      </div>
      <h3>KV map</h3>
      {map.data ? <Map_ map={map.data} /> : <Empty>{map.error || "Loading…"}</Empty>}
    </Card>
  );
}

export function EnginesPage() {
  const one = route.value.id;
  const shown = engines.value.filter((row) => !one || row.engine === one);
  return (
    <>
      {one && <p class="crumb"><a href={href("engines")}>All engines</a></p>}
      {shown.map((row) => <EnginePage key={row.engine} row={row} />)}
      {!shown.length && <Card><Empty>No engine of this name.</Empty></Card>}
    </>
  );
}
