// Elements, requests and the items that all views show.

export const $ = (id) => document.getElementById(id);

/** Create an element. Strings among its children become text, never markup. */
export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
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
      response = await fetch(path, options);
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
  return image;
}

const short = (path) => path.split("/").slice(-2).join("/");

/** An item, as a link that searches with it. */
export function card(item, ...more) {
  const score = item.score === undefined ? null : el("span", { className: "score" }, item.score.toFixed(3));
  return el("a", { className: "item", href: `/?id=${item.id}`, title: item.path, "data-id": item.id },
    picture(item),
    el("span", { className: "label" }, item.label ?? "no label"),
    score, " ", ...more,
    el("span", { className: "path" }, short(item.path)));
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
