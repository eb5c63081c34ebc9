// The map: items in two dimensions on a canvas, and as a table for screen readers.

import { $, ask, card, colour, el, table } from "./dom.js";

const LABELS = 9; // labels with a colour of their own
const LISTED = 100;
let view = null; // stays while other views are shown

export async function map(state) {
  view ??= { by: "pca", colour: "label", zoom: 1, x: 0, y: 0 };
  state.say(view.by === "tsne" ? "Computing t-SNE; this can take a while …" : "Computing the map …");
  const data = await ask(`/map?by=${view.by}`);
  if (state.stale()) return;
  draw(state, data);
}

function draw(state, data) {
  const { points, total } = data;
  const kinds = ["label", "learner", "split"].filter((kind) => points.some((p) => p[kind] !== null));
  if (!kinds.includes(view.colour)) view.colour = kinds[0] ?? "label";
  const by = el("select", {}, el("option", { value: "pca" }, "PCA"), el("option", { value: "tsne" }, "t-SNE"));
  by.value = view.by;
  by.onchange = () => { Object.assign(view, { by: by.value, zoom: 1, x: 0, y: 0 }); state.go({}); };
  const colours = el("select", {}, kinds.map((kind) => el("option", { value: kind }, kind)));
  colours.value = view.colour;
  const buttons = [["+", "Zoom in", () => zoom(1.5)], ["−", "Zoom out", () => zoom(1 / 1.5)], ["↺", "Show all", reset]]
    .map(([text, title, act]) => {
      const button = el("button", { type: "button", "aria-label": title, title }, text);
      button.addEventListener("click", act);
      return button;
    });
  const canvas = el("canvas", { tabIndex: 0, role: "application", id: "map-canvas", "aria-describedby": "map-help",
    "aria-label": `Map of ${points.length} items` });
  const shown = el("div", { className: "shown", hidden: true });
  const legend = el("ul", { className: "legend", "aria-label": "Colours" });
  const list = el("details", { id: "map-list" });
  const sampled = points.length < total ? `, a sample of ${total.toLocaleString()}` : "";
  $("map-content").replaceChildren(
    el("div", { className: "tools" }, el("label", {}, "Layout ", by), el("label", {}, "Colour by ", colours), buttons),
    el("p", { id: "map-help", className: "dim" }, "Drag to move, scroll to zoom, click an item to search with it. "
      + "Keys: arrows move, + and − zoom, 0 shows all, N and P select the next and previous item, Enter searches with it."),
    ...(data.problem ? [el("p", { className: "dim" }, `Learners and splits are unknown: ${data.problem}`)] : []),
    el("div", { className: "chart" }, canvas, shown), legend, list);

  let classes = new Map(), at = -1, timer = 0;

  function recolour() {
    const counts = new Map();
    for (const p of points) counts.set(p[view.colour], (counts.get(p[view.colour]) ?? 0) + 1);
    const order = [...counts].sort(view.colour === "label" ? (a, b) => b[1] - a[1]
      : (a, b) => String(a[0]).localeCompare(String(b[0]), undefined, { numeric: true }));
    const named = order.filter(([value]) => value !== null && value !== -1).slice(0, view.colour === "label" ? LABELS : 10);
    classes = new Map(named.map(([value], i) => [value, view.colour === "learner" ? value : i]));
    const shownAs = (value) => (view.colour === "learner" ? `learner ${value}` : String(value));
    const others = points.length - named.reduce((sum, [, count]) => sum + count, 0);
    legend.replaceChildren(...named.map(([value, count]) => el("li", {},
      el("span", { className: `swatch c${classes.get(value) % 10}`, "aria-hidden": "true" }), `${shownAs(value)} (${count})`)),
      ...(others ? [el("li", {}, el("span", { className: "swatch none", "aria-hidden": "true" }),
        `${view.colour === "label" ? "other labels" : `no ${view.colour}`} (${others})`)] : []));
  }

  function place(p) {
    const side = Math.min(canvas.clientWidth, canvas.clientHeight) / 2 - 16;
    return [canvas.clientWidth / 2 + (p.x - view.x) * side * view.zoom, canvas.clientHeight / 2 - (p.y - view.y) * side * view.zoom];
  }

  function paint() {
    const ratio = window.devicePixelRatio || 1;
    canvas.width = canvas.clientWidth * ratio;
    canvas.height = canvas.clientHeight * ratio;
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const radius = Math.min(7, Math.max(2.5, 60 / Math.sqrt(points.length)) * Math.sqrt(view.zoom));
    points.forEach((p) => {
      const [x, y] = place(p);
      pen.globalAlpha = classes.has(p[view.colour]) ? 0.85 : 0.45;
      pen.fillStyle = colour(classes.get(p[view.colour]) ?? -1);
      pen.beginPath();
      pen.arc(x, y, radius, 0, 2 * Math.PI);
      pen.fill();
    });
    if (at < 0) return;
    const [x, y] = place(points[at]);
    pen.globalAlpha = 1;
    pen.lineWidth = 3;
    pen.strokeStyle = getComputedStyle(document.documentElement).getPropertyValue("--ink");
    pen.beginPath();
    pen.arc(x, y, radius + 4, 0, 2 * Math.PI);
    pen.stroke();
  }

  function choose(place_, spoken) {
    at = place_;
    shown.hidden = at < 0;
    if (at >= 0) {
      const p = points[at];
      const [x, y] = place(p);
      const facts = [p.split, p.learner === null ? null : p.learner < 0 ? "left out" : `learner ${p.learner}`].filter(Boolean);
      shown.replaceChildren(card({ ...p, image: `/items/${p.id}/image` }, el("span", { className: "more" }, facts.join(", "))));
      shown.firstChild.tabIndex = -1;
      shown.style.left = `${Math.max(0, Math.min(x + 14, canvas.clientWidth - 154))}px`;
      shown.style.top = `${Math.max(0, Math.min(y + 14, canvas.clientHeight - 215))}px`;
      clearTimeout(timer);
      if (spoken) timer = setTimeout(() => state.say(`Item: ${[p.label ?? "no label", ...facts].join(", ")}`), 200);
    }
    paint();
  }

  function nearest(event) {
    const box = canvas.getBoundingClientRect();
    let best = -1, least = 14 ** 2;
    points.forEach((p, i) => {
      const [x, y] = place(p);
      const far = (x - event.clientX + box.left) ** 2 + (y - event.clientY + box.top) ** 2;
      if (far < least) [best, least] = [i, far];
    });
    return best;
  }

  function zoom(factor) {
    view.zoom = Math.min(200, Math.max(0.5, view.zoom * factor));
    choose(at, false);
  }

  function reset() {
    Object.assign(view, { zoom: 1, x: 0, y: 0 });
    choose(-1, false);
  }

  function step(by_) {
    const inside = points.map((p, i) => [i, ...place(p)]).filter(([, x, y]) =>
      x >= 0 && y >= 0 && x <= canvas.clientWidth && y <= canvas.clientHeight).sort((a, b) => a[1] - b[1] || a[2] - b[2]);
    if (!inside.length) return;
    const now = inside.findIndex(([i]) => i === at);
    choose(inside[now < 0 ? (by_ > 0 ? 0 : inside.length - 1) : (now + by_ + inside.length) % inside.length][0], true);
  }

  const search = () => { if (at >= 0) state.go({ view: "search", id: String(points[at].id), upload: null }, true); };

  canvas.addEventListener("keydown", (event) => {
    const move = 0.15 / view.zoom;
    const acts = {
      ArrowLeft: () => { view.x -= move; }, ArrowRight: () => { view.x += move; }, ArrowUp: () => { view.y += move; },
      ArrowDown: () => { view.y -= move; }, "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5),
      0: reset, n: () => step(1), p: () => step(-1), Enter: search, Escape: () => choose(-1, false),
    };
    const act = acts[event.key] ?? acts[event.key.toLowerCase()];
    if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    act();
    if (event.key.startsWith("Arrow")) choose(at, false);
  });
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(event.deltaY < 0 ? 1.2 : 1 / 1.2);
  }, { passive: false });

  let drag = null;
  canvas.addEventListener("pointerdown", (event) => {
    drag = { x: event.clientX, y: event.clientY, moved: false };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!drag) {
      const hovered = nearest(event);
      if (hovered !== at) choose(hovered, false);
      return;
    }
    const dx = event.clientX - drag.x, dy = event.clientY - drag.y;
    if (!drag.moved && Math.hypot(dx, dy) < 4) return;
    const side = (Math.min(canvas.clientWidth, canvas.clientHeight) / 2 - 16) * view.zoom;
    view.x -= dx / side;
    view.y += dy / side;
    drag = { x: event.clientX, y: event.clientY, moved: true };
    choose(-1, false);
  });
  canvas.addEventListener("pointerup", (event) => {
    const clicked = drag && !drag.moved;
    drag = null;
    if (!clicked) return;
    choose(nearest(event), false);
    search();
  });
  canvas.addEventListener("pointerleave", () => { if (!drag && document.activeElement !== canvas) choose(-1, false); });

  function relist() {
    const rows = [...points].sort((a, b) => String(a[view.colour]).localeCompare(String(b[view.colour]), undefined, { numeric: true })
      || a.id - b.id);
    let many = LISTED;
    const fill = () => {
      const more = el("button", { type: "button" }, "More");
      more.addEventListener("click", () => { many += LISTED; fill(); });
      list.replaceChildren(el("summary", {}, `Show the ${points.length.toLocaleString()} items as a table`),
        table(`Items by ${view.colour}${sampled}`, ["Item", "Label", "Learner", "Split", "x", "y"], rows.slice(0, many).map((p) => [
          el("a", { href: `/?id=${p.id}`, "data-id": p.id }, `item ${p.id}`), p.label ?? "", p.learner === null ? "" : p.learner < 0 ? "left out" : String(p.learner),
          p.split ?? "", p.x.toFixed(2), p.y.toFixed(2)])), ...(many < rows.length ? [more] : []));
    };
    fill();
  }

  colours.onchange = () => { view.colour = colours.value; recolour(); relist(); paint(); };
  new ResizeObserver(() => { if (canvas.isConnected) choose(at, false); }).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").onchange = () => { if (canvas.isConnected) paint(); };
  recolour();
  relist();
  paint();
  state.say(`${points.length.toLocaleString()} items shown${sampled}.`);
}
