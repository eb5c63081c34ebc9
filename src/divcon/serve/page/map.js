// The map: items in two dimensions as a picture, and as a table for screen readers.

import { $, ask, card, el, picture, table } from "./dom.js";
import { createScatter, palette, scale } from "./scatter.js";

const LISTED = 100; // rows of the table at first, and with each "More"
const NAMED = 12; // entries of the legend
const SUGGESTED = 50;
const BINS = 24; // colours of a scale
const NAMES = { tsne: "t-SNE", umap: "UMAP", pca: "PCA" };
let view = null; // stays while other views are shown
let scatter = null;

const inWords = ({ step, done }) => (step === null || step === undefined ? "Reading the items …"
  : `Laying the items out: ${step}${done === null ? " …" : `, ${Math.round(100 * done)} % …`}`);
const collator = new Intl.Collator(undefined, { numeric: true });
const learnerName = (value) => (value < 0 ? "left out" : `learner ${value}`);

export async function map(state) {
  view ??= { by: "auto", colour: "label", zoom: 1, x: 0, y: 0, thumbs: true, chosen: [] };
  state.say("Reading the items …");
  const data = await ask(`/map?by=${view.by}`, { waiting: (about) => { if (!state.stale()) state.say(inWords(about)); } });
  if (state.stale()) return;
  await draw(state, data);
}

/** What points can be coloured by: `names`, and `of`, the place of each point's value among them. */
function kindOf(name, { names, of }) {
  const shown = name === "learner" ? names.map(learnerName) : names.map(String);
  const counts = new Uint32Array(names.length);
  for (const place of of) if (place >= 0) counts[place] += 1;
  return { name, names, shown, of: Int32Array.from(of), counts };
}

