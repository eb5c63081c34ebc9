// The views, the state in the address bar, and the search.

import { $, Problem, ask, at, card, cards, el, fit, onUnauthorized, picture, showColumns, text } from "./dom.js";
import * as labels from "./labels.js";

const PAGE = 48;
const COLUMNS = 2; // columns on the cards, unless others are chosen
const AGREE = 0.95; // learners whose similarities correlate by more than this show the same
export const uploads = new Map(); // uploaded images by number, which the address bar cannot hold
let about = null;
let current = 0; // the number of the latest request: answers to earlier ones are dropped
let offset = 0;
let hits = []; // of the search that is shown
let learnersOpen = false;

const views = {
  search: { title: "Search", show: showSearch },
  compare: { title: "Compare", show: async (state) => (await import("./compare.js")).compare(state) },
  failures: { title: "Failures", show: async (state) => (await import("./views.js")).failures(state) },
  map: { title: "Map", show: async (state) => (await import("./map.js")).map(state) },
  divisions: { title: "Divisions", show: async (state) => (await import("./views.js")).divisions(state) },
};

// The state is the address: view, id or upload, k, the smallest score, a `where` of COLUMN, OPERATOR and VALUE for each
// condition, a `show` for each column on the cards (one that is empty: none), and whether items are being labelled.

function read() {
  const params = new URLSearchParams(location.search);
  const where = params.getAll("where").map((text) => JSON.parse(text)).filter((c) => Array.isArray(c) && c.length === 3);
  const view = params.get("view") in views ? params.get("view") : "search";
  const least = params.get("min_score") ?? "";
  const own = about.columns.map(({ name }) => name).filter((name) => name !== "label" && name !== "path");
  const columns = params.has("show") ? own.filter((name) => params.getAll("show").includes(name)) : null;
  return { view, id: params.get("id"), upload: params.get("upload"), k: Number(params.get("k")) || 24,
    least: Math.abs(Number(least)) <= 1 ? least : "", where, columns, own, labelling: params.has("labelling") };
}

function address(state) {
  const params = new URLSearchParams();
  if (state.view !== "search") params.set("view", state.view);
  if (state.id !== null) params.set("id", state.id);
  if (state.upload !== null) params.set("upload", state.upload);
  if (state.k !== 24) params.set("k", state.k);
  if (state.least !== "") params.set("min_score", state.least);
  for (const condition of state.where) params.append("where", JSON.stringify(condition));
  if (state.columns) for (const name of state.columns.length ? state.columns : [""]) params.append("show", name);
  if (state.labelling) params.set("labelling", "");
  const query = params.toString().replace(/labelling=$/, "labelling");
  return at(query ? `/?${query}` : "/");
}

export function go(changes, focus = false) {
  history.pushState(null, "", address({ ...read(), ...changes }));
  return show(focus);
}

/** Change the address without a new entry in the history. */
function note(changes) { history.replaceState(null, "", address({ ...read(), ...changes })); }

// Conditions as text, which the server reads by the column's type: here every value is a text.
function asTexts(where) {
  return where.map(([name, operator, value]) => `${name}${operator}${value}`);
}

function say(text) { $("status").textContent = text; }

function complain(text) {
  $("problem").textContent = text.charAt(0).toUpperCase() + text.slice(1);
  $("problem").hidden = !text;
}

async function show(focus = false) {
  const state = read();
  const mine = ++current;
  complain("");
  $("views").replaceChildren(...Object.entries(views).filter(([name]) => about.views.includes(name)).map(([name, view]) =>
    el("li", {}, el("a", { href: address({ ...state, view: name }), "data-view": name,
      "aria-current": name === state.view ? "page" : undefined }, view.title))));
  for (const name of Object.keys(views)) $(name).hidden = name !== state.view;
  showColumns(state.columns ?? state.own.slice(0, COLUMNS));
  document.title = `${views[state.view].title} · divcon`;
  try {
    await views[state.view].show({ ...state, about, say, complain, go, stale: () => mine !== current });
    if (focus && mine === current) {
      const at = $(state.view).querySelector("#query:not([hidden])") ?? $(state.view).querySelector("h2");
      at.tabIndex = -1;
      at.focus({ preventScroll: true });
      window.scrollTo({ top: 0 });
    }
  } catch (error) {
    if (mine !== current) return;
    say("");
    complain(error instanceof Problem ? error.message : `The page failed: ${error.message}`);
  }
}

