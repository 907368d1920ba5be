// Requests to the control plane. What changes something carries the session's token.

export class Refused extends Error {
  constructor(
    readonly status: number,
    message: string,
  ) {
    super(message);
  }
}

let token = "";

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
  const text = await response.text();
  let said: unknown = null;
  try {
    said = text ? JSON.parse(text) : null;
  } catch {
    // An answer from something else than the proxy; the status tells enough.
  }
  if (!response.ok) {
    const message = (said as { error?: { message?: string } } | null)?.error?.message;
    throw new Refused(response.status, message ?? `${response.status} ${response.statusText}`);
  }
  return said as T;
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
