// Two models side by side: the results of each for one query, and the queries to start with.

import { $, Problem, ask, at, card, el, picture } from "./dom.js";
import { uploads } from "./page.js";

const view = { against: null, k: 12 }; // stays while other views are shown
const percent = (value) => `${(100 * value).toFixed(1)} %`;
const many = (number, one, more = `${one}s`) => `${number.toLocaleString()} ${number === 1 ? one : more}`;

export async function compare(state) {
  const names = state.about.compare;
  if (!names.includes(view.against)) view.against = names[0];
  const sent = state.upload === null ? null : uploads.get(state.upload);
  if (state.upload !== null && !sent) throw new Problem("An uploaded image is lost when the page reloads. Choose it again.");
  const isSearch = state.id !== null || sent;
  state.say(isSearch ? "Searching with both models …" : "Comparing the models …");
  const query = `against=${encodeURIComponent(view.against)}`;
  const [overview, answer] = await Promise.all([ask(`/compare?${query}`), isSearch ? search(state, sent) : null]);
  if (state.stale()) return;
  const content = $("compare-content");
  content.replaceChildren(tools(state, names));
  content.append(...overview.notes.map((note) => el("p", { className: "note" }, note)));
  if (answer) result(state, content, overview, answer, sent);
  else start(state, content, overview);
}

function search(state, sent) {
  const k = Math.min(view.k, state.about.limits.most_k);
  if (!sent) {
    const body = JSON.stringify({ id: Number(state.id), k, against: view.against });
    return ask("/compare", { method: "POST", body });
  }
  const form = new FormData();
  form.append("image", sent.file, sent.file.name || "pasted");
  form.append("k", k);
  form.append("against", view.against);
  return ask("/compare", { method: "POST", body: form });
}

function choice(title, values, value, act) {
  const select = el("select", {}, values.map((one) => el("option", { value: String(one) }, String(one))));
  select.value = String(value);
  select.addEventListener("change", () => act(select.value));
  return el("label", {}, `${title} `, select);
}

function tools(state, names) {
  const box = el("div", { className: "tools" });
  if (state.about.sees === "images") {
    const button = el("button", { type: "button" }, "Choose an image");
    button.addEventListener("click", () => $("file").click());
    box.append(button);
  }
  if (names.length > 1) box.append(choice("Compare with", names, view.against, (name) => { view.against = name; state.go({}); }));
  const counts = [6, 12, 24, 48].filter((k) => k <= state.about.limits.most_k || k === 6);
  box.append(choice("Results of each", counts, view.k, (k) => { view.k = Number(k); state.go({}); }));
  if (state.id !== null || state.upload !== null) box.append(link(state, null, "Queries to start with"));
  return box;
}

/** Show the comparison of an item, when a link is clicked. */
function opens(state, node, id) {
  delete node.dataset.id;
  node.href = at(`/?view=compare${id === null ? "" : `&id=${id}`}`);
  node.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
    event.preventDefault();
    state.go({ view: "compare", id: id === null ? null : String(id), upload: null }, true);
  });
  return node;
}

const link = (state, id, text) => opens(state, el("a", {}, text), id);

function facts(model) {
  const learners = model.learners > 1 ? `${model.method}, ${model.learners} learners` : model.method;
  const validation = model.validation
    ? `Recall@1 ${percent(model.validation.recall_at_1)} of ${many(model.validation.num_queries, "validation query", "validation queries")}`
    : null;
  const training = model.untrained ? "before any training" : null;
  return [`${model.dims} dimensions`, model.backbone, training, learners, validation].filter(Boolean);
}

function heading(model, ...more) {
  return el("div", { className: "model" }, el("h3", {}, model.name), el("p", { className: "dim" }, facts(model).join(" · ")), ...more);
}

function mark(hit, name) {
  const right = hit.right === null ? null
    : el("span", { className: hit.right ? "hit" : "miss" }, hit.right ? "✓ right" : "✗ wrong");
  const where = hit.shared ? "● both" : `○ only ${name}${hit.indexed ? "" : ": not in the other index"}`;
  return [right, el("span", { className: `more ${hit.shared ? "together" : "alone"}` }, where)].filter(Boolean);
}

function column(state, model, hits) {
  const judged = hits.filter((hit) => hit.right !== null);
  const right = judged.length
    ? [el("p", {}, `${judged.filter((hit) => hit.right).length} of ${many(judged.length, "result")} of the query's class`)] : [];
  const list = el("ul", { className: "grid", "aria-label": `Most similar by ${model.name}` }, hits.map((hit) => {
    const node = card(hit, ...mark(hit, model.name));
    if (hit.shared) node.classList.add("shared");
    if (hit.own_id === null) { // it cannot be a query: the server's own index does not have it
      delete node.dataset.id;
      node.removeAttribute("href");
    } else opens(state, node, hit.own_id);
    return el("li", {}, node);
  }));
  return el("div", {}, heading(model, ...right), list);
}

function result(state, content, overview, answer, sent) {
  const { query, models, shared, overlap } = answer;
  const image = query ? picture(query, 384) : el("img", { src: sent.url, alt: "Your image" });
  const lines = (query ? [["Label", query.label ?? "none"], ["Path", query.path]] : [["File", sent.file.name || "pasted"]])
    .map(([name, value]) => el("p", {}, el("span", { className: "dim" }, `${name}: `), value));
  const most = Math.max(...models.map((model) => model.hits.length));
  const line = most ? `${shared} of ${many(most, "result")} ${shared === 1 ? "is" : "are"} returned by both models `
    + `(overlap@${most} ${percent(overlap)}).` : "Neither index has another item.";
  content.append(
    el("div", { className: "query" }, image, el("div", {}, el("p", {}, el("strong", {}, "Query")), lines)),
    el("p", { className: "overlap" }, line),
    el("div", { className: "versus" }, models.map((model, i) => column(state, overview.models[i], model.hits))));
  state.say("Results of both models shown. Click one to compare with it.");
}

function start(state, content, overview) {
  const { models, queries, starts } = overview;
  const [first, second] = models.map((model) => model.name);
  content.append(el("div", { className: "versus" }, models.map((model, i) => heading(model,
    ...(queries?.right ? [el("p", {}, "Nearest item of the right class: ", el("strong", {}, percent(queries.right[i])))] : [])))));
  if (!queries) {
    state.say("The indexes have too few items in common to compare them.");
    return;
  }
  const what = queries.test ? "test image" : "item";
  content.append(el("p", {}, `${many(queries.count, what)} searched among the ${many(queries.among, "item")} of both indexes: `
    + `on average, ${percent(queries.overlap)} of the ${queries.k} nearest are the same for both models.`
    + (queries.right && queries.judged < queries.count
      ? ` ${many(queries.judged, "query has", "queries have")} a label and another item of it.` : "")));
  const kinds = [
    ["differ", "Results differ most", null],
    ["first", `The nearest item is right by ${first} alone`, queries.only_first],
    ["second", `The nearest item is right by ${second} alone`, queries.only_second],
  ];
  for (const [kind, title, count] of kinds) {
    if (!starts[kind].length) continue;
    const of = count === null ? "" : ` (${many(count, "query", "queries")})`;
    const head = el("h3", { id: `compare-${kind}` }, `${title}${of}`);
    content.append(head, el("ul", { className: "row", "aria-labelledby": head.id }, starts[kind].map((item) =>
      el("li", {}, opens(state, card(item, el("span", { className: "more" }, `overlap ${percent(item.overlap)}`)), item.id)))));
  }
  state.say("Click a query, or choose an image, to see the results of both models.");
}
