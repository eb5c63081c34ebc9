// The failures of an evaluated run, and the divisions of its training.

import { $, ask, card, colour, el, picture, table } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";

function svg(tag, properties, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(properties)) node.setAttribute(name, value);
  node.append(...children.flat());
  return node;
}

const SCORES = { recall_at_1: "Recall@1", r_precision: "R-precision", map_at_r: "MAP@R" };
const percent = (value) => (value === null || value === undefined ? "–" : `${(100 * value).toFixed(1)} %`);
const SHOWN = { confused: 8, queries: 10, pairs: 6 }; // at first, and with each "More"

/** A list that shows some of its entries, and more with a button: `fetch(offset)` gives `{ entries, total }`. */
async function growing(list, name, fetch) {
  const button = el("button", { type: "button", hidden: true }, `More ${name}`);
  const grow = async () => {
    const { entries, total } = await fetch(list.children.length);
    const first = list.children.length ? entries[0] : null;
    list.append(...entries);
    button.hidden = list.children.length >= total || !entries.length;
    button.textContent = `More ${name} (${list.children.length.toLocaleString()} of ${total.toLocaleString()})`;
    first?.querySelector("a")?.focus();
  };
  await grow();
  return { button, grow };
}

const some = (entries, count) => async (offset) => ({ entries: entries.slice(offset, offset + count), total: entries.length });

export async function failures(state) {
  state.say("Loading the failures …");
  const data = await ask("/failures");
  if (state.stale()) return;
  const { summary } = data;
  const content = $("failures-content");
  const complain = (error) => state.complain(error.message);
  const more = ({ button, grow }) => {
    button.addEventListener("click", () => grow().catch(complain));
    return el("p", {}, button);
  };
  const overview = el("p", {}, `${summary.failed.toLocaleString()} of ${summary.queries.toLocaleString()} queries have a `
    + `nearest neighbour of another class (Recall@1 ${percent(summary.recall_at_1 ?? 1 - summary.failed / summary.queries)}). `
    + "Numbers below images are similarities to the query.");
  const missing = summary.in_index < summary.queries
    ? el("p", { className: "dim" }, `${summary.in_index.toLocaleString()} of these queries are in the index; `
      + "the others have no preview.") : null;
  content.replaceChildren(overview, ...(missing ? [missing] : []), el("h3", {}, "Most confused classes"));

  if (data.confused.length) {
    const list = el("ul", { className: "confused" });
    const entries = data.confused.map((pair) => confusedPair(pair));
    content.append(list, more(await growing(list, "pairs of classes", some(entries, SHOWN.confused))));
  } else content.append(el("p", {}, "No failed query in the index has a nearest neighbour of another class."));

  content.append(el("h3", {}, "Worst queries"));
  const filter = el("input", { id: "failed-class", list: "failed-classes", autocomplete: "off", placeholder: "all classes" });
  const options = data.classes.map((one) => el("option", { value: one.label }, `${one.failed} of ${one.queries} failed`));
  const form = el("form", { className: "found" }, el("label", {}, "Class ", filter), " ",
    el("datalist", { id: "failed-classes" }, options), el("button", { type: "submit" }, "Show"), " ",
    el("span", { className: "dim" }, `${data.classes.length.toLocaleString()} classes have failed queries`));
  const cases = el("div", { id: "failed-queries" });
  let shownFor = 0;
  const show = async () => {
    const label = filter.value, mine = ++shownFor;
    const list = el("ul", { className: "cases" });
    const page = async (offset) => {
      const of = label ? `&label=${encodeURIComponent(label)}` : "";
      const answer = await ask(`/failures/queries?offset=${offset}&limit=${SHOWN.queries}${of}`);
      return { entries: answer.queries.map(failedCase), total: answer.total };
    };
    const grown = await growing(list, "queries", page);
    if (mine !== shownFor || state.stale()) return;
    cases.replaceChildren(list, more(grown));
    const count = list.children.length;
    state.say(count ? `${count.toLocaleString()} queries shown, worst first.` : `No query is of the class “${label}”.`);
  };
  form.addEventListener("submit", (event) => { event.preventDefault(); show().catch(complain); });
  content.append(form, cases);

  content.append(el("h3", {}, "Near-duplicates in test and train"));
  if (!data.split_known) {
    content.append(el("p", { className: "dim" }, "Unknown: the data of the run cannot be read on this machine."));
  } else if (data.pairs.length) {
    content.append(el("p", { className: "dim" }, "Pairs with a similarity of 0.95 or more. Check whether they are copies of one image."));
    const list = el("ul", { className: "grid pairs" });
    const entries = data.pairs.map((pair) => el("li", {}, card(pair.test, el("span", { className: "more" }, "test")),
      card({ ...pair.train, score: pair.score }, el("span", { className: "more" }, "train"))));
    content.append(list, more(await growing(list, "pairs", some(entries, SHOWN.pairs))));
  } else content.append(el("p", {}, "No pair of a test and a train image in the index has a similarity of 0.95 or more."));
  await show();
}

