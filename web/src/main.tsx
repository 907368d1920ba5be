// The frame around all pages: navigation, theme, keyboard, login.

import { signal } from "@preact/signals";
import { render } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import "./app.css";
import { login, logout } from "./api";
import { ControlPage } from "./control";
import { DecisionsPage, pause } from "./decisions";
import { EnginesPage } from "./engines";
import { span } from "./format";
import { chosen, move } from "./list";
import { OverviewPage } from "./overview";
import { ProgramPage } from "./program";
import { go, href, route } from "./router";
import { connect, isOld, type Link, link, now, overview, session } from "./store";
import { TenantsPage } from "./tenants";
import { Card, Empty } from "./ui";

const PAGES: [string, string, string][] = [
  ["overview", "Programs", "1"],
  ["engines", "Engines", "2"],
  ["tenants", "Tenants", "3"],
  ["decisions", "Decisions", "4"],
  ["control", "Control", "5"],
];

type Theme = "auto" | "light" | "dark";
const NEXT: Record<Theme, Theme> = { auto: "light", light: "dark", dark: "auto" };
const theme = signal<Theme>("auto");

/** A browser may forbid pages to keep anything: then a theme lasts as long as the page. */
function kept(): Storage | null {
  try {
    return localStorage;
  } catch {
    return null;
  }
}

function applyTheme(wanted: Theme): void {
  theme.value = wanted;
  kept()?.setItem("agentsched-theme", wanted);
  document.documentElement.dataset.theme = wanted;
}
const before = kept()?.getItem("agentsched-theme") as Theme | null | undefined;
applyTheme(before && before in NEXT ? before : "auto");

const isHelpOpen = signal(false);

const LINK_WORDS: Record<Link, string> = {
  connecting: "connecting",
  live: "live",
  lost: "no answer, trying again",
  full: "no place free, trying again",
  locked: "locked",
};

/** Why nothing new is shown; null while there is. */
const TROUBLE: Record<Link, string | null> = {
  connecting: null,
  live: null,
  lost: "The proxy does not answer",
  full: "As many dashboards watch this proxy as may, and this one comes in as soon as another is closed",
  locked: null,
};

function Bar() {
  const page = route.value.page === "programs" ? "overview" : route.value.page;
  return (
    <header class="bar">
      <a class="brand" href={href("overview")} aria-label="agentsched, all programs">
        <svg viewBox="0 0 24 24" aria-hidden="true"><path d="M3 6h9M3 12h14M3 18h6" /><circle cx="17" cy="6" r="3" /><circle cx="14" cy="18" r="3" /></svg>
        <b>agentsched</b>
      </a>
      <nav aria-label="Pages">
        {PAGES.map(([name, title]) => (
          <a key={name} href={href(name)} aria-current={page === name ? "page" : undefined}>{title}</a>
        ))}
      </nav>
      <span class="spacer" />
      <ReplicaChip />
      {overview.value && <span class="profile" title="Profile in force">{overview.value.profile}</span>}
      <span class={`link link-${link.value}`} role="status"><span class="dot" aria-hidden="true" /><span class="word">{LINK_WORDS[link.value]}</span></span>
      <button type="button" class="icon" onClick={() => applyTheme(NEXT[theme.value])} aria-label={`Theme: ${theme.value}`} title={`Theme: ${theme.value} (t)`}>
        {theme.value === "auto" ? "◐" : theme.value === "light" ? "☀" : "☾"}
      </button>
      <button type="button" class="icon" onClick={() => (isHelpOpen.value = true)} aria-label="Keyboard" title="Keyboard (?)">?</button>
      {session.value?.csrf && (
        <button type="button" class="quiet" onClick={() => void logout().then(() => location.reload())}>Log out</button>
      )}
    </header>
  );
}

function ReplicaChip() {
  const it = overview.value?.replicas;
  if (!it) return null;
  const others = it.others.length ? `hears ${it.others.join(", ")}` : "hears no other";
  return (
    <span class="profile replica" title={`This replica, ${it.replica}, ${others}`}>
      {it.replica}
      {it.others.length > 0 && ` + ${it.others.length}`}
    </span>
  );
}

/** What went wrong between replicas; what holds anyway is said with it. */
function ReplicaBanner() {
  const it = overview.value?.replicas;
  if (!it) return null;
  return (
    <>
      {!it.is_connected && (
        <p class="banner warn" role="status">The broker does not answer: {it.replica} decides alone, and knows of no other replica.</p>
      )}
      {it.gone.map(({ replica, since }) => (
        <p key={replica} class="banner warn">
          {/* What ticks stands beside it: it would be read out again and again. */}
          <span role="status">Replica <b>{replica}</b> is gone; its programs go on wherever their next step comes.</span> Gone since {span(now.value - since)}.
        </p>
      ))}
    </>
  );
}