async function showSearch(state) {
  showFilter(state);
  offset = 0;
  const sent = state.upload === null ? null : uploads.get(state.upload);
  if (state.upload !== null && !sent) throw new Problem("An uploaded image is lost when the page reloads. Choose it again.");
  if (state.id === null && !sent) return browse(state);
  say("Searching …");
  const request = { k: Math.min(state.k, about.limits.most_k), where: asTexts(state.where) };
  if (about.learners) Object.assign(request, { learner: "each", each_k: 8 });
  let answer;
  if (sent && !sent.embedding) {
    const form = new FormData();
    form.append("image", sent.file, sent.file.name || "pasted");
    for (const [name, value] of Object.entries(request)) {
      for (const each of name === "where" ? value : [value]) form.append(name, each);
    }
    answer = await ask("/search", { method: "POST", body: form });
    sent.embedding = answer.embedding;
  } else {
    const by = sent ? { vector: sent.embedding } : { id: Number(state.id) };
    answer = await ask("/search", { method: "POST", body: JSON.stringify({ ...request, ...by }) });
  }
  const item = sent ? null : await ask(`/items/${encodeURIComponent(state.id)}`);
  if (state.stale()) return;
  showQuery(item, sent);
  $("results-title").textContent = "Most similar";
  $("more").hidden = true;
  hits = answer.hits;
  fill($("results"), hits, state.id);
  suggest(hits);
  showLearners(answer);
  showLeast(state.least);
  labels.shown();
}

/** Show items in a list; they can be chosen to be labelled. */
function fill(list, items, query = null, add = false) {
  const nodes = items.map((item) => {
    const badge = String(item.id) === query ? el("span", { className: "badge" }, "query") : null;
    return el("li", {}, labels.box(item), card(item, badge));
  });
  if (add) list.append(...nodes);
  else list.replaceChildren(...nodes);
  return nodes;
}

/** Dim the results below a similarity, a text; empty: none. */
function showLeast(least) {
  $("threshold").hidden = false;
  $("least").value = least === "" ? "-1" : least;
  $("least").setAttribute("aria-valuetext", least === "" ? "off" : least);
  $("least-value").textContent = least === "" ? "off" : Number(least).toFixed(2);
  $("least-off").hidden = least === "";
  const lowest = least === "" ? -2 : Number(least);
  [...$("results").children].forEach((node, i) => {
    const below = hits[i].score < lowest;
    node.classList.toggle("below", below);
    const link = node.querySelector(".item");
    if (below) link.setAttribute("aria-description", "below the smallest similarity");
    else link.removeAttribute("aria-description");
  });
  const above = hits.filter((hit) => hit.score >= lowest).length;
  if (!hits.length) say("No item matches the filter.");
  else if (least === "") say(`${hits.length} items found, most similar first. The numbers are cosine similarities.`);
  else if (!above) say(`None of ${hits.length} items has a similarity of ${Number(least).toFixed(2)} or more; all are dimmed.`);
  else say(`${above} of ${hits.length} items have a similarity of ${Number(least).toFixed(2)} or more`
    + `${above < hits.length ? "; the others are dimmed." : "; there may be more: ask for more results."}`);
  labels.count();
}

function showQuery(item, sent) {
  const image = item ? picture(item, 384) : el("img", { src: sent.url, alt: "Your image" });
  if (!item) image.addEventListener("load", () => fit(image));
  const facts = item
    ? [["Label", item.label ?? "none"], ["Path", item.path], ...Object.entries(item.metadata)]
    : [["File", sent.file.name || "pasted"]];
  const rows = facts.filter(([, value]) => value !== null).map(([name, value]) =>
    el("p", { title: text(value) }, el("span", { className: "dim" }, `${name}: `), text(value)));
  const all = el("a", { href: "/", "data-clear": true }, "All items");
  $("query").replaceChildren(image, el("div", {}, el("p", {}, el("strong", {}, "Query")),
    el("div", { className: "facts" }, rows), all));
  $("query").hidden = false;
}

const signed = (value) => value.toFixed(2).replace("-", "−");

