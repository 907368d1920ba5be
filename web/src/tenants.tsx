// Tenants: what each got of the engines against what its weight entitles it to, over time.

import { percent, tokens } from "./format";
import { hue } from "./hues";
import { history, tenants, tenantsTotal } from "./store";
import type { Sample } from "./types";
import { Card, Empty, Tenant } from "./ui";

const WIDTH = 900;
const HEIGHT = 190;
const BUCKETS = 60;

interface Bucket {
  at: number;
  until: number;
  part: Map<string, number>;
}

/** Charged tokens as parts of the whole, over stretches of time. */
export function shares(samples: Sample[]): { names: string[]; buckets: Bucket[] } {
  const names = [...new Set(samples.flatMap((s) => s.tenants.map((t) => t[0])))].sort();
  const size = Math.max(2, Math.ceil((samples.length - 1) / BUCKETS));
  const buckets: Bucket[] = [];
  for (let i = 0; i + size < samples.length; i += size) {
    const from = samples[i]!;
    const to = samples[i + size]!;
    const before = new Map(from.tenants.map((t) => [t[0], t[1]]));
    const gained = to.tenants.map((t) => [t[0], Math.max(0, t[1] - (before.get(t[0]) ?? t[1]))] as const);
    const total = gained.reduce((sum, [, value]) => sum + value, 0);
    buckets.push({ at: from.at, until: to.at, part: new Map(gained.map(([n, v]) => [n, total ? v / total : 0])) });
  }
  return { names, buckets };
}

function Area({ names, buckets }: { names: string[]; buckets: Bucket[] }) {
  if (buckets.length < 2) return <Empty>Shares over time appear after a few seconds of load.</Empty>;
  const first = buckets[0]!.at;
  const whole = buckets[buckets.length - 1]!.until - first;
  const x = (at: number) => ((at - first) / whole) * WIDTH;
  const below = buckets.map(() => 0);
  return (
    <div class="area-wrap">
      <svg class="area-chart" viewBox={`0 0 ${WIDTH} ${HEIGHT}`} preserveAspectRatio="none" role="img" aria-label={`Shares of ${names.length} tenants over ${Math.round(whole / 60)} minutes`}>
        {names.map((name) => {
          let top = "";
          let bottom = "";
          buckets.forEach((bucket, i) => {
            const low = below[i]!;
            const high = low + (bucket.part.get(name) ?? 0);
            below[i] = high;
            const left = x(bucket.at).toFixed(1);
            const right = x(bucket.until).toFixed(1);
            top += `${i ? "L" : "M"}${left} ${((1 - high) * HEIGHT).toFixed(1)}H${right}`;
            bottom = `L${right} ${((1 - low) * HEIGHT).toFixed(1)}H${left}${bottom}`;
          });
          return <path key={name} class={`share hue-${hue(name)}`} d={`${top}${bottom}Z`}><title>{name}</title></path>;
        })}
        {[0.25, 0.5, 0.75].map((part) => <line key={part} class="rule" x1={0} x2={WIDTH} y1={part * HEIGHT} y2={part * HEIGHT} />)}
      </svg>
      <div class="axis"><span>{Math.round(whole / 6) / 10} min ago</span><span>now</span></div>
    </div>
  );
}

/** As agentsched/dashboard/shapes.py has it. */
const SAMPLE_TENANTS_MAX = 12;

interface Lately {
  got: number;
  /** Null where none of its work was seen to compute or wait, so that it was owed nothing. */
  entitled: number | null;
}