function confusedPair({ label, taken_for: other, queries, of, examples }) {
  const image = (item, about) => el("a", { href: `/?id=${item.id}`, "data-id": item.id, title: item.path,
    "aria-label": about }, picture(item, 96));
  return el("li", {}, el("p", {}, el("strong", {}, label), " taken for ", el("strong", {}, other)),
    el("p", { className: "dim" }, `${queries.toLocaleString()} of ${of.toLocaleString()} queries (${percent(queries / of)})`),
    examples.map(({ query, nearest }, i) => el("div", { className: "pair" }, image(query, `Query ${i + 1}: ${label}`),
      el("span", { className: "miss" }, "✗ ", nearest.score.toFixed(3)), image(nearest, `Its nearest neighbour: ${other}`))));
}

function failedCase(query) {
  const scores = Object.entries(query.scores).map(([name, value]) => `${SCORES[name] ?? name} ${percent(value)}`);
  const own = query.item ? card(query.item, el("span", { className: "more" }, "query"))
    : el("div", { className: "item" }, el("span", { className: "nothing" }, "not in the index"),
      el("span", { className: "label" }, query.label), el("span", { className: "more" }, "query"),
      el("span", { className: "path" }, query.path));
  const hits = query.hits.map((hit) =>
    el("li", {}, card(hit, el("span", { className: hit.right ? "hit" : "miss" }, hit.right ? "✓ right" : "✗ wrong"))));
  return el("li", { className: "case" },
    el("p", {}, el("strong", {}, query.label), " ", el("span", { className: "dim" }, scores.join(" · "))),
    el("ul", { className: "row", "aria-label": `Query ${query.label} and its nearest neighbours` },
      el("li", { className: "asked" }, own), hits));
}

export async function divisions(state) {
  state.say("Loading the divisions …");
  const data = await ask("/divisions");
  if (state.stale()) return;
  const content = $("divisions-content");
  content.replaceChildren(...(data.problem ? [el("p", { className: "dim" }, `Note: ${data.problem}`)] : []));
  const most = Math.max(0, ...data.divisions.map((division) => division.sizes.length));
  const heads = ["Epoch", "Phase", ...Array.from({ length: most }, (_, k) => `Learner ${k}`), "Left out"];
  content.append(el("p", {}, "Each column shows how the training images were divided among the learners. "
    + "Bands show the images that stay with a learner or move to another."));
  const chart = el("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": "Flow of images between learners" });
  chart.append(flow(data));
  content.append(chart);
  content.append(table("Number of images of each learner", heads, data.divisions.map((division) => [division.epoch,
    division.phase ?? "", ...Array.from({ length: most }, (_, k) => division.sizes[k] ?? ""), division.left_out])));
  if (data.divisions.some((division) => division.sheets.some((ids) => ids.length))) {
    content.append(el("h3", {}, "Examples of each learner"));
    const select = el("select", { id: "division" }, data.divisions.map((division, i) =>
      el("option", { value: String(i) }, `epoch ${division.epoch}`)));
    const sheets = el("div", { id: "sheets" });
    const show = () => sheets.replaceChildren(...sheet(data.divisions[Number(select.value)]));
    select.addEventListener("change", () => { show(); state.say(`Division of epoch ${data.divisions[select.value].epoch} shown.`); });
    const divided = data.divisions.findLastIndex((division) => division.sizes.length > 1);
    select.value = String(divided < 0 ? data.divisions.length - 1 : divided);
    show();
    content.append(el("p", {}, el("label", {}, "Division ", select)), sheets);
  }
  state.say(`${data.divisions.length} divisions shown.`);
}

