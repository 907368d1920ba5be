// One program: where its time went, its timeline, its graph, what is expected, its story.

import { useState } from "preact/hooks";
import { api, path } from "./api";
import { useFetched } from "./fetching";
import { cachedPart, percent, short, span, tokens } from "./format";
import { GraphView } from "./graph";
import { go, href } from "./router";
import { link, mayChange, now, program } from "./store";
import { TimelineView } from "./timeline";
import type { Graph, ProgramDetail, Timeline } from "./types";
import { Card, Empty, StateChip, Tenant } from "./ui";

const PARTS: ["wait" | "prefill" | "decode" | "compute" | "tool", string][] = [
  ["wait", "waited"],
  ["prefill", "prompt computed"],
  ["decode", "answer computed"],
  ["compute", "computed, not streamed"],
  ["tool", "tools"],
];

function Spent({ sums }: { sums: Timeline["sums"] }) {
  const total = PARTS.reduce((sum, [kind]) => sum + sums[kind], 0);
  if (!total) return null;
  return (
    <div class="stack" role="img" aria-label={PARTS.map(([k, w]) => `${w} ${span(sums[k])}`).join(", ")}>
      {PARTS.map(([kind]) => <span key={kind} class={`span-${kind}`} style={{ flexGrow: sums[kind] / total }} />)}
    </div>
  );
}

/** The legend of the timeline says how much there was of each as well. */
function Legend({ sums }: { sums: Timeline["sums"] }) {
  const total = PARTS.reduce((sum, [kind]) => sum + sums[kind], 0);
  return (
    <ul class="legend" aria-label="Where the time went">
      {PARTS.filter(([kind]) => kind !== "compute" || sums.compute > 0).map(([kind, word]) => (
        <li key={kind}><span class={`swatch span-${kind}`} aria-hidden="true" />{word} <b>{span(sums[kind])}</b>{total > 0 && <i>{percent(sums[kind] / total)}</i>}</li>
      ))}
      <li><span class="swatch span-pause" aria-hidden="true" />paused <b>{span(sums.pause)}</b></li>
      <li><span class="swatch span-pin" aria-hidden="true" />KV pinned <b>{span(sums.pin)}</b></li>
      <li><span class="swatch span-warm" aria-hidden="true" />warmed</li>
    </ul>
  );
}

function Conversations({ detail }: { detail: ProgramDetail }) {
  return (
    <div class="table-wrap">
      <table>
        <thead>
          <tr><th>Conversation</th><th>State</th><th>Engine</th><th class="num">Steps</th><th class="num">Context</th><th>Next, as forecast</th><th class="num">Back in</th></tr>
        </thead>
        <tbody>
          {detail.conversations.map((c) => {
            const seen = detail.forecast?.conversations[c.conversation];
            const next = Object.entries(seen?.next_tools ?? {});
            const back = seen?.returns;
            const tools = [...new Set(Object.values(c.waits_for))];
            return (
              <tr key={c.conversation}>
                <td title={c.conversation}>#{short(c.conversation.split("#").pop() ?? "", 18)}</td>
                <td>
                  {c.active_steps ? "active" : tools.length ? `waits for ${short(tools.join(", "), 24)}` : c.paused_s === null ? "–" : `paused ${span(c.paused_s)}`}
                </td>
                <td>{c.engine ?? "–"}{c.is_resident ? "" : c.engine ? " (evicted)" : ""}</td>
                <td class="num">{c.steps_done}</td>
                <td class="num">{tokens(c.context_tokens)}</td>
                <td>{next.length ? next.map(([tool, p]) => `${tool} ${percent(p)}`).join(", ") : "–"}</td>
                <td class="num" title={back && !back.has_skill ? "A constant: nothing better is known yet" : undefined}>
                  {back ? `${span(back.p50_s)}${back.p90_s !== null ? ` (90 %: ${span(back.p90_s)})` : ""}` : "–"}
                </td>
              </tr>
            );
          })}
        </tbody>
      </table>
    </div>
  );
}

type Told = [string, Record<string, unknown>];
interface Story {
  entries: { seq: number; now: number; event: Told; commands: Told[] }[];
}

const DULL = new Set(["program", "tenant", "prefix", "prefixes", "conversation", "step", "parent"]);

function words(fields: Record<string, unknown>): string {
  return Object.entries(fields)
    .filter(([name, value]) => !DULL.has(name) && value !== null && value !== "" && value !== 0 && value !== false && !(Array.isArray(value) && !value.length))
    .map(([name, value]) => {
      if (Array.isArray(value)) {
        return `${name}=${value.map((v) => (typeof v === "object" && v ? ((v as { tool?: string }).tool ?? JSON.stringify(v)) : String(v))).join(",")}`;
      }
      if (typeof value === "object") return `${name}=${Object.entries(value as object).filter(([, v]) => v !== null).map(([k, v]) => `${k}:${v}`).join(",")}`;
      return `${name}=${value}`;
    })
    .map((text) => short(text, 64))
    .join("  ");
}

