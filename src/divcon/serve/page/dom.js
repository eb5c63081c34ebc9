// Elements, requests and the items that all views show.

export const $ = (id) => document.getElementById(id);

const BASE = new URL(".", import.meta.url); // a proxy may serve the page under a path of its own

/** The address of a path of the server, such as `/items/3`. */
export const at = (path) => new URL(path.slice(1), BASE).href;

/** Create an element. Strings among its children become text, never markup; an `href` or `src` that begins with / is a
 * path of the server. */
export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (let [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if ((name === "href" || name === "src") && value.startsWith("/")) value = at(value);
    if (name in node && name !== "list") node[name] = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

export class Problem extends Error {}

let login = async () => false;
export const onUnauthorized = (act) => { login = act; };

/** Keep integers that a number of JavaScript would round as the text that was sent. */
function exactly(key, value, context) {
  const rounded = Number.isInteger(value) && !Number.isSafeInteger(value);
  return rounded && /^-?\d+$/.test(context?.source ?? "") ? context.source : value;
}

/** Fetch JSON from the server; while it answers 202, ask again, and call `waiting` with what it answers. */
export async function ask(path, { waiting = () => {}, ...options } = {}) {
  for (;;) {
    let response;
    try {
      response = await fetch(at(path), options);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Problem("The server does not answer; is it still running?");
    }
    if (response.status === 401 && (await login())) continue;
    if (response.status === 202) {
      waiting(await response.json());
      await new Promise((go) => setTimeout(go, 500));
      continue;
    }
    const data = await response.text().then((text) => JSON.parse(text, exactly))
      .catch(() => ({ error: `the server answered ${response.status}` }));
    if (!response.ok) throw new Problem(data.error);
    return data;
  }
}

export function picture(item, size = 192) {
  const image = el("img", {
    src: `${item.image}?size=${size}`, alt: item.label ?? "item without a label", loading: "lazy", decoding: "async",
  });
  image.addEventListener("error", () => image.replaceWith(el("span", { className: "nothing" }, "no preview")));
  image.addEventListener("load", () => fit(image));
  return image;
}

/** An image fills its cell; one that would lose more than two fifths of itself is shown whole. */
export function fit(image) {
  const ratio = image.naturalWidth / image.naturalHeight;
  image.classList.toggle("whole", ratio < 0.6 || ratio > 1 / 0.6);
}

let columns = [];

/** Choose the columns of the user's table that cards show. */
export const showColumns = (names) => { columns = names; };

const short = (path) => path.split("/").slice(-2).join("/");
export const text = (value) => (value === null || value === undefined ? "–"
  : typeof value === "object" ? JSON.stringify(value) : String(value));

/** An item, as a link that searches with it; each of its texts has one line. */
export function card(item, ...more) {
  const score = item.score === undefined ? null : el("span", { className: "score" }, item.score.toFixed(3));
  const all = Object.entries(item.metadata ?? {}).filter(([, value]) => value !== null);
  const title = [item.label ?? "no label", item.path, ...all.map(([name, value]) => `${name}: ${text(value)}`)].join("\n");
  const link = el("a", { className: "item", href: `/?id=${item.id}`, title, "data-id": item.id },
    picture(item),
    el("span", { className: "head" }, el("span", { className: item.label === null ? "label dim" : "label" },
      item.label ?? "no label"), " ", score),
    " ", ...more,
    el("span", { className: "path" }, short(item.path)),
    ...(item.metadata ? columns : []).map((name) => el("span", { className: "meta" }, el("span", { className: "dim" },
      `${name} `), text(item.metadata[name]))));
  link.item = item;
  return link;
}

export function cards(items, kind = "grid", ...more) {
  return el("ul", { className: kind }, items.map((item) => el("li", {}, card(item, ...more))));
}

export function table(caption, heads, rows) {
  const number = (value) => (typeof value === "number" ? "number" : undefined);
  const cell = (value) => (typeof value === "number" && !Number.isInteger(value) ? value.toFixed(3) : value);
  return el("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": caption },
    el("table", {}, el("caption", {}, caption),
      el("thead", {}, el("tr", {}, heads.map((head, i) =>
        el("th", { scope: "col", className: rows.length ? number(rows[0][i]) : undefined }, head)))),
      el("tbody", {}, rows.map((row) => el("tr", {}, row.map((value) =>
        el("td", { className: number(value) }, cell(value))))))));
}

export const colour = (number) => getComputedStyle(document.documentElement).getPropertyValue(
  number < 0 ? "--dim" : `--c${number % 10}`).trim();
