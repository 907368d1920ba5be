// Pages are in the address's hash: they need nothing of the server and can be linked to.

import { signal } from "@preact/signals";

export interface Route {
  page: string;
  id: string;
}

/** An address that somebody typed may have signs that stand for nothing. */
function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function read(): Route {
  const [page = "", ...rest] = location.hash.replace(/^#\/?/, "").split("/");
  return { page: page || "overview", id: decoded(rest.join("/")) };
}

export const route = signal<Route>(read());

addEventListener("hashchange", () => {
  route.value = read();
  scrollTo(0, 0);
});

export const href = (page: string, id = ""): string => `#/${page}${id ? `/${encodeURIComponent(id)}` : ""}`;

export function go(page: string, id = ""): void {
  location.hash = href(page, id);
}