/** What each got of the last minute, and what it was entitled to while it had work. */
function lately(samples: Sample[]): Map<string, Lately> {
  const recent = samples.slice(-31);
  const found = new Map<string, Lately>();
  const from = recent[0];
  const to = recent[recent.length - 1];
  if (!from || !to || from === to) return found;
  const before = new Map(from.tenants.map((t) => [t[0], t[1]]));
  // Who is missing from a full sample was not among the busiest then, and may have had much.
  if (before.size >= SAMPLE_TENANTS_MAX) {
    for (const s of recent) for (const t of s.tenants) if (!before.has(t[0])) before.set(t[0], t[1]);
  }
  const gained = to.tenants.map((t) => [t[0], Math.max(0, t[1] - (before.get(t[0]) ?? 0))] as const);
  const total = gained.reduce((sum, [, value]) => sum + value, 0);
  // Where nothing computed or waited at all, nobody was owed anything.
  const busy = recent.filter((s) => s.tenants.some((t) => t[2] !== null)).length;
  for (const [name, value] of gained) {
    const claims = recent.flatMap((s) => s.tenants.filter((t) => t[0] === name).map((t) => t[2]));
    const known = claims.filter((c): c is number => c !== null);
    found.set(name, {
      got: total ? value / total : 0,
      entitled: known.length ? known.reduce((a, b) => a + b, 0) / busy : null,
    });
  }
  return found;
}

/** For people who have to answer for it: what was used, against what was owed. */
function verdict({ got, entitled }: Lately): string {
  if (entitled !== null) return `used ${percent(got)}, fair share ${percent(entitled)}`;
  return got ? `used ${percent(got)}, nothing waiting` : "idle";
}

export function TenantsPage() {
  // Who may not see all tenants has samples of its own charges: they are no part of a whole.
  const past = history.value.filter((s) => s.running_steps !== null);
  const isHidden = past.length < history.value.length;
  const { names, buckets } = shares(past);
  const recent = lately(past);
  return (
    <>
      <Card title="Share of the engines" aside={<span class="note">charged tokens, the last quarter of an hour</span>}>
        <ul class="legend">{names.map((name) => <li key={name}><Tenant name={name} /></li>)}</ul>
        {isHidden ? <Empty>What part of the engines a tenant got is for operators.</Empty> : <Area names={names} buckets={buckets} />}
      </Card>
      <Card title="Tenants" aside={<span class="note">the last minute; the mark is the fair share by weight</span>}>
        <div class="table-wrap">
          <table>
            <thead>
              <tr>
                <th>Tenant</th><th class="num">Weight</th><th class="wide">Used, and fair share</th><th class="num">Computing</th>
                <th class="num">Waiting</th><th class="num">Programs</th><th class="num">Charged</th><th class="num">Kept in pauses</th><th class="num">Steps</th>
              </tr>
            </thead>
            <tbody>
              {tenants.value.map((row) => {
                const it = recent.get(row.tenant);
                return (
                  <tr key={row.tenant}>
                    <td><Tenant name={row.tenant} /></td>
                    <td class="num">{row.weight}</td>
                    <td class="wide">
                      {it ? (
                        <div class="bullet" role="img" aria-label={verdict(it)}>
                          <span class={`fill hue-${hue(row.tenant)}`} style={{ width: `${it.got * 100}%` }} />
                          {it.entitled !== null && <span class="mark" style={{ left: `${it.entitled * 100}%` }} />}
                        </div>
                      ) : null}
                      <span class="note">{it ? verdict(it) : "–"}</span>
                    </td>
                    <td class="num">{row.running_steps}</td>
                    <td class="num">{row.waiting_steps}</td>
                    <td class="num">{row.programs}</td>
                    <td class="num">{tokens(row.charged_tokens)}</td>
                    <td class="num">{tokens(row.idle_kv_tokens)}</td>
                    <td class="num">{row.steps}</td>
                  </tr>
                );
              })}
            </tbody>
          </table>
        </div>
        {tenantsTotal.value > tenants.value.length && <p class="foot">{tenantsTotal.value} tenants; the busiest {tenants.value.length} are shown.</p>}
        {!tenants.value.length && <Empty>No tenant was served or configured yet.</Empty>}
      </Card>
    </>
  );
}
