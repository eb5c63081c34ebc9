// Labels that are given to items: choosing, labelling, hiding, undo and the export. The server keeps them.

import { $, ask, at, el } from "./dom.js";

const ASKED = 200; // ids in one address
const POLL = 5000; // milliseconds until labels that others gave are shown
const CLASSES = 6; // with fewer, training cannot hold classes out for test and validation

let act = null; // note, say and complain of the page
let marks = new Map(); // id to { label, hidden } of the items that are shown and were changed
let counts = null;
let last = null; // the box that was chosen last: shift chooses from there
let junkShown = false;
const changes = []; // that can be undone, the latest last

const on = () => document.body.classList.contains("labelling");
const boxes = () => [...$("results").querySelectorAll(".pick")];
const open = (box) => box.checkVisibility() && !box.closest(".below");
const chosen = () => boxes().filter((box) => box.checked).map((box) => box.value);

/** The box that chooses an item. */
export function box(item) {
  const name = `${item.label ?? "no label"}, ${item.path.split("/").at(-1)}`;
  return el("input", { type: "checkbox", className: "pick", value: String(item.id), "aria-label": `Select ${name}` });
}

/** Whether items are being labelled. */
export function mode(value) {
  document.body.classList.toggle("labelling", value);
  $("labelling").setAttribute("aria-pressed", String(value));
  $("label-bar").hidden = !value;
}

/** Other items are shown. */
export function shown() {
  last = null;
  count();
  refresh().catch((error) => act.complain(error.message));
}

async function refresh() {
  const ids = [...new Set([...$("search").querySelectorAll(".item")].map((node) => node.dataset.id))];
  const found = new Map();
  for (let i = 0; i === 0 || i < ids.length; i += ASKED) {
    const answer = await ask(`/labels?ids=${ids.slice(i, i + ASKED).join(",")}`);
    for (const [id, mark] of Object.entries(answer.items)) found.set(id, mark);
    take(answer);
  }
  marks = found;
  apply();
}

function take(answer) {
  const first = counts === null;
  counts = answer.counts;
  $("label-problem").textContent = answer.problem ? `Labels cannot be given: ${answer.problem}.` : "";
  $("label-problem").hidden = !answer.problem;
  for (const node of $("label-bar").querySelectorAll(".acts:first-of-type :is(button, input)")) {
    if (node.id !== "undo") node.disabled = Boolean(answer.problem);
  }
  const own = counts.all.images > counts.given.images; // the index has labels
  if (first) $("own").checked = own;
  $("own-label").hidden = !own;
  tell();
}

/** Say what the export holds, and whether it is enough to train on. */
function tell() {
  const { images, classes, with_pairs: pairs } = $("own").checked ? counts.all : counts.given;
  const many = (n, one, more) => `${n.toLocaleString()} ${n === 1 ? one : more}`;
  const gone = counts.gone ? ` ${many(counts.gone, "labelled item has", "labelled items have")} left the index.` : "";
  $("label-counts").replaceChildren(`${many(images, "image", "images")} in ${many(classes, "class", "classes")} labelled`,
    ...(!counts.files ? [": export, and join the labels with your table by path."]
      : pairs < CLASSES ? [`; training needs ${CLASSES} classes of two images or more, or 4 with --no-validation.`]
        : [": export, then ", el("code", {}, "divcon train labels.csv"), "."]), gone);
  $("export").href = at(`/labels.csv${$("own").checked ? "?own=true" : ""}`);
}

/** Show the labels on the cards. */
export function apply() {
  for (const link of $("search").querySelectorAll(".item")) {
    const mark = marks.get(link.dataset.id);
    const label = mark?.label ?? link.item.label;
    const name = link.querySelector(".label");
    if (name.textContent !== (label ?? "no label")) name.textContent = label ?? "no label";
    name.classList.toggle("given", Boolean(mark?.label));
    name.classList.toggle("dim", label === null);
    link.parentNode.classList.toggle("junk", Boolean(mark?.hidden));
    link.querySelector(".hidden")?.remove();
    if (mark?.hidden) link.querySelector(".head").after(el("span", { className: "more hidden" }, "hidden"));
  }
  const hidden = $("results").querySelectorAll(".junk").length;
  $("junk-line").hidden = !hidden;
  if (hidden) {
    const toggle = el("button", { type: "button", className: "quiet", id: "junk-toggle" }, junkShown ? "Do not show them" : "Show");
    toggle.addEventListener("click", () => { junkShown = !junkShown; apply(); $("junk-toggle").focus(); });
    $("junk-line").replaceChildren(`${hidden} of these items ${hidden === 1 ? "is" : "are"} hidden. `, toggle);
  }
  document.body.classList.toggle("with-junk", junkShown);
  count();
}

/** Say how many items are chosen; items that are not shown are not. */
export function count() {
  for (const each of boxes()) if (each.checked && on() && !each.checkVisibility()) each.checked = false;
  const number = chosen().length;
  $("chosen").textContent = `${number} selected`;
  const all = boxes().filter(open);
  $("choose-all").textContent = all.length && all.every((each) => each.checked) ? "Select none" : "Select all";
}