function showLearners({ learners, agreement }) {
  $("learners").replaceChildren();
  if (!learners.length) return;
  const list = el("details", { id: "learner-rows", open: learnersOpen }, el("summary", {}, "Most similar for each learner",
    agreement === null ? null : el("span", { className: "dim" }, ` (their similarities correlate by ${signed(agreement)})`)));
  list.addEventListener("toggle", () => { learnersOpen = list.open; });
  for (const { learner, hits: own } of learners) {
    const title = el("h4", { id: `learner-${learner}` }, `Learner ${learner}`);
    const row = cards(own, "row");
    row.setAttribute("aria-labelledby", title.id);
    list.append(el("div", { className: "learner" }, title, row));
  }
  if (agreement === null || agreement <= AGREE) {
    $("learners").append(list);
    return;
  }
  const show = el("button", { type: "button", className: "quiet" }, "Show");
  show.addEventListener("click", () => {
    list.open = true;
    $("learners").replaceChildren(list);
    list.firstChild.focus();
  });
  $("learners").append(el("p", { id: "agree" }, `The ${learners.length} learners agree (${agreement.toFixed(2)}), rows hidden. `,
    show));
}

async function browse(state) {
  say("Loading …");
  const where = asTexts(state.where).map((text) => `&where=${encodeURIComponent(text)}`).join("");
  const size = Math.min(PAGE, about.limits.most_k);
  const answer = await ask(`/items?sample=0&offset=${offset}&limit=${size}${where}`);
  if (state.stale()) return;
  $("query").hidden = true;
  $("learners").replaceChildren();
  $("results-title").textContent = "Items";
  $("threshold").hidden = true;
  // The index may have changed since the page before.
  const there = new Set(offset ? [...$("results").querySelectorAll(".item")].map((node) => node.dataset.id) : []);
  const shown = fill($("results"), answer.items.filter((item) => !there.has(String(item.id))), null, offset > 0);
  if (offset && shown.length) shown[0].querySelector(".item").focus();
  suggest(answer.items);
  offset += answer.items.length;
  $("more").hidden = offset >= answer.total || !answer.items.length;
  $("more").onclick = () => browse(state).catch((error) => complain(error.message));
  say(`${offset.toLocaleString()} of ${answer.total.toLocaleString()} items shown${offset < answer.total
    ? ", a mixed sample" : ""}. Click one to search with it.`);
  labels.shown();
}

// The filter

function showFilter(state) {
  $("k").value = String(state.k);
  $("columns").hidden = !state.own.length;
  const chosen = state.columns ?? state.own.slice(0, COLUMNS);
  for (const box of $("columns-list").querySelectorAll("input")) box.checked = chosen.includes(box.value);
  labels.mode(state.labelling);
  $("conditions").replaceChildren(...state.where.map((condition, place) => {
    const text = condition.join(" ");
    const remove = el("button", { type: "button", "aria-label": `Remove the filter ${text}` }, `${text} ✕`);
    remove.addEventListener("click", () => {
      go({ where: state.where.filter((_, other) => other !== place) });
      $("value").focus();
    });
    return el("li", {}, remove);
  }));
}

function suggest(items) {
  const column = $("column").value;
  const value = (item) => (column === "label" ? item.label : column === "path" ? item.path : item.metadata[column]);
  const values = [...new Set(items.map(value).filter((v) => v !== null && v !== undefined).map(String))];
  $("values").replaceChildren(...values.slice(0, 50).map((text) => el("option", { value: text })));
  $("column").onchange = () => suggest(items);
}