function StoryView({ story, steps }: { story: Story; steps: Set<string> }) {
  const first = story.entries[0]?.now ?? 0;
  const lines = story.entries.slice(-150).reverse();
  // What ended here may have let a step of another program begin: that is told there.
  const isOwn = (fields: Record<string, unknown>) => typeof fields.step !== "string" || !steps.size || steps.has(fields.step);
  return (
    <ol class="story" tabIndex={0} aria-label="Story, the latest first">
      {lines.map((entry) => (
        <li key={entry.seq}>
          <time>{((entry.now - first) / 1e9).toFixed(2)} s</time>
          <div>
            <b>{entry.event[0]}</b> <span>{words(entry.event[1])}</span>
            {entry.commands.filter(([, fields]) => isOwn(fields)).map(([kind, fields], i) => (
              <div key={i} class="command"><b>→ {kind}</b> <span>{words(fields)}</span></div>
            ))}
          </div>
        </li>
      ))}
    </ol>
  );
}

function Forecast({ detail }: { detail: ProgramDetail }) {
  const it = detail.forecast;
  if (!it) return null;
  return (
    <dl class="facts">
      <div><dt>steps left</dt><dd>{it.steps_left === null ? "no opinion yet" : `about ${it.steps_left.toFixed(1)}`}</dd></div>
      <div><dt>on the critical path</dt><dd>{it.critical_path_left === null ? "–" : it.critical_path_left.toFixed(1)}</dd></div>
      <div><dt>in parallel</dt><dd>{it.fan_out}</dd></div>
      {it.is_waiting_for_children && <div><dt>waits for</dt><dd>its sub-agents</dd></div>}
    </dl>
  );
}

export function ProgramPage({ id }: { id: string }) {
  const row = program(id);
  const key = row ? `${row.last}${row.state}${row.live}${row.steps}${Math.floor(now.value / 2)}` : Math.floor(now.value / 5);
  const base = `programs/${path(id)}`;
  const life = useFetched<Timeline>(`${base}/timeline`, key);
  const graph = useFetched<Graph>(`${base}/graph`, row ? `${row.last}${row.live}` : "", 2_500);
  const detail = useFetched<ProgramDetail>(base, key, 2_000);
  const story = useFetched<Story>(`${base}/story`, row ? `${row.last}${row.live}` : "", 2_500);
  const [said, setSaid] = useState("");
  if (life.error && !life.data) {
    return (
      <Card title="Program">
        <Empty>{life.error}</Empty>
        <p class="center"><a href={href("overview")}>All programs</a></p>
      </Card>
    );
  }
  const release = async () => {
    if (!confirm("Forget this program? What is kept for it is given up; running steps go on to their end.")) return;
    try {
      await api.post(`${base}/release`);
      go("overview");
    } catch (error) {
      setSaid((error as Error).message);
    }
  };
  const shown = row ?? life.data;
  return (
    <>
      <div class="title">
        <a class="back" href={href("overview")} aria-label="All programs">←</a>
        <h1 title={id}>{short(id, 56)}</h1>
        {row ? <StateChip state={row.state} /> : life.data && <span class="chip">{life.data.closed !== null ? "closed" : "not live"}</span>}
        <span class="spacer" />
        {row && mayChange.value && <button type="button" class="quiet danger" onClick={release}>Release</button>}
      </div>
      {said && <p class="banner bad" role="alert">{said}</p>}
      {life.error && link.value === "live" && <p class="banner warn" role="status">{life.error} What is shown is the latest that is known.</p>}
      {shown && (
        <dl class="facts wide">
          <div><dt>tenant</dt><dd><Tenant name={shown.tenant} /></dd></div>
          {shown.agent && <div><dt>agent</dt><dd>{shown.agent}</dd></div>}
          {row?.parent && <div><dt>parent</dt><dd><a href={href("programs", row.parent)}>{short(row.parent, 24)}</a></dd></div>}
          {row && (
            <>
              <div><dt>steps</dt><dd>{row.steps}{row.live ? ` + ${row.live} live` : ""}</dd></div>
              <div><dt>context</dt><dd>{tokens(row.context_tokens)} tokens</dd></div>
              <div><dt>prompt</dt><dd>{tokens(row.prompt_tokens)}, {percent(cachedPart(row))} cached</dd></div>
              <div><dt>output</dt><dd>{tokens(row.output_tokens)}</dd></div>
              <div><dt>engine</dt><dd>{row.engine || "–"}</dd></div>
              <div><dt>age</dt><dd>{span(now.value - row.opened)}</dd></div>
            </>
          )}
        </dl>
      )}
      <Card title="Timeline" aside={life.data && <span class="note">{span(life.data.closed ?? life.data.now)}</span>}>
        {life.data ? (
          <>
            <Spent sums={life.data.sums} />
            <TimelineView data={life.data} legend={<Legend sums={life.data.sums} />} />
          </>
        ) : (
          <Empty>Loading…</Empty>
        )}
      </Card>
      <Card title="Execution graph" aside={graph.data && <span class="note">{graph.data.nodes.length} nodes</span>}>
        {graph.data ? <GraphView graph={graph.data} /> : <Empty>{graph.error || "Loading…"}</Empty>}
      </Card>
      {detail.data && row && (
        <Card title="Conversations and forecast">
          <Forecast detail={detail.data} />
          <Conversations detail={detail.data} />
        </Card>
      )}
      {story.data && story.data.entries.length > 0 && (
        <Card title="Story" aside={<span class="note">the latest first</span>}>
          <StoryView story={story.data} steps={new Set(graph.data?.nodes.filter((n) => n.kind === "step").map((n) => n.node.slice(5)))} />
        </Card>
      )}
    </>
  );
}