function choose(which, value) {
  for (const each of which) each.checked = value;
  count();
  act.say($("chosen").textContent);
}

/** Choose from the last chosen box to this one. */
function range(to) {
  const all = boxes();
  const from = all.includes(last) ? all.indexOf(last) : all.indexOf(to);
  const [a, b] = [from, all.indexOf(to)].sort((x, y) => x - y);
  choose(all.slice(a, b + 1).filter(open), last?.checked ?? true);
}

async function send(change, done) {
  const ids = chosen();
  if (!ids.length) {
    act.complain("Select items first: tick the boxes at their pictures.");
    return;
  }
  act.complain("");
  // JSON by hand: numbers of JavaScript round large ids.
  const body = `{"ids":[${ids.join(",")}],${JSON.stringify(change).slice(1)}`;
  const answer = await ask("/labels", { method: "POST", headers: { "Content-Type": "application/json" }, body });
  if (answer.changed) changes.push(answer.change);
  $("undo").disabled = !changes.length;
  choose(boxes(), false);
  last = null;
  merge(ids, answer);
  act.say([`${done(answer)}.`, answer.note ? `Note: ${answer.note}.` : "",
    answer.missing ? `${answer.missing} are no longer in the index.` : ""].filter(Boolean).join(" "));
}

function merge(ids, answer) {
  for (const id of ids) marks.delete(id);
  for (const [id, mark] of Object.entries(answer.items)) marks.set(id, mark);
  take(answer);
  apply();
}

async function undo() {
  const change = changes.pop();
  $("undo").disabled = !changes.length;
  if (!change) return;
  const answer = await ask("/labels/undo", { method: "POST", headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ change }) });
  await refresh();
  act.say(`Undone: ${items(answer.changed)}.${answer.kept ? ` ${items(answer.kept)} changed again since, and kept.` : ""}`);
}

const items = (number) => `${number} ${number === 1 ? "item" : "items"}`;

let suggesting = 0;
async function suggest() {
  const mine = ++suggesting;
  const { names } = await ask(`/labels/names?text=${encodeURIComponent($("label").value)}`);
  if (mine === suggesting) $("label-names").replaceChildren(...names.map((name) => el("option", { value: name })));
}

/** Add the listeners, once. */
export function begin(page) {
  act = page;
  const failed = (error) => act.complain(error.message);
  $("labelling").addEventListener("click", () => {
    mode(!on());
    act.note({ labelling: on() });
    count();
    if (on()) refresh().catch(failed);
  });
  $("results").addEventListener("click", (event) => {
    if (!event.target.matches(".pick")) return;
    if (event.shiftKey && last) range(event.target);
    else {
      last = event.target;
      count();
    }
  });
  $("results").addEventListener("keydown", (event) => {
    if (!event.target.matches(".pick")) return;
    const all = boxes().filter((each) => each.checkVisibility());
    const here = all.indexOf(event.target);
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (step) {
      event.preventDefault();
      const next = all[here + step];
      if (!next) return;
      if (event.shiftKey) {
        if (!last) {
          last = event.target;
          last.checked = true;
        }
        range(next);
      }
      next.focus();
    } else if (event.key === "Enter") {
      event.preventDefault();
      $("label").focus();
    } else if (event.key.toLowerCase() === "a" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      choose(boxes().filter(open), true);
    }
  });
  document.addEventListener("keydown", (event) => {
    if (!on() || $("search").hidden) return;
    const typing = event.target.matches("input:not([type=checkbox]):not([type=range])") && event.target.value;
    if (event.key === "Escape" && !typing) choose(boxes(), false);
    if (event.key.toLowerCase() === "z" && (event.ctrlKey || event.metaKey) && !event.shiftKey && !typing) {
      event.preventDefault();
      undo().catch(failed);
    }
  });
  $("choose-all").addEventListener("click", () => {
    const all = boxes().filter(open);
    choose(all, !all.every((each) => each.checked));
  });
  $("label-bar").addEventListener("submit", (event) => {
    event.preventDefault();
    const label = $("label").value;
    if (!label.trim()) {
      act.complain("Type a label.");
      $("label").focus();
      return;
    }
    send({ label }, (answer) => `${items(answer.changed)} labelled ${label.trim()}`).catch(failed);
  });
  $("junk").addEventListener("click", () => send({ hidden: true }, (answer) => `${items(answer.changed)} hidden`).catch(failed));
  $("reset").addEventListener("click", () =>
    send({ label: null, hidden: false }, (answer) => `${items(answer.changed)} reset`).catch(failed));
  $("undo").addEventListener("click", () => undo().catch(failed));
  $("label").addEventListener("input", () => suggest().catch(failed));
  $("label").addEventListener("focus", () => suggest().catch(failed));
  $("own").addEventListener("change", tell);
  setInterval(() => { if (on() && !$("search").hidden && !document.hidden) refresh().catch(() => {}); }, POLL);
}
