// The views, the state in the address, and the search.

import { $, Problem, ask, card, cards, el, onUnauthorized, picture } from "/dom.js";

const PAGE = 48;
const uploads = new Map(); // what was sent, by its number: the address cannot hold it
let about = null;
let current = 0; // counts searches: an answer that a newer one overtook is dropped
let offset = 0;

const views = {
  search: { title: "Search", show: showSearch },
  failures: { title: "Failures", show: async (state) => (await import("/views.js")).failures(state) },
  map: { title: "Map", show: async (state) => (await import("/map.js")).map(state) },
  divisions: { title: "Divisions", show: async (state) => (await import("/views.js")).divisions(state) },
};

// The state is the address: view, id or upload, k, and a `where` of COLUMN, OPERATOR and VALUE for each condition.

function read() {
  const given = new URLSearchParams(location.search);
  const where = given.getAll("where").map((text) => JSON.parse(text)).filter((c) => Array.isArray(c) && c.length === 3);
  const view = given.get("view") in views ? given.get("view") : "search";
  return { view, id: given.get("id"), upload: given.get("upload"), k: Number(given.get("k")) || 24, where };
}

function address(state) {
  const given = new URLSearchParams();
  if (state.view !== "search") given.set("view", state.view);
  if (state.id !== null) given.set("id", state.id);
  if (state.upload !== null) given.set("upload", state.upload);
  if (state.k !== 24) given.set("k", state.k);
  for (const condition of state.where) given.append("where", JSON.stringify(condition));
  const text = given.toString();
  return text ? `/?${text}` : "/";
}

export function go(changes, focus = false) {
  history.pushState(null, "", address({ ...read(), ...changes }));
  return show(focus);
}

function asObject(where) {
  return Object.fromEntries(where.map(([name, operator, value]) =>
    [name, operator === "=" ? value : { [operator]: value }]));
}

function say(text) { $("status").textContent = text; }

function complain(text) {
  $("problem").textContent = text;
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
  if (state.upload !== null && !sent) throw new Problem("That image is not kept across a reload; choose it again.");
  if (state.id === null && !sent) return browse(state);
  say("Searching …");
  const asked = { k: Math.min(state.k, about.limits.most_k), where: asObject(state.where) };
  if (about.learners) Object.assign(asked, { learner: "each", each_k: 8 });
  let answer;
  if (sent && !sent.embedding) {
    const form = new FormData();
    form.append("image", sent.file, sent.file.name || "pasted");
    for (const [name, value] of Object.entries(asked)) {
      form.append(name, name === "where" ? JSON.stringify(value) : value);
    }
    answer = await ask("/search", { method: "POST", body: form });
    sent.embedding = answer.embedding;
  } else {
    const by = sent ? { vector: sent.embedding } : { id: Number(state.id) };
    answer = await ask("/search", { method: "POST", body: JSON.stringify({ ...asked, ...by }) });
  }
  const item = sent ? null : await ask(`/items/${encodeURIComponent(state.id)}`);
  if (state.stale()) return;
  showQuery(item, sent);
  $("results-title").textContent = "Most alike";
  $("more").hidden = true;
  $("results").replaceChildren(...answer.hits.map((hit) => el("li", {}, card(hit))));
  suggest(answer.hits);
  showLearners(answer.learners);
  say(answer.hits.length ? `${answer.hits.length} items found, the most alike first.` : "No item fulfils the filter.");
}

function showQuery(item, sent) {
  const image = item ? picture(item, 384) : el("img", { src: sent.url, alt: "The image that was sent" });
  const facts = item
    ? [["Label", item.label ?? "none"], ["Path", item.path], ...Object.entries(item.metadata)]
    : [["File", sent.file.name || "pasted"]];
  const told = facts.filter(([, value]) => value !== null).map(([name, value]) =>
    el("p", {}, el("span", { className: "dim" }, `${name}: `), String(value)));
  const all = el("a", { href: "/", "data-clear": true }, "All items");
  $("query").replaceChildren(image, el("div", {}, el("p", {}, el("strong", {}, "Searching for what is like this")), told, all));
  $("query").hidden = false;
}

function showLearners(rows) {
  $("learners").replaceChildren();
  if (!rows.length) return;
  $("learners").append(el("h3", {}, "What each learner finds alike"));
  for (const { learner, hits } of rows) {
    const title = el("h4", { id: `learner-${learner}` }, `Learner ${learner}`);
    const list = cards(hits, "row");
    list.setAttribute("aria-labelledby", title.id);
    $("learners").append(el("div", { className: "learner" }, title, list));
  }
}

async function browse(state) {
  say("Reading …");
  const where = state.where.length ? `&where=${encodeURIComponent(JSON.stringify(asObject(state.where)))}` : "";
  const size = Math.min(PAGE, about.limits.most_k);
  const answer = await ask(`/items?offset=${offset}&limit=${size}${where}`);
  if (state.stale()) return;
  $("query").hidden = true;
  $("learners").replaceChildren();
  $("results-title").textContent = "Items";
  const made = answer.items.map((item) => el("li", {}, card(item)));
  if (offset) $("results").append(...made);
  else $("results").replaceChildren(...made);
  if (offset && made.length) made[0].firstChild.focus();
  suggest(answer.items);
  offset += answer.items.length;
  $("more").hidden = offset >= answer.total || !answer.items.length;
  $("more").onclick = () => browse(state).catch((error) => complain(error.message));
  say(`${offset.toLocaleString()} of ${answer.total.toLocaleString()} items shown. Choose one to search from it.`);
}

// The filter

function showFilter(state) {
  $("k").value = String(state.k);
  $("conditions").replaceChildren(...state.where.map((condition, place) => {
    const text = condition.join(" ");
    const remove = el("button", { type: "button", "aria-label": `Remove the condition ${text}` }, `${text} ✕`);
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
  $("column").replaceChildren(...about.columns.map(({ name }) => el("option", { value: name }, name)));
  $("k").addEventListener("change", () => go({ k: Number($("k").value) }));
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
    $("drop").replaceChildren(el("p", { className: "dim" }, "The model sees vectors: choose an item to search from it."));
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
    complain(`${file.name}: larger than the ${about.limits.upload_bytes / 1e6} MB that the server takes.`);
    return;
  }
  const number = String(uploads.size);
  uploads.set(number, { file, url: URL.createObjectURL(file), embedding: null });
  go({ view: "search", id: null, upload: number }, true);
}

// The token, where the server asks for one: from the address (#token=...), or typed. A cookie keeps it.

async function enter(token) {
  const answer = await fetch("/login", { method: "POST", headers: { Authorization: `Bearer ${token}` } });
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
        $("login-problem").textContent = "This is not the token.";
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
    const given = new URLSearchParams(location.hash.slice(1)).get("token");
    if (given) {
      await enter(given);
      history.replaceState(null, "", location.pathname + location.search);
    }
    about = await ask("/about");
    const images = about.sees === "images" ? "images" : "vectors";
    const learners = about.learners ? `, ${about.learners} learners` : "";
    $("about").textContent = `${about.items.toLocaleString()} ${images}, ${about.dims} dimensions${learners}`;
    begin();
    await show();
    if ($("file")?.files.length) $("file").dispatchEvent(new Event("change"));  // chosen before anybody listened
  } catch (error) {
    complain(error.message);
  }
}

start();