function Login() {
  const [key, setKey] = useState("");
  const [said, setSaid] = useState("");
  const submit = async (event: Event) => {
    event.preventDefault();
    try {
      session.value = await login(key);
      setKey("");
      connect();
    } catch (error) {
      setSaid((error as Error).message);
    }
  };
  return (
    <Card title="Log in">
      <form class="login" onSubmit={submit}>
        <p>The dashboard of this proxy needs its admin key, or an API key that may read.</p>
        <label>Key <input type="password" autocomplete="current-password" required value={key} onInput={(e) => setKey(e.currentTarget.value)} /></label>
        <button type="submit" class="primary">Log in</button>
        {said && <p class="banner bad" role="alert">{said}</p>}
      </form>
    </Card>
  );
}

function Help() {
  const dialog = useRef<HTMLDialogElement>(null);
  useEffect(() => {
    if (isHelpOpen.value) dialog.current?.showModal();
    else dialog.current?.close();
  }, [isHelpOpen.value]);
  const keys: [string, string][] = [
    ["/", "search"],
    ["j  k", "next, previous program"],
    ["Enter", "open it"],
    ["Esc", "leave the search, which stays; or back to the list"],
    ["1 … 5", "programs, engines, tenants, decisions, control"],
    ["p", "hold decisions still"],
    ["t", "light, dark or as the system"],
    ["?", "this"],
  ];
  return (
    <dialog ref={dialog} onClose={() => (isHelpOpen.value = false)} aria-labelledby="help-title">
      <h2 id="help-title">Keyboard</h2>
      <dl>{keys.map(([key, what]) => <div key={key}><dt>{key.split("  ").map((k) => <kbd key={k}>{k}</kbd>)}</dt><dd>{what}</dd></div>)}</dl>
      <button type="button" onClick={() => dialog.current?.close()}>Close</button>
    </dialog>
  );
}

function press(event: KeyboardEvent): void {
  const target = event.target as HTMLElement;
  const isTyping = /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName);
  if (event.ctrlKey || event.metaKey || event.altKey || isHelpOpen.value) return;
  if (isTyping) {
    // A search stays in force when one leaves it; the browser would empty it.
    if (event.key === "Escape" || (event.key === "Enter" && target.id === "search")) {
      target.blur();
      event.preventDefault();
    }
    return;
  }
  const page = PAGES[Number(event.key) - 1];
  const isOnList = route.value.page === "overview";
  if (event.key === "/") document.getElementById("search")?.focus();
  else if (event.key === "?") isHelpOpen.value = true;
  else if (event.key === "t") applyTheme(NEXT[theme.value]);
  else if (event.key === "p" && route.value.page === "decisions") pause();
  else if (event.key === "Escape" && route.value.page === "programs") go("overview");
  else if (isOnList && (event.key === "j" || event.key === "k")) move(event.key === "j" ? 1 : -1);
  else if (isOnList && event.key === "Enter" && chosen.value && !/^(A|BUTTON)$/.test(target.tagName)) go("programs", chosen.value);
  else if (page) go(page[0]);
  else return;
  event.preventDefault();
}

function Page() {
  const trouble = TROUBLE[link.value];
  if (link.value === "locked") return <Login />;
  if (!overview.value) {
    return <Card><Empty>{trouble ? `${trouble}; trying again.` : "Connecting…"}</Empty></Card>;
  }
  switch (route.value.page) {
    case "programs":
      return <ProgramPage key={route.value.id} id={route.value.id} />;
    case "engines":
      return <EnginesPage />;
    case "tenants":
      return <TenantsPage />;
    case "decisions":
      return <DecisionsPage />;
    case "control":
      return <ControlPage />;
    default:
      return <OverviewPage />;
  }
}

/** Tabs and the browser's history tell pages apart by their titles. */
function title(): string {
  const { page, id } = route.value;
  return [id, page === "programs" ? "" : PAGES.find(([name]) => name === page)?.[1], "agentsched"].filter(Boolean).join(" · ");
}

function App() {
  useEffect(() => void (document.title = title()), [route.value]);
  return (
    <>
      <a class="skip" href="#main" onClick={(e) => { e.preventDefault(); document.getElementById("main")?.focus(); }}>To the content</a>
      <Bar />
      <main id="main" tabIndex={-1} class={`page-${route.value.page}`}>
        {overview.value?.is_draining && <p class="banner warn" role="status">This proxy is draining: it takes no new work.</p>}
        {TROUBLE[link.value] && overview.value && <p class="banner warn" role="status">{TROUBLE[link.value]}; what is shown is the latest that is known.</p>}
        {isOld.value && (
          <p class="banner warn" role="status">
            Another version of the proxy answers than this page is of. <button type="button" onClick={() => location.reload()}>Reload</button>
          </p>
        )}
        <ReplicaBanner />
        <Page />
      </main>
      <Help />
    </>
  );
}

addEventListener("keydown", press);
render(<App />, document.getElementById("app")!);
connect();
