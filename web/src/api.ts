// Requests to the control plane. What changes something carries the session's token.

export class Refused extends Error {
  constructor(
    readonly status: number,
    message: string,
    readonly code = "",
  ) {
    super(message);
  }
}

let token = "";

/** A stream says something at least every 15 s: one that is silent for longer has no other end. */
const SILENT_MS = 40_000;

async function ask<T>(method: string, path: string, body?: string, headers: Record<string, string> = {}): Promise<T> {
  const response = await fetch(path, {
    method,
    body,
    headers: {
      ...(body === undefined ? {} : { "Content-Type": "application/json" }),
      ...(method === "GET" || !token ? {} : { "x-agentsched-csrf": token }),
      ...headers,
    },
    credentials: "same-origin",
    signal: AbortSignal.timeout(15_000),
  });
  return (await read(response)) as T;
}

/** What an answer says; a refusal is thrown. */
async function read(response: Response): Promise<unknown> {
  const text = await response.text();
  let said: unknown = null;
  try {
    said = text ? JSON.parse(text) : null;
  } catch {
    // An answer from something else than the proxy; the status tells enough.
  }
  if (!response.ok) {
    const error = (said as { error?: { message?: string; code?: string } } | null)?.error;
    throw new Refused(response.status, error?.message ?? `${response.status} ${response.statusText}`, error?.code);
  }
  return said;
}

/**
 * Follow server-sent events until the server ends them. An EventSource does not tell why it was
 * refused, nor that a line is dead.
 */
export async function follow(path: string, stop: AbortSignal, take: (data: string) => void): Promise<void> {
  const silent = new AbortController();
  const heard = <T>(next: Promise<T>): Promise<T> => {
    const alarm = setTimeout(() => silent.abort(), SILENT_MS);
    return next.finally(() => clearTimeout(alarm));
  };
  const asked = fetch(`v1/${path}`, {
    headers: { Accept: "text/event-stream" },
    credentials: "same-origin",
    cache: "no-store",
    signal: AbortSignal.any([stop, silent.signal]),
  });
  const response = await heard(asked);
  if (!response.ok || !response.body) {
    await read(response);
    return;
  }
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    const { done, value } = await heard(reader.read());
    if (done) return;
    const lines = (rest + decoder.decode(value, { stream: true })).split("\n");
    rest = lines.pop()!;
    // Each event is one line of data: JSON has no line breaks of its own.
    for (const line of lines) if (line.startsWith("data: ")) take(line.slice(6));
  }
}

export const api = {
  get: <T>(path: string) => ask<T>("GET", `v1/${path}`),
  post: <T>(path: string, body: unknown = {}, headers?: Record<string, string>) =>
    ask<T>("POST", `v1/${path}`, typeof body === "string" ? body : JSON.stringify(body), headers),
};

export const path = (id: string): string => encodeURIComponent(id);

export interface Session {
  is_open: boolean;
  name: string;
  scopes: string[];
  tenant: string | null;
  csrf: string;
}

function adopt(session: Session): Session {
  token = session.csrf;
  return session;
}

/** Exchange a key for a session; the key itself is kept nowhere. */
export const login = async (key: string): Promise<Session> => adopt(await api.post<Session>("session", { key }));

/** Who one is by the cookie that the browser has; without one, what anybody may. */
export const resume = async (): Promise<Session> => adopt(await api.get<Session>("session"));

export async function logout(): Promise<void> {
  await ask("DELETE", "v1/session");
  token = "";
}
