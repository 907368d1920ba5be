"use strict";
(() => {
  const views = JSON.parse(document.getElementById("data").textContent);
  const NS = "http://www.w3.org/2000/svg";
  const tip = document.getElementById("tip");
  const SERIES = 8;
  const DASHES = ["", "6 3", "2 2", "8 3 2 3", "1 3", "10 4", "4 2 1 2", "3 5"];

  const svg = (name, attributes, ...children) => {
    const node = document.createElementNS(NS, name);
    for (const key in attributes) node.setAttribute(key, attributes[key]);
    for (const child of children) node.append(child);
    return node;
  };
  const html = (name, attributes, ...children) => {
    const node = document.createElement(name);
    for (const key in attributes) {
      if (key === "text") node.textContent = attributes[key];
      else node.setAttribute(key, attributes[key]);
    }
    for (const child of children) node.append(child);
    return node;
  };
  const label = (text, attributes) => {
    const node = svg("text", attributes);
    node.textContent = text;
    return node;
  };
  const cut = (text, most) => text.length > most ? `${text.slice(0, most - 1)}…` : text;
  const color = (index) => `var(--s${index % SERIES})`;

  const span = (s) => {
    if (s === 0) return "0";
    if (s < 1) return `${Math.round(s * 1000)} ms`;
    if (s < 300) return `${s < 10 ? Math.round(s * 10) / 10 : Math.round(s)} s`;
    return s < 5400 ? `${Math.round(s / 6) / 10} min` : `${Math.round(s / 360) / 10} h`;
  };
  const amount = (n) => n >= 1e6 ? `${Math.round(n / 1e5) / 10}M` : n >= 1e4 ? `${Math.round(n / 1e3)}k`
    : n.toLocaleString("en", { maximumFractionDigits: 1 });

  const linear = (low, high, from, to) => {
    const wide = high - low || 1;
    const scale = (v) => from + ((v - low) / wide) * (to - from);
    scale.back = (x) => low + ((x - from) / (to - from)) * wide;
    const rough = wide / Math.max(2, Math.abs(to - from) / 90);
    const ten = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((m) => m * ten).find((s) => s >= rough);
    scale.ticks = [];
    for (let v = Math.ceil(low / step) * step; v <= high * 1.0001; v += step) scale.ticks.push(Number(v.toPrecision(8)));
    return scale;
  };
  const logarithmic = (low, high, from, to) => {
    const a = Math.log(low), b = Math.log(high) || 1;
    const scale = (v) => from + ((Math.log(Math.max(v, low)) - a) / (b - a || 1)) * (to - from);
    scale.back = (x) => Math.exp(a + ((x - from) / (to - from)) * (b - a));
    const all = [];
    for (let ten = -4; ten < 6; ten += 1) for (const m of [1, 2, 5]) all.push(m * 10 ** ten);
    scale.ticks = all.filter((v) => v >= low * 0.999 && v <= high * 1.001);
    const room = Math.max(2, Math.abs(to - from) / 60);
    if (scale.ticks.length > room) scale.ticks = scale.ticks.filter((v) => Math.abs(Math.log10(v) % 1) < 1e-9);
    return scale;
  };

  const show = (text, event) => {
    tip.textContent = text;
    tip.style.display = "block";
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - box.width - 6))}px`;
    const below = event.clientY + 18;
    tip.style.top = `${below + box.height > innerHeight ? event.clientY - box.height - 12 : below}px`;
  };
  const hide = () => { tip.style.display = "none"; };
  addEventListener("scroll", hide, true);
  addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });

  // Draws again whenever the room for it changes.
  const drawn = (place, draw) => {
    let before = 0;
    const again = () => {
      const width = Math.floor(place.clientWidth);
      if (!width || width === before) return;
      before = width;
      place.replaceChildren(draw(width));
    };
    new ResizeObserver(again).observe(place);
    again();
    return () => { before = 0; again(); };
  };
  const canvas = (width, height, title) =>
    svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title });
  const bottomAxis = (out, scale, format, y, height) => {
    for (const tick of scale.ticks) {
      out.append(svg("line", { class: "grid", x1: scale(tick), x2: scale(tick), y1: y - height, y2: y }));
      out.append(label(format(tick), { x: scale(tick), y: y + 17, "text-anchor": "middle" }));
    }
    out.append(svg("line", { class: "axis", x1: scale.from, x2: scale.to, y1: y, y2: y }));
  };
  const legend = (names, paint, kind) => html("div", { class: "legend" }, ...names.map((name, index) => {
    const mark = html("i", { class: kind || "" });
    mark.style.background = paint(index);
    return html("span", {}, mark, name);
  }));

  // Distributions: the share of all (programs, calls) that took at most so long.
  const curves = (place, rows, arms, { log, title }) => {
    const shown = rows.filter((row) => row.values.length);
    if (!shown.length) return;
    const target = html("div");
    place.append(legend(shown.map((row) => row.arm), (i) => color(arms.indexOf(shown[i].arm)), "line"), target);
    drawn(target, (width) => {
      const height = 260, left = 44, right = 14, bottom = 226, top = 8;
      const all = shown.flatMap((row) => row.values);
      const high = Math.max(...all), small = Math.max(Math.min(...all.filter((v) => v > 0)), high / 1e4);
      const x = log ? logarithmic(small * 0.9, high * 1.05, left, width - right) : linear(0, high * 1.02, left, width - right);
      const y = linear(0, 1, bottom, top);
      const out = canvas(width, height, title);
      for (const share of [0, 0.25, 0.5, 0.75, 0.95]) {
        out.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: y(share), y2: y(share) }));
        out.append(label(`${share * 100} %`, { x: left - 6, y: y(share) + 4, "text-anchor": "end" }));
      }
      x.from = left; x.to = width - right;
      bottomAxis(out, x, span, bottom, 4);
      for (const row of shown) {
        const index = arms.indexOf(row.arm);
        const points = row.values.map((v, i) => `${x(v).toFixed(1)},${y(row.shares[i]).toFixed(1)}`);
        out.append(svg("polyline", { points: points.join(" "), fill: "none", stroke: color(index), "stroke-width": 2.2, "stroke-dasharray": DASHES[index % SERIES], "stroke-linejoin": "round" }));
      }
      const line = svg("line", { class: "one", y1: top, y2: bottom, visibility: "hidden" });
      const field = svg("rect", { x: left, y: top, width: width - right - left, height: bottom - top, fill: "transparent" });
      field.addEventListener("pointermove", (event) => {
        const at = event.clientX - out.getBoundingClientRect().left, value = x.back(at);
        line.setAttribute("x1", at); line.setAttribute("x2", at); line.setAttribute("visibility", "visible");
        show([`within ${span(value)}`, ...shown.map((row) => {
          let share = 0;
          row.values.forEach((v, i) => { if (v <= value) share = row.shares[i]; });
          return `${row.arm}: ${Math.round(share * 100)} %`;
        })].join("\n"), event);
      });
      field.addEventListener("pointerleave", () => { hide(); line.setAttribute("visibility", "hidden"); });
      out.append(line, field);
      return out;
    });
  };

  // Ratios with their intervals: the page's claim, and how sure it is.
  const forest = (place, rows) => drawn(place, (width) => {
    const narrow = width < 560, left = narrow ? 8 : 210, right = narrow ? 8 : 190, step = narrow ? 58 : 40;
    const height = rows.length * step + 44;
    const values = rows.flatMap((r) => [r.low, r.high, r.value, ...r.by_repeat]).filter((v) => v > 0 && v < 1e6);
    const low = Math.max(0.02, Math.min(0.8, ...values) * 0.9), high = Math.min(50, Math.max(1.25, ...values) * 1.1);
    const x = logarithmic(low, high, left, width - right);
    // 1 always has its tick; others as far as their labels do not touch.
    const kept = [1];
    for (const v of [0.1, 10, 0.5, 2, 0.2, 5, 0.05, 20, 0.7, 1.5, 0.3, 3, 0.02, 50, 0.8, 1.2, 0.9, 1.1, 0.6, 0.4]) {
      if (v >= low && v <= high && kept.every((k) => Math.abs(x(k) - x(v)) > 44)) kept.push(v);
    }
    x.ticks = kept.sort((p, q) => p - q);
    x.from = left; x.to = width - right;
    const out = canvas(width, height, "Ratios of job completion time with 95 % intervals");
    const bottom = height - 32;
    bottomAxis(out, x, (v) => `${v}×`, bottom, bottom - 6);
    out.append(svg("line", { class: "one", x1: x(1), x2: x(1), y1: 2, y2: bottom }));
    rows.forEach((row, index) => {
      const y = index * step + (narrow ? 36 : 22), paint = color(row.index);
      const clip = (v) => Math.min(x.to, Math.max(x.from, x(v)));
      out.append(narrow ? label(`${cut(row.arm, 22)}: ${row.value.toFixed(2)}, ${row.word}`, { class: "strong", x: left, y: y - 14 })
        : label(cut(row.arm, 29), { class: "strong", x: left - 14, y: y + 4, "text-anchor": "end" }));
      out.append(svg("line", { x1: clip(row.low), x2: clip(row.high), y1: y, y2: y, stroke: paint, "stroke-width": 4, "stroke-linecap": "round", opacity: 0.55 }));
      for (const value of row.by_repeat) out.append(svg("line", { x1: clip(value), x2: clip(value), y1: y - 8, y2: y + 8, stroke: paint, "stroke-width": 1.5, opacity: 0.7 }));
      const dot = svg("circle", { cx: clip(row.value), cy: y, r: 6, fill: paint, tabindex: 0 });
      dot.addEventListener("pointermove", (event) => show(row.sentence, event));
      dot.addEventListener("pointerleave", hide);
      out.append(dot);
      if (!narrow) out.append(label(`${row.value.toFixed(2)}  ${row.word}`, { class: "strong", x: width - right + 14, y: y + 4 }));
    });
    return out;
  });

  const LANE = 11, GAP = 6;
  const laneRows = (bar) => Math.min(bar.lanes.length, 5);
  const say = (bar, call, phase) => [
    `${bar.name.split("/").slice(-2).join("/")}, step ${call[8]}${call[9] ? `, ${call[9]}` : ""}`, phase,
    `prompt ${call[4].toLocaleString("en")} tokens${call[5] >= 0 ? `, ${call[5].toLocaleString("en")} from the cache` : ""}, answer ${call[6].toLocaleString("en")}`,
    call[10] ? `error: ${call[10]}` : "",
  ].filter(Boolean).join("\n");
  const block = (out, x, y, height, from, to, paint, text, extra) => {
    if (to <= from) return;
    const node = svg("rect", { x: x(from).toFixed(2), y, width: Math.max(0.6, x(to) - x(from)).toFixed(2), height, fill: paint, ...(extra || {}) });
    node.addEventListener("pointermove", (event) => show(text, event));
    node.addEventListener("pointerleave", hide);
    out.append(node);
  };
  const laneOf = (out, bar, lane, x, y, height) => {
    lane.calls.forEach((call, index) => {
      const [sent, held, first, end] = call, tried = call[12], next = lane.calls[index + 1];
      block(out, x, y, height, sent, tried, "var(--refused)", say(bar, call, `turned away, came back after ${span(tried - sent)}`));
      block(out, x, y, height, tried, held, "var(--held)", say(bar, call, `held by the proxy ${span(held - tried)}`));
      block(out, x, y, height, held, first, "var(--first)", say(bar, call, `to the first token ${span(first - held)} (queue and prefill)`));
      block(out, x, y, height, first, end, call[10] ? "var(--error)" : "var(--answer)", say(bar, call, `answering ${span(end - first)}`));
      if (next) {
        const known = next[7], kept = next[5] < 0 || !known ? null : next[5] / known;
        const paint = kept === null ? "var(--unknown)" : kept >= 0.8 ? "var(--kept)" : "var(--lost)";
        const fate = kept === null ? "" : `\n${Math.round(Math.min(1, kept) * 100)} % of its KV was still there at its return`;
        block(out, x, y + height * 0.25, height * 0.5, end, next[0], paint, `${say(bar, call, `paused ${span(next[0] - end)}${call[11] ? `: ${call[11]}` : ""}`)}${fate}`);
      }
    });
    for (const [from, to, ended] of lane.pins) block(out, x, y + height, 2.5, from, to, "var(--pin)", `${bar.name}\npinned ${span(to - from)}, ${ended}`);
  };

  const timeline = (place, run, zoom, open) => {
    const names = html("div", { class: "names" }), field = html("div", { class: "scroll" });
    place.replaceChildren(html("div", { class: "lanes" }, names, field));
    names.style.paddingTop = "4px";
    for (const bar of run.programs) {
      const button = html("button", { type: "button", text: `\u200e${bar.name}`, title: bar.name, "aria-expanded": "false" });
      button.style.height = `${laneRows(bar) * LANE + GAP}px`;
      button.style.lineHeight = `${LANE + 2}px`;
      button.addEventListener("click", () => open(bar, button));
      names.append(button);
    }
    drawn(field, (room) => {
      const width = Math.round(room * zoom) - 2, rows = run.programs.reduce((sum, bar) => sum + laneRows(bar) * LANE + GAP, 0);
      const height = rows + 34, x = linear(0, run.length, 6, width - 16);
      x.from = 6; x.to = width - 16;
      const out = canvas(width, height, "Timeline of programs");
      out.style.width = `${width}px`;
      out.style.cursor = "pointer";
      bottomAxis(out, x, span, rows + 8, rows + 4);
      let y = 4;
      for (const bar of run.programs) {
        bar.lanes.slice(0, laneRows(bar)).forEach((lane, index) => laneOf(out, bar, lane, x, y + index * LANE, LANE - 3));
        y += laneRows(bar) * LANE + GAP;
      }
      out.addEventListener("click", (event) => {
        const at = event.clientY - out.getBoundingClientRect().top;
        let top = 4;
        for (const bar of run.programs) {
          const tall = laneRows(bar) * LANE + GAP;
          if (at >= top && at < top + tall) { open(bar); return; }
          top += tall;
        }
      });
      return out;
    });
  };

  const program = (place, bar) => {
    const heading = html("h3", { text: bar.name }), field = html("div");
    const facts = html("p", { class: "soft", text: `${bar.outcome} after ${span(bar.end - bar.start)}, ${bar.lanes.reduce((n, lane) => n + lane.calls.length, 0)} calls${bar.tenant ? `, tenant ${bar.tenant}` : ""}` });
    const rows = bar.lanes.flatMap((lane) => lane.calls.map((call) => [lane, call])).sort((a, b) => a[1][0] - b[1][0]);
    const head = ["step", "sent", "turned away", "held", "to first token", "answering", "prompt", "cached", "answer", "engine", "then"];
    const table = html("table", {}, html("thead", {}, html("tr", {}, ...head.map((text) => html("th", { scope: "col", text })))), html("tbody", {}, ...rows.map(([lane, call]) => html("tr", {}, ...[
      bar.lanes.indexOf(lane) ? `sub ${bar.lanes.indexOf(lane)}, ${call[8]}` : String(call[8]), span(call[0]), call[12] > call[0] ? span(call[12] - call[0]) : "-", span(call[1] - call[12]), span(call[2] - call[1]), span(call[3] - call[2]),
      call[4].toLocaleString("en"), call[5] < 0 ? "-" : call[5].toLocaleString("en"), call[6].toLocaleString("en"), call[9] || "-", call[10] || call[11] || "-",
    ].map((text) => html("td", { text }))))));
    place.replaceChildren(html("div", { class: "detail" }, heading, facts, field, html("div", { class: "scroll tall" }, table)));
    drawn(field, (width) => {
      const tall = 22, height = bar.lanes.length * (tall + 10) + 34;
      const x = linear(bar.start, bar.end, 4, width - 14), out = canvas(width, height, `Gantt of ${bar.name}`);
      x.from = 4; x.to = width - 14;
      bottomAxis(out, x, (v) => span(v), height - 26, height - 30);
      bar.lanes.forEach((lane, index) => laneOf(out, bar, lane, x, index * (tall + 10) + 4, tall));
      return out;
    });
  };

  // Stacks over time: who has the cache, who had the engines.
  const stack = (place, layers, { most, format, title, line, paint }) => drawn(place, (width) => {
    const height = 250, left = 52, right = 14, bottom = 216, top = 10;
    const sums = layers.times.map((_, i) => layers.values.reduce((sum, row) => sum + row[i], 0));
    const high = most || Math.max(...sums, line || 0) * 1.05;
    const x = linear(0, layers.times[layers.times.length - 1], left, width - right), y = linear(0, high, bottom, top);
    x.from = left; x.to = width - right;
    const out = canvas(width, height, title);
    for (const tick of y.ticks) {
      out.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: y(tick), y2: y(tick) }));
      out.append(label(format(tick), { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }));
    }
    bottomAxis(out, x, span, bottom, 4);
    const base = layers.times.map(() => 0);
    layers.values.forEach((row, index) => {
      const upper = row.map((v, i) => base[i] + v);
      const points = [...layers.times.map((t, i) => `${x(t).toFixed(1)},${y(upper[i]).toFixed(1)}`), ...layers.times.map((t, i) => `${x(t).toFixed(1)},${y(base[i]).toFixed(1)}`).reverse()];
      out.append(svg("polygon", { points: points.join(" "), fill: paint(index), stroke: "var(--card)", "stroke-width": 0.6 }));
      upper.forEach((v, i) => { base[i] = v; });
    });
    if (line) {
      out.append(svg("line", { class: "one", x1: left, x2: width - right, y1: y(line), y2: y(line), "stroke-dasharray": "5 4" }));
      out.append(label(`room for ${format(line)}`, { x: width - right, y: y(line) - 5, "text-anchor": "end" }));
    }
    const field = svg("rect", { x: left, y: top, width: Math.max(0, width - right - left), height: bottom - top, fill: "transparent" });
    field.addEventListener("pointermove", (event) => {
      const box = out.getBoundingClientRect(), at = x.back(event.clientX - box.left), here = y.back(event.clientY - box.top);
      const i = layers.times.reduce((best, t, n) => Math.abs(t - at) < Math.abs(layers.times[best] - at) ? n : best, 0);
      let sum = 0, name = "";
      layers.values.forEach((row, n) => { if (here >= sum && here < sum + row[i]) name = `${layers.names[n]}: ${format(row[i])}`; sum += row[i]; });
      show([`at ${span(layers.times[i])}`, name, most ? "" : `all: ${format(sum)}`].filter(Boolean).join("\n"), event);
    });
    field.addEventListener("pointerleave", hide);
    out.append(field);
    return out;
  });

  const explore = (root, view) => {
    const find = (name) => root.querySelector(`[data-part="${name}"]`);
    const arm = find("arm"), repeat = find("repeat");
    if (!arm || !view.runs.length) return;
    const zoomed = find("zoom");
    let zoom = 1;
    const open = (bar) => {
      for (const button of find("timeline").querySelectorAll("button")) button.setAttribute("aria-expanded", String(button.title === bar.name));
      program(find("program"), bar);
    };
    const draw = () => {
      const run = view.runs.find((r) => r.arm === arm.value && String(r.repeat) === repeat.value) || view.runs.find((r) => r.arm === arm.value);
      if (!run) return;
      timeline(find("timeline"), run, zoom, open);
      find("left").textContent = run.left_out ? `The first ${run.programs.length} of ${run.programs.length + run.left_out} programs.` : "";
      const kept = find("occupancy"), shared = find("shares");
      kept.replaceChildren(); shared.replaceChildren();
      if (run.occupancy) {
        const field = html("div");
        kept.append(field);
        stack(field, run.occupancy, { format: amount, title: "KV tokens by program over time", line: run.arm.startsWith("unlimited") ? 0 : view.capacity, paint: (i) => run.occupancy.names[i] === "shared by several" ? "var(--unknown)" : `color-mix(in oklab, ${color(1 + i % 7)} ${i < 7 ? 85 : 50}%, var(--card))` });
      } else kept.append(html("p", { class: "soft", text: "The engine did not say how many tokens came from its cache." }));
      root.querySelector('[data-part="shares-panel"]').hidden = !run.shares;
      if (run.shares) {
        const field = html("div");
        shared.append(legend(run.shares.names, (i) => color(i + 1)), field);
        stack(field, run.shares, { most: 1, format: (v) => `${Math.round(v * 100)} %`, title: "Share of service by tenant", paint: (i) => color(i + 1) });
      }
      const totals = find("totals"), list = find("decisions");
      const kinds = Object.entries(run.totals);
      totals.textContent = kinds.length ? kinds.map(([kind, n]) => `${n.toLocaleString("en")} ${kind}`).join(" · ") : "This arm keeps no journal: what it decided is not known.";
      list.replaceChildren(...run.decisions.map(([at, kind, text, whose]) => html("tr", {}, html("td", { text: span(at) }), html("td", { text: kind }), html("td", { text }), html("td", { text: whose }))));
      find("decisions-table").hidden = !run.decisions.length;
    };
    const repeats = () => {
      const known = view.runs.filter((r) => r.arm === arm.value);
      repeat.replaceChildren(...known.map((r) => html("option", { value: String(r.repeat), text: String(r.repeat + 1) })));
    };
    arm.addEventListener("change", () => { repeats(); draw(); });
    repeat.addEventListener("change", draw);
    zoomed.addEventListener("change", () => { zoom = Number(zoomed.value); draw(); });
    repeats();
    draw();
    const only = view.runs[0].programs;
    if (only.length === 1) open(only[0]);
  };

  views.forEach((view, index) => {
    const root = document.getElementById(`result-${index}`);
    const at = (name) => root.querySelector(`[data-part="${name}"]`);
    const ratios = at("forest");
    if (ratios) forest(ratios, JSON.parse(ratios.dataset.rows));
    curves(at("jct"), view.jct, view.arms, { log: false, title: "Distribution of job completion times" });
    curves(at("ttft"), view.ttft, view.arms, { log: true, title: "Distribution of times to the first token" });
    explore(root, view);
  });
})();