function begin() {
  const limit = about.limits.most_k;
  $("k").replaceChildren(...[12, 24, 48, 96].filter((k) => k <= limit || k === 12).map((k) =>
    el("option", { value: String(k) }, String(k))));
  $("column").replaceChildren(...about.columns.map(({ name, type }) => el("option", { value: name }, `${name} (${type})`)));
  $("k").addEventListener("change", () => go({ k: Number($("k").value) }));
  const slide = (least) => { note({ least }); showLeast(least); };
  $("least").addEventListener("input", () => slide(Number($("least").value) <= -1 ? "" : $("least").value));
  $("least-off").addEventListener("click", () => { slide(""); $("least").focus(); });
  if (about.threshold !== null) {
    const exact = about.threshold.toFixed(4);
    $("use-threshold").textContent = `The run's threshold: ${about.threshold.toFixed(2)}`;
    $("use-threshold").addEventListener("click", () => slide(exact));
    $("use-threshold").hidden = $("mark").hidden = false;
    $("mark").style.left = `calc(9px + (100% - 18px) * ${(about.threshold + 1) / 2})`; // the thumb is 18 pixels wide
  }
  $("columns-list").replaceChildren(...read().own.map((name) =>
    el("label", { className: "check" }, el("input", { type: "checkbox", value: name }), ` ${name}`)));
  $("columns-list").addEventListener("change", () => {
    const columns = [...$("columns-list").querySelectorAll("input:checked")].map((box) => box.value);
    note({ columns });
    showColumns(columns);
    for (const node of $("search").querySelectorAll("li .item")) {
      const badge = node.querySelector(".badge");
      node.replaceWith(card(node.item, badge));
    }
    labels.apply();
    if (!$("threshold").hidden) showLeast(read().least);
  });
  const fold = (event) => {
    if (event.key === "Escape" && $("columns").contains(event.target)) $("columns").firstElementChild.focus();
    if (event.key === "Escape" || !$("columns").contains(event.target)) $("columns").open = false;
  };
  document.addEventListener("click", fold);
  $("columns").addEventListener("keydown", (event) => { if (event.key === "Escape") fold(event); });
  labels.begin({ note, say, complain });
  $("filter").addEventListener("submit", (event) => {
    event.preventDefault();
    const condition = [$("column").value, $("operator").value, $("value").value];
    $("value").value = "";
    go({ where: [...read().where.filter(([name]) => name !== condition[0]), condition] });
  });
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-id], a[data-view], a[data-clear]");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
    event.preventDefault();
    if (link.dataset.view) go({ view: link.dataset.view });
    else go({ view: "search", id: link.dataset.id ?? null, upload: null }, true);
  });
  window.addEventListener("popstate", () => show());

  if (about.sees !== "images") {
    $("drop").replaceChildren(el("p", { className: "dim" }, "This index holds vectors. Click an item to search with it."));
    return;
  }
  $("file").addEventListener("change", () => { send($("file").files[0]); $("file").value = ""; });
  document.addEventListener("paste", (event) => send([...event.clipboardData.files][0]));
  for (const name of ["dragenter", "dragover"]) document.addEventListener(name, (event) => {
    event.preventDefault();
    $("drop").classList.add("over");
  });
  for (const name of ["dragleave", "drop"]) document.addEventListener(name, () => $("drop").classList.remove("over"));
  document.addEventListener("drop", (event) => { event.preventDefault(); send(event.dataTransfer.files[0]); });
}

function send(file) {
  if (!file) return;
  if (file.size > about.limits.upload_bytes) {
    complain(`${file.name}: larger than the limit of ${about.limits.upload_bytes / 1e6} MB.`);
    return;
  }
  const number = String(uploads.size);
  uploads.set(number, { file, url: URL.createObjectURL(file), embedding: null });
  go({ view: read().view === "compare" ? "compare" : "search", id: null, upload: number }, true);
}

// The server's token, if it has one: from the address (#token=...), or typed. A cookie keeps it.

async function enter(token) {
  const answer = await fetch(at("/login"), { method: "POST", headers: { Authorization: `Bearer ${token}` } });
  return answer.ok;
}

let entering = null;
onUnauthorized(() => {
  entering ??= new Promise((done) => {
    $("login").showModal();
    $("login").oncancel = (event) => event.preventDefault();
    $("login-form").onsubmit = async (event) => {
      event.preventDefault();
      if (!(await enter($("token").value))) {
        $("login-problem").textContent = "Wrong token.";
        return;
      }
      $("login").close();
      entering = null;
      done(true);
    };
  });
  return entering;
});

async function start() {
  try {
    const token = new URLSearchParams(location.hash.slice(1)).get("token");
    if (token) {
      await enter(token);
      history.replaceState(null, "", location.pathname + location.search);
    }
    about = await ask("/about");
    const images = about.sees === "images" ? "images" : "vectors";
    const learners = about.learners ? `, ${about.learners} learners` : "";
    $("about").textContent = `${about.items.toLocaleString()} ${images}, ${about.dims} dimensions${learners}`;
    const [first, ...others] = (about.training ?? "").split(/(?<=[.]) /);
    $("training").replaceChildren(el("summary", {}, first), el("p", {}, others.join(" ")));
    $("training").hidden = !about.training;
    begin();
    await show();
    if ($("file")?.files.length) $("file").dispatchEvent(new Event("change"));  // chosen before the listener was added
  } catch (error) {
    complain(error.message);
  }
}

start();
