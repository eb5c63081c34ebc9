// The views, the state in the address bar, and the search.

import { $, Problem, ask, at, card, cards, el, onUnauthorized, picture } from "./dom.js";

const PAGE = 48;
export const uploads = new Map(); // uploaded images by number, which the address bar cannot hold
let about = null;
let current = 0; // the number of the latest request: answers to earlier ones are dropped
let offset = 0;

const views = {
  search: { title: "Search", show: showSearch },
  compare: { title: "Compare", show: async (state) => (await import("./compare.js")).compare(state) },
  failures: { title: "Failures", show: async (state) => (await import("./views.js")).failures(state) },
  map: { title: "Map", show: async (state) => (await import("./map.js")).map(state) },
  divisions: { title: "Divisions", show: async (state) => (await import("./views.js")).divisions(state) },
};

// The state is the address: view, id or upload, k, the smallest score, and a `where` of COLUMN, OPERATOR and VALUE for each condition.

function read() {
  const params = new URLSearchParams(location.search);
  const where = params.getAll("where").map((text) => JSON.parse(text)).filter((c) => Array.isArray(c) && c.length === 3);
  const view = params.get("view") in views ? params.get("view") : "search";
  const least = params.get("min_score") ?? "";
  return { view, id: params.get("id"), upload: params.get("upload"), k: Number(params.get("k")) || 24, least, where };
}

function address(state) {
  const params = new URLSearchParams();
  if (state.view !== "search") params.set("view", state.view);
  if (state.id !== null) params.set("id", state.id);
  if (state.upload !== null) params.set("upload", state.upload);
  if (state.k !== 24) params.set("k", state.k);
  if (state.least !== "") params.set("min_score", state.least);
  for (const condition of state.where) params.append("where", JSON.stringify(condition));
  const text = params.toString();
  return at(text ? `/?${text}` : "/");
}

export function go(changes, focus = false) {
  history.pushState(null, "", address({ ...read(), ...changes }));
  return show(focus);
}

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
  if (state.least !== "") request.min_score = Number(state.least);
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
  $("results").replaceChildren(...answer.hits.map((hit) => el("li", {}, card(hit))));
  suggest(answer.hits);
  showLearners(answer.learners);
  const none = state.least === "" ? "No item matches the filter." : `No item has a similarity of ${state.least} or more.`;
  say(answer.hits.length ? `${answer.hits.length} items found, most similar first.` : none);
}

function showQuery(item, sent) {
  const image = item ? picture(item, 384) : el("img", { src: sent.url, alt: "Your image" });
  const facts = item
    ? [["Label", item.label ?? "none"], ["Path", item.path], ...Object.entries(item.metadata)]
    : [["File", sent.file.name || "pasted"]];
  const rows = facts.filter(([, value]) => value !== null).map(([name, value]) =>
    el("p", {}, el("span", { className: "dim" }, `${name}: `), String(value)));
  const all = el("a", { href: "/", "data-clear": true }, "All items");
  $("query").replaceChildren(image, el("div", {}, el("p", {}, el("strong", {}, "Query")), rows, all));
  $("query").hidden = false;
}

function showLearners(rows) {
  $("learners").replaceChildren();
  if (!rows.length) return;
  $("learners").append(el("h3", {}, "Most similar for each learner"));
  for (const { learner, hits } of rows) {
    const title = el("h4", { id: `learner-${learner}` }, `Learner ${learner}`);
    const list = cards(hits, "row");
    list.setAttribute("aria-labelledby", title.id);
    $("learners").append(el("div", { className: "learner" }, title, list));
  }
}

async function browse(state) {
  say("Loading …");
  const where = asTexts(state.where).map((text) => `&where=${encodeURIComponent(text)}`).join("");
  const size = Math.min(PAGE, about.limits.most_k);
  const answer = await ask(`/items?offset=${offset}&limit=${size}${where}`);
  if (state.stale()) return;
  $("query").hidden = true;
  $("learners").replaceChildren();
  $("results-title").textContent = "Items";
  const shown = answer.items.map((item) => el("li", {}, card(item)));
  if (offset) $("results").append(...shown);
  else $("results").replaceChildren(...shown);
  if (offset && shown.length) shown[0].firstChild.focus();
  suggest(answer.items);
  offset += answer.items.length;
  $("more").hidden = offset >= answer.total || !answer.items.length;
  $("more").onclick = () => browse(state).catch((error) => complain(error.message));
  say(`${offset.toLocaleString()} of ${answer.total.toLocaleString()} items shown. Click one to search with it.`);
}

// The filter

function showFilter(state) {
  $("k").value = String(state.k);
  $("least").value = state.least;
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
  $("least").addEventListener("change", () => {
    if ($("least").reportValidity()) go({ least: $("least").value });
  });
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
    begin();
    await show();
    if ($("file")?.files.length) $("file").dispatchEvent(new Event("change"));  // chosen before the listener was added
  } catch (error) {
    complain(error.message);
  }
}

start();
