// The operator's verbs: policies, engines, and what would happen to a request.

import { useEffect, useState } from "preact/hooks";
import { api, path, Refused } from "./api";
import { short, span, tokens } from "./format";
import { engines, mayChange, overview } from "./store";
import { Card, Empty, EngineChips } from "./ui";

interface Policies {
  profile: string;
  active: Record<string, string>;
  profiles: string[];
  available: Record<string, string[]>;
}

function PolicySwitch() {
  const [known, setKnown] = useState<Policies | null>(null);
  const [profile, setProfile] = useState("");
  const [points, setPoints] = useState<Record<string, string>>({});
  const [maxWait, setMaxWait] = useState("");
  const [said, setSaid] = useState<{ text: string; isBad: boolean } | null>(null);
  const active = JSON.stringify(overview.value?.policies ?? {});
  const load = async () => {
    try {
      setKnown(await api.get<Policies>("policies"));
    } catch (error) {
      setSaid({ text: (error as Error).message, isBad: true });
    }
  };
  useEffect(() => void load(), [active, overview.value?.profile]);
  if (!known) return <Empty>{said?.text ?? "Loading…"}</Empty>;

  const submit = async (event: Event) => {
    event.preventDefault();
    const body: Record<string, unknown> = {};
    if (profile && profile !== known.profile) body.profile = profile;
    // With another profile, what is in force now has to be asked for as well: that may not have it.
    const changed = Object.entries(points).filter(([point, name]) => name && (body.profile || name !== known.active[point]));
    if (changed.length) body.policies = Object.fromEntries(changed.map(([point, name]) => [point, { name }]));
    if (maxWait) body.max_wait = maxWait;
    if (!Object.keys(body).length) return setSaid({ text: "Nothing is changed.", isBad: false });
    try {
      const now = await api.post<{ profile: string; active: Record<string, string> }>("policies", body);
      setSaid({ text: `In force: ${now.profile} (${Object.entries(now.active).map(([p, n]) => `${p} ${n}`).join(", ")})`, isBad: false });
      setPoints({});
      setProfile("");
      setMaxWait("");
      await load();
    } catch (error) {
      setSaid({ text: (error as Error).message, isBad: true });
    }
  };
  return (
    <form class="policy-form" onSubmit={submit}>
      <fieldset disabled={!mayChange.value}>
        <label>
          Profile
          <select value={profile || known.profile} onChange={(e) => { setProfile(e.currentTarget.value); setPoints({}); }}>
            {known.profiles.map((name) => <option key={name} value={name}>{name}</option>)}
          </select>
        </label>
        {Object.entries(known.available).map(([point, names]) => (
          <label key={point}>
            {point}
            <select
              value={points[point] ?? (profile && profile !== known.profile ? "" : known.active[point])}
              onChange={(e) => setPoints({ ...points, [point]: e.currentTarget.value })}
            >
              {profile && profile !== known.profile && <option value="">as the profile has it</option>}
              {names.map((name) => <option key={name} value={name}>{name}</option>)}
            </select>
          </label>
        ))}
        <label>
          Wait bound
          <input placeholder={span(overview.value?.max_wait_s)} value={maxWait} onInput={(e) => setMaxWait(e.currentTarget.value)} pattern="\s*\d+(\.\d+)?\s*(ms|s|m|h)\s*" title="A span: 30s, 2m" />
        </label>
        <button type="submit" class="primary">Put in force</button>
      </fieldset>
      {said && <p class={`banner ${said.isBad ? "bad" : "good"}`} role="status">{said.text}</p>}
    </form>
  );
}

function Engines() {
  const [said, setSaid] = useState("");
  const act = async (engine: string, verb: "drain" | "undrain") => {
    if (verb === "drain" && !confirm(`Give ${engine} no new work? Running steps go on.`)) return;
    try {
      await api.post(`engines/${path(engine)}/${verb}`);
      setSaid("");
    } catch (error) {
      setSaid((error as Error).message);
    }
  };
  return (
    <>
      {said && <p class="banner bad" role="alert">{said}</p>}
      <ul class="engine-list">
        {engines.value.map((row) => (
          <li key={row.engine}>
            <b>{row.engine}</b>
            <span class="note">{row.url}</span>
            <span class="spacer" />
            {row.running_steps !== null && <span>{row.running_steps} computing</span>}
            <EngineChips row={row} />
            <button type="button" class="quiet" disabled={!mayChange.value} onClick={() => act(row.engine, row.is_draining ? "undrain" : "drain")}>
              {row.is_draining ? "Undrain" : "Drain"}
            </button>
          </li>
        ))}
      </ul>
    </>
  );
}