function sheet(division) {
  return division.sheets.flatMap((ids, k) => [
    el("h4", {}, el("span", { className: `swatch c${k % 10}`, "aria-hidden": "true" }),
      `${division.sizes.length > 1 ? `Learner ${k}` : "All images"}: ${division.sizes[k].toLocaleString()} images`),
    el("ul", { className: "sheet", "aria-label": `Examples of learner ${k}` }, ids.map((id) =>
      el("li", {}, el("a", { href: `/?id=${id}`, "data-id": id, "aria-label": `Search with item ${id}` },
        picture({ image: `/items/${id}/image`, label: `item ${id}` }, 96))))),
  ]);
}

function flow({ divisions, flows }) {
  const height = 260, top = 24, node = 14, step = 130, gap = 6;
  const total = divisions.length ? divisions[0].sizes.reduce((a, b) => a + b, 0) + divisions[0].left_out : 0;
  const most = Math.max(1, ...divisions.map((division) => division.sizes.length + 1));
  const scale = (height - gap * (most - 1)) / Math.max(1, total);
  const name = (division, k) => (k === division.sizes.length ? "left out"
    : division.sizes.length > 1 ? `learner ${k}` : "all images");
  const fill = (division, k) => (k === division.sizes.length || division.sizes.length < 2 ? colour(-1) : colour(k));
  const tops = divisions.map((division) => {
    let y = top;
    return [...division.sizes, division.left_out].map((size) => {
      const at = y;
      if (size) y += size * scale + gap;
      return at;
    });
  });
  const parts = [];
  flows.forEach((counts, i) => {
    const leave = [...tops[i]], enter = [...tops[i + 1]];
    counts.forEach((row, k) => row.forEach((count, l) => {
      if (!count) return;
      const h = count * scale, x1 = i * step + node, x2 = (i + 1) * step, m = (x1 + x2) / 2;
      const path = `M${x1} ${leave[k]}C${m} ${leave[k]} ${m} ${enter[l]} ${x2} ${enter[l]}v${h}`
        + `C${m} ${enter[l] + h} ${m} ${leave[k] + h} ${x1} ${leave[k] + h}z`;
      const title = `epoch ${divisions[i].epoch} ${name(divisions[i], k)} to epoch ${divisions[i + 1].epoch} `
        + `${name(divisions[i + 1], l)}: ${count} images`;
      parts.push(svg("path", { d: path, class: "ribbon", fill: fill(divisions[i], k) }, svg("title", {}, title)));
      leave[k] += h;
      enter[l] += h;
    }));
  });
  divisions.forEach((division, i) => {
    parts.push(svg("text", { x: i * step, y: 14 }, `epoch ${division.epoch}`));
    [...division.sizes, division.left_out].forEach((size, k) => {
      if (!size) return;
      const h = Math.max(1, size * scale);
      parts.push(svg("rect", { x: i * step, y: tops[i][k], width: node, height: h, fill: fill(division, k) },
        svg("title", {}, `epoch ${division.epoch}, ${name(division, k)}: ${size} images`)));
      const label = k === division.sizes.length ? "out" : division.sizes.length > 1 ? String(k) : "all";
      if (h >= 10) parts.push(svg("text", { x: i * step + node + 3, y: tops[i][k] + h / 2 + 4 }, label));
    });
  });
  const width = Math.max(1, divisions.length - 1) * step + 60;
  return svg("svg", { class: "flow", viewBox: `0 0 ${width} ${top + height + 20}`, width, height: top + height + 20,
    role: "img", "aria-label": "Flow of images between learners; the table below has the sizes" }, parts);
}
