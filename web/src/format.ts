// Numbers and times in few characters.

export function tokens(count: number): string {
  if (count < 1_000) return String(Math.round(count));
  if (count < 100_000) return `${(count / 1_000).toFixed(1)}k`;
  if (count < 1_000_000) return `${Math.round(count / 1_000)}k`;
  return `${(count / 1_000_000).toFixed(count < 10_000_000 ? 2 : 1)}M`;
}

export function span(seconds: number | null | undefined): string {
  if (seconds === null || seconds === undefined) return "–";
  const s = Math.max(0, seconds);
  if (s < 0.0005) return "0 s";
  if (s < 1) return `${Math.round(s * 1_000)} ms`;
  if (s < 10) return `${s.toFixed(1)} s`;
  if (s < 120) return `${Math.round(s)} s`;
  if (s < 7_200) return `${Math.floor(s / 60)} min`;
  return `${(s / 3_600).toFixed(1)} h`;
}

export function percent(part: number | null | undefined): string {
  return part === null || part === undefined || !isFinite(part) ? "–" : `${Math.round(part * 100)} %`;
}

/** The part of prompts that engines said came from their caches; null where none said anything. */
export function cachedPart(row: { prompt_tokens: number; cached_tokens: number; untold_tokens: number }): number | null {
  const told = row.prompt_tokens - row.untold_tokens;
  return told > 0 ? row.cached_tokens / told : null;
}

/** The end of an id tells ids of one agent apart as well as its beginning. */
export function short(id: string, max = 28): string {
  if (id.length <= max) return id;
  const tail = Math.floor((max - 1) / 2);
  return `${id.slice(0, max - 1 - tail)}…${id.slice(-tail)}`;
}