const SAMPLE = JSON.stringify({ model: "MODEL", messages: [{ role: "system", content: "You fix bugs." }, { role: "user", content: "Fix issue 1." }] }, null, 2);

interface Plan {
  verdict: "dispatch" | "hold" | "reject";
  program: string;
  lineage: string;
  prompt_tokens: number;
  engine?: string;
  order?: string;
  place?: string;
  reason?: string;
  detail?: string;
  ahead?: number;
  due_in_s?: number | null;
  /** for who may see all tenants */
  engines?: { engine: string; is_up: boolean; is_silent: boolean; running_steps: number; missing_tokens: number; prefill_s: number }[];
}

function PlanForm() {
  const [body, setBody] = useState<string | null>(null);
  const [target, setTarget] = useState("/v1/chat/completions");
  const [program, setProgram] = useState("");
  const [tenant, setTenant] = useState("");
  const [plan, setPlan] = useState<Plan | null>(null);
  const [said, setSaid] = useState("");
  const model = engines.value.find((e) => e.models.length)?.models[0] ?? "model";
  const shown = body ?? SAMPLE.replace("MODEL", model);
  const submit = async (event: Event) => {
    event.preventDefault();
    const headers: Record<string, string> = {};
    if (program) headers["x-agentsched-program"] = program;
    if (tenant) headers["x-agentsched-tenant"] = tenant;
    try {
      setPlan(await api.post<Plan>(`plan${target}`, shown, headers));
      setSaid("");
    } catch (error) {
      setPlan(null);
      setSaid(error instanceof Refused ? error.message : String(error));
    }
  };
  return (
    <form class="plan" onSubmit={submit}>
      <div class="plan-fields">
        <label>
          Path
          <select value={target} onChange={(e) => setTarget(e.currentTarget.value)}>
            {["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"].map((p) => <option key={p}>{p}</option>)}
          </select>
        </label>
        <label>Program <input value={program} onInput={(e) => setProgram(e.currentTarget.value)} placeholder="recognised by its prefix" /></label>
        <label>Tenant <input value={tenant} onInput={(e) => setTenant(e.currentTarget.value)} placeholder="default" /></label>
      </div>
      <label>
        Body
        <textarea rows={7} spellcheck={false} value={shown} onInput={(e) => setBody(e.currentTarget.value)} />
      </label>
      <button type="submit" class="primary">What would happen?</button>
      {said && <p class="banner bad" role="alert">{said}</p>}
      {plan && (
        <div class={`verdict is-${plan.verdict}`} role="status">
          <p>
            <b>{plan.verdict === "dispatch" ? `Sent at once to ${plan.engine}` : plan.verdict === "hold" ? `Held: ${plan.reason}` : `Rejected: ${plan.reason} ${plan.detail ?? ""}`}</b>
            {plan.verdict === "hold" && ` ${plan.ahead} ahead of it, at the latest in ${span(plan.due_in_s)}`}
          </p>
          <dl class="facts">
            <div><dt>program</dt><dd title={plan.program}>{short(plan.program, 28)} ({plan.lineage})</dd></div>
            <div><dt>prompt</dt><dd>about {tokens(plan.prompt_tokens)} tokens</dd></div>
            {plan.order && <div><dt>order</dt><dd>{plan.order}</dd></div>}
            {plan.place && <div><dt>place</dt><dd>{plan.place}</dd></div>}
          </dl>
          {plan.engines && (
            <table>
              <thead><tr><th>Engine</th><th class="num">Computing</th><th class="num">To compute</th><th class="num">Takes</th></tr></thead>
              <tbody>
                {plan.engines.map((e) => (
                  <tr key={e.engine}>
                    <td>{e.engine}{e.engine === plan.engine ? " ✓" : ""}{!e.is_up ? " (not up)" : e.is_silent ? " (silent)" : ""}</td>
                    <td class="num">{e.running_steps}</td><td class="num">{tokens(e.missing_tokens)}</td><td class="num">{span(e.prefill_s)}</td>
                  </tr>
                ))}
              </tbody>
            </table>
          )}
        </div>
      )}
    </form>
  );
}

export function ControlPage() {
  return (
    <>
      {!mayChange.value && <p class="banner warn">This session may look, not change anything.</p>}
      <div class="columns">
        <Card title="Policies" aside={<span class="note">what waits is decided anew at once</span>}><PolicySwitch /></Card>
        <Card title="Engines"><Engines /></Card>
      </div>
      <Card title="Plan" aside={<span class="note">changes nothing</span>}><PlanForm /></Card>
    </>
  );
}