async function draw(state, data) {
  const { ids, total } = data, count = ids.length;
  const kinds = new Map(Object.entries(data.kinds).map(([name, kind]) => [name, kindOf(name, kind)]));
  const labels = kinds.get("label"), learners = kinds.get("learner"), splits = kinds.get("split");
  const columns = data.columns.filter((name) => !kinds.has(name));
  const options = [...kinds.keys(), ...columns];
  if (!options.includes(view.colour)) view.colour = options[0] ?? "label";
  view.chosen = view.chosen.filter(({ kind, name }) => kinds.get(kind)?.names.includes(name));
  const by = el("select", {}, data.layouts.map((name) => el("option", { value: name }, NAMES[name])));
  by.value = view.by === "auto" ? data.layouts[0] : view.by;
  by.onchange = () => { Object.assign(view, { by: by.value, zoom: 1, x: 0, y: 0 }); state.go({}); };
  const colours = el("select", {}, options.map((kind) => el("option", { value: kind }, kind)));
  colours.value = view.colour;
  const buttons = [["+", "Zoom in", () => scatter.zoom(1.5)], ["−", "Zoom out", () => scatter.zoom(1 / 1.5)],
    ["↺", "Show all", () => scatter.reset()]].map(([text, title, act]) => {
    const button = el("button", { type: "button", "aria-label": title, title }, text);
    button.addEventListener("click", act);
    return button;
  });
  const images = state.about.sees === "images";
  const thumbs = el("input", { type: "checkbox", id: "map-thumbs" });
  thumbs.checked = view.thumbs;
  thumbs.onchange = () => { view.thumbs = thumbs.checked; scatter.thumbnails(); };
  const find = el("input", { id: "map-find", list: "map-labels", autocomplete: "off", placeholder: "type a label" });
  const suggestions = el("datalist", { id: "map-labels" });
  const finder = el("form", { className: "found" }, el("label", {}, "Find a label ", find), suggestions);
  const chips = el("ul", { className: "chips", id: "map-chosen", "aria-label": "Lit up" });
  const chart = el("div", { className: "chart" });
  const shown = el("div", { className: "shown", hidden: true });
  const legend = el("ul", { className: "legend", "aria-label": "Colours" });
  const summary = el("summary", {}, `Show the ${count.toLocaleString()} items as a table`);
  const list = el("details", { id: "map-list" }, summary);
  const sampled = count < total ? `, a sample of ${total.toLocaleString()}` : "";
  const notes = [data.note, data.problem && `Learners and splits are unknown: ${data.problem}.`].filter(Boolean);
  $("map-content").replaceChildren(
    el("div", { className: "tools" }, el("label", {}, "Layout ", by), el("label", {}, "Colour by ", colours),
      labels ? finder : null, images ? el("label", { className: "thumbs-off" }, thumbs, "Thumbnails") : null, buttons),
    chips, chart, legend,
    el("p", { id: "map-help", className: "dim" }, "Drag to move, scroll or pinch to zoom, point at an item to light up its "
      + "label, click it to search with it. Keys: arrows move, + and − zoom, 0 shows all, N and P select the next and "
      + "previous item, Enter searches with it."),
    ...notes.map((text) => el("p", { className: "dim" }, text)), list);

  scatter?.end();
  let pointed = -1, timer = 0, fetched = 0;
  const facts = (i) => [splits && splits.of[i] >= 0 ? splits.names[splits.of[i]] : null,
    learners && learners.of[i] >= 0 ? learners.shown[learners.of[i]] : null].filter(Boolean);
  const labelOf = (i) => (labels && labels.of[i] >= 0 ? labels.names[labels.of[i]] : null);

  function onChoose(i, spoken) {
    clearTimeout(timer);
    clearTimeout(fetched);
    shown.hidden = i < 0;
    const label = i < 0 || !labels ? -1 : labels.of[i];
    if (label !== pointed) {
      pointed = label;
      lightUp(false);
    }
    if (i < 0) return;
    const item = { id: ids[i], label: labelOf(i), path: "", image: `/items/${ids[i]}/image` };
    const fill = (of) => {
      shown.replaceChildren(card(of, el("span", { className: "more" }, facts(i).join(", "))));
      shown.firstChild.tabIndex = -1;
    };
    fill(item);
    const [x, y] = scatter.place(i), { clientWidth: w, clientHeight: h } = scatter.canvas;
    shown.style.left = `${Math.max(0, x + 168 > w ? x - 164 : x + 14)}px`;
    shown.style.top = `${Math.max(0, Math.min(y + 14, h - 235))}px`;
    if (spoken) timer = setTimeout(() => state.say(`Item: ${[item.label ?? "no label", ...facts(i)].join(", ")}`), 200);
    fetched = setTimeout(() => ask(`/items/${ids[i]}`).then((full) => { if (scatter.at === i && !shown.hidden) fill(full); })
      .catch(() => {}), 150);
  }

  /** Light up what is chosen; while an item is pointed at, its label. */
  function lightUp(stay = true) {
    const wanted = pointed >= 0 ? [[labels, pointed]]
      : view.chosen.map(({ kind, name }) => [kinds.get(kind), kinds.get(kind).names.indexOf(name)]);
    if (!wanted.length) return scatter.light(null, [], stay);
    const lit = new Uint8Array(count), names = [];
    for (const [kind, value] of wanted) {
      const at = [];
      for (let i = 0; i < count; i++) if (kind.of[i] === value) { lit[i] = 1; at.push(i); }
      const mid = (axis) => at.map((i) => axis[i]).sort((a, b) => a - b)[at.length >> 1];
      if (names.length < 12) names.push({ text: kind.shown[value], x: mid(x), y: mid(y) });
    }
    return scatter.light(lit, names, stay);
  }

  function relight() {
    chips.replaceChildren(...view.chosen.map((one) => {
      const kind = kinds.get(one.kind), value = kind.names.indexOf(one.name), text = kind.shown[value];
      const remove = el("button", { type: "button", "aria-label": `Remove ${text}` },
        `${text} (${kind.counts[value].toLocaleString()}) ✕`);
      remove.addEventListener("click", () => { toggle(one.kind, one.name); find.focus(); });
      return el("li", {}, remove);
    }));
    for (const button of legend.querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(view.chosen.some((one) => one.kind === view.colour
        && kinds.get(one.kind)?.names.indexOf(one.name) === Number(button.dataset.value))));
    }
    lightUp();
  }

  function toggle(kind, name) {
    const others = view.chosen.filter((one) => one.kind !== kind || one.name !== name);
    view.chosen = others.length < view.chosen.length ? others : [...others, { kind, name }];
    relight();
  }

  /** Choose the label that was typed, and bring it into view. */
  function choose(text) {
    const wanted = text.trim().toLocaleLowerCase();
    if (!wanted) return;
    const folded = labels.shown.map((name) => name.toLocaleLowerCase());
    let place = labels.shown.indexOf(text.trim());
    if (place < 0) place = folded.indexOf(wanted);
    if (place < 0) place = folded.findIndex((name) => name.includes(wanted));
    if (place < 0) {
      state.say(`No label contains “${text.trim()}”.`);
      return;
    }
    const name = labels.names[place];
    if (!view.chosen.some((one) => one.kind === "label" && one.name === name)) view.chosen.push({ kind: "label", name });
    find.value = "";
    suggestions.replaceChildren();
    relight();
    const at = [...ids.keys()].filter((i) => labels.of[i] === place);
    if (!at.some((i) => scatter.inside(i))) scatter.show(at);
    state.say(`${labels.shown[place]}: ${at.length.toLocaleString()} items lit up.`);
  }
  find.addEventListener("input", (event) => {
    const picked = !(event instanceof InputEvent) || event.inputType === "insertReplacementText";
    if (picked && labels.shown.includes(find.value)) { choose(find.value); return; }
    const wanted = find.value.trim().toLocaleLowerCase();
    const matching = wanted ? labels.shown.filter((name) => name.toLocaleLowerCase().includes(wanted)) : [];
    const first = (name) => (name.toLocaleLowerCase().startsWith(wanted) ? 0 : 1);
    matching.sort((a, b) => first(a) - first(b) || collator.compare(a, b));
    suggestions.replaceChildren(...matching.slice(0, SUGGESTED).map((name) => el("option", { value: name })));
  });
  finder.addEventListener("submit", (event) => { event.preventDefault(); choose(find.value); });

  async function recolour() {
    const wanted = view.colour;
    let kind = kinds.get(wanted), numbers = null;
    if (!kind && columns.includes(wanted)) {
      const column = await ask(`/map/column?name=${encodeURIComponent(wanted)}&by=${by.value}`);
      if (view.colour !== wanted || !chart.isConnected) return;
      if (column.numbers) numbers = column.numbers;
      else kinds.set(wanted, kind = kindOf(wanted, column));
    }
    if (numbers) { recolourByScale(wanted, numbers); return; }
    if (!kind) { scatter.colour(new Int32Array(count).fill(-1), []); legend.replaceChildren(); return; }
    const order = [...kind.names.keys()].sort(wanted === "learner" ? (a, b) => kind.names[a] - kind.names[b]
      : (a, b) => kind.counts[b] - kind.counts[a] || collator.compare(kind.shown[a], kind.shown[b]));
    const turn = new Int32Array(kind.names.length);
    order.forEach((value, i) => { turn[value] = wanted === "learner" ? kind.names[value] : i; });
    const all = palette(30);
    scatter.colour(Int32Array.from(kind.of, (value) => (value < 0 || turn[value] < 0 ? -1 : turn[value] % 30)), all);
    const missing = count - kind.counts.reduce((sum, n) => sum + n, 0);
    const swatch = (value) => {
      const node = el("span", { className: turn[value] < 0 ? "swatch none" : "swatch", "aria-hidden": "true" });
      if (turn[value] >= 0) node.style.background = `rgb(${all[turn[value] % 30]})`;
      return node;
    };
    const entries = order.slice(0, NAMED).map((value) => {
      const button = el("button", { type: "button", "data-value": value }, swatch(value),
        `${kind.shown[value]} (${kind.counts[value].toLocaleString()})`);
      button.addEventListener("click", () => toggle(wanted, kind.names[value]));
      return el("li", {}, button);
    });
    const more = order.length - entries.length;
    legend.replaceChildren(...entries,
      ...(more > 0 ? [el("li", { className: "dim" }, `and ${more.toLocaleString()} more${wanted === "label"
        ? ": type one above, or point at an item" : ""}${order.length > 30 ? "; colours repeat" : ""}`)] : []),
      ...(missing ? [el("li", {}, el("span", { className: "swatch none", "aria-hidden": "true" }), `no ${wanted} (${missing.toLocaleString()})`)] : []));
    relight();
  }

  function recolourByScale(name, numbers) {
    let [low, high, missing] = [Infinity, -Infinity, 0];
    for (const value of numbers) {
      if (value === null) missing += 1;
      else [low, high] = [Math.min(low, value), Math.max(high, value)];
    }
    const step = (value) => (high > low ? Math.min(BINS - 1, Math.floor(((value - low) / (high - low)) * BINS)) : 0);
    scatter.colour(Int32Array.from(numbers, (value) => (value === null ? -1 : step(value))), scale(BINS));
    legend.replaceChildren(...(missing < count ? [el("li", {}, `${name}: ${low.toLocaleString()}`,
      el("span", { className: "ramp", "aria-hidden": "true" }), high.toLocaleString())] : []),
    ...(missing ? [el("li", {}, el("span", { className: "swatch none", "aria-hidden": "true" }), `no ${name} (${missing.toLocaleString()})`)] : []));
    relight();
  }

  function relist() {
    list.replaceChildren(summary);
    if (!list.open) return;
    const kind = kinds.get(view.colour) ?? labels;
    const ranks = kind && new Int32Array(kind.names.length);
    if (kind) [...kind.names.keys()].sort((a, b) => collator.compare(kind.shown[a], kind.shown[b])).forEach((value, i) => { ranks[value] = i; });
    const rank = (i) => (!kind || kind.of[i] < 0 ? Infinity : ranks[kind.of[i]]);
    const rows = [...ids.keys()].sort((a, b) => (rank(a) === rank(b) ? a - b : rank(a) - rank(b)));
    const heads = ["Item", "Label", ...(learners ? ["Learner"] : []), ...(splits ? ["Split"] : []), "x", "y"];
    let many = LISTED;
    const fill = () => {
      const more = el("button", { type: "button" }, "More");
      more.addEventListener("click", () => { many += LISTED; fill(); });
      list.replaceChildren(summary, table(`Items by ${kind?.name ?? "number"}${sampled}`, heads, rows.slice(0, many).map((i) => [
        el("a", { href: `/?id=${ids[i]}`, "data-id": ids[i] }, `item ${ids[i]}`), labelOf(i) ?? "",
        ...(learners ? [learners.of[i] < 0 ? "" : learners.shown[learners.of[i]].replace("learner ", "")] : []),
        ...(splits ? [splits.names[splits.of[i]] ?? ""] : []), x[i].toFixed(2), y[i].toFixed(2)])),
      ...(many < rows.length ? [more] : []));
    };
    fill();
  }

  const x = Float32Array.from(data.x), y = Float32Array.from(data.y);
  scatter = createScatter(chart, {
    x, y, view, label: `Map of ${count.toLocaleString()} items`, describedBy: "map-help",
    image: (i) => (images ? picture({ id: ids[i], label: null, image: `/items/${ids[i]}/image` }, 96).src : null),
    onChoose,
    onOpen: (i) => state.go({ view: "search", id: String(ids[i]), upload: null }, true),
  });
  chart.append(shown);
  colours.onchange = () => {
    view.colour = colours.value;
    recolour().then(relist).catch((error) => state.complain(error.message));
  };
  list.addEventListener("toggle", relist);
  matchMedia("(prefers-color-scheme: dark)").onchange = () => { if (chart.isConnected) recolour(); };
  relist();
  await recolour();
  state.say(`${count.toLocaleString()} items shown${sampled}.`);
}
