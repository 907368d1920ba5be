// Decisions as they are made, with the policies' reasons.

import { signal } from "@preact/signals";
import { short, span } from "./format";
import { href } from "./router";
import { decisions, decisionsLeftOut, now } from "./store";
import type { Decision } from "./types";
import { Card, Empty, Tenant } from "./ui";

const WORDS: Record<string, string> = {
  dispatch: "sent",
  hold: "held",
  reject: "rejected",
  cancel: "cancelled",
  pin: "pinned",
  unpin: "unpinned",
  warm: "warmed",
  "stop-warm": "warm-up stopped",
  lost: "engine lost",
  unheard: "no answer",
  drain: "drained",
  undrain: "undrained",
  policies: "policies changed",
  tenant: "tenant set",
};

const kind = signal("");
const words = signal("");
export const frozen = signal<Decision[] | null>(null);

export function pause(): void {
  frozen.value = frozen.value ? null : decisions.value;
}

export function DecisionsPage() {
  const source = frozen.value ?? decisions.value;
  const text = words.value.toLowerCase();
  const shown = source
    .filter((d) => (!kind.value || d.kind === kind.value) && (!text || JSON.stringify(d).toLowerCase().includes(text)))
    .slice(-250)
    .reverse();
  const kinds = [...new Set(source.map((d) => d.kind))].sort();
  return (
    <Card
      title="Decisions"
      aside={
        <div class="filters">
          <input id="search" type="search" placeholder="Search decisions" aria-label="Search decisions" aria-keyshortcuts="/" value={words.value} onInput={(e) => (words.value = e.currentTarget.value)} />
          <select aria-label="Kind" value={kind.value} onChange={(e) => (kind.value = e.currentTarget.value)}>
            <option value="">Kind: all</option>
            {kinds.map((k) => <option key={k} value={k}>{WORDS[k] ?? k}</option>)}
          </select>
          <button type="button" aria-pressed={frozen.value !== null} aria-keyshortcuts="p" onClick={pause}>{frozen.value ? "Go on" : "Hold still"}</button>
        </div>
      }
    >
      <ol class="decisions" aria-label="Decisions, the latest first">
        {shown.map((d) => (
          <li key={`${d.seq}${d.kind}${d.step ?? d.program ?? d.engine}`} class={`decision is-${d.kind}`}>
            <time title={`turn ${d.seq}`}>{span(now.value - d.at)} ago</time>
            <span class={`verb verb-${d.kind}`}>{WORDS[d.kind] ?? d.kind}</span>
            <span class="who">
              {d.program ? <a href={href("programs", d.program)} title={d.program}>{short(d.program, 26)}</a> : null}
              {d.tenant ? <Tenant name={d.tenant} /> : null}
            </span>
            <span class="where">{d.engine ? `${d.kind === "dispatch" ? "→ " : ""}${d.engine}` : ""}</span>
            <span class="why">{(d.reason ?? "").split(" ").map((word, i) => {
              const [name, value] = word.split("=");
              return value === undefined ? `${word} ` : <span key={i} class="pair"><i>{name}</i>{value}</span>;
            })}</span>
            <span class="num">{d.wait_s !== undefined ? `after ${span(d.wait_s)}` : ""}</span>
          </li>
        ))}
      </ol>
      {!shown.length && <Empty>No decision {source.length ? "matches" : "yet"}.</Empty>}
      <p class="foot">The latest {Math.min(250, source.length)} of what was told{decisionsLeftOut.value > 0 && `; ${decisionsLeftOut.value.toLocaleString("en")} more in between were too many to tell`}.</p>
    </Card>
  );
}
